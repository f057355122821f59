//! The smallest module: the same text for every request. Benches measure with it.

use wasmcage_guest::{Request, Response, handler};

#[handler]
fn handle(_request: Request) -> Response {
    Response::text("Hello, world !")
}
