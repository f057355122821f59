//! A module with two exports that an http interface can use: `export = ".."` in `cage.toml` chooses. Each says which one
//! it is.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasmcage_guest::{Request, Response, handler};

#[handler]
fn handle(_request: Request) -> Response {
    Response::text("handler")
}

struct Standard;
wasip2::http::proxy::export!(Standard);

impl Guest for Standard {
    fn handle(_request: IncomingRequest, answer: ResponseOutparam) {
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(answer, Ok(response));
        let output = body.write().expect("the body is written once");
        // An error is the client's leaving: there is nobody to tell.
        let _ = output.blocking_write_and_flush(b"wasi:http");
        drop(output);
        let _ = OutgoingBody::finish(body, None);
    }
}
