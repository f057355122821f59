//! Serves the interface `my_http` of the cage `runner`: hands each request to the cage `worker`, and shows its answer.

use wasmcage_guest::{Request, Response, Result, cage, handler};

#[handler]
fn handle(request: Request) -> Result<Response> {
    let text: String = cage("worker").module("work").call("handle", (request.target(),))?;
    Ok(Response::html(text))
}
