//! Counts the requests for each path, durably: `GET /anything` is answered by how often it was asked for, `GET /` by all
//! counts.

use std::collections::BTreeMap;

use wasmcage_guest::{Request, Response, Result, handler, state};

#[handler]
fn handle(request: Request) -> Result<Response> {
    match request.path() {
        "/" => {
            let counts: BTreeMap<String, i64> = state::scan("/").entries().collect::<Result<_, _>>()?;
            Response::json(&counts)
        }
        path => Ok(Response::text(state::increment(path, 1)?.to_string())),
    }
}
