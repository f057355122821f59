//! Passes requests on to the server of the resource `api`, and its answers back.

use wasmcage_guest::http::http;
use wasmcage_guest::{Request, Response, Result, handler};

#[handler]
fn handle(request: Request) -> Result<Response> {
    let sent = http("api").request(&request.action, &request.target).body(request.body).send();
    Ok(match sent {
        Ok(answer) => Response::bytes(answer.body).status(answer.status),
        Err(error) => Response::text(format!("{}: {}", error.code, error.text)).status(502),
    })
}
