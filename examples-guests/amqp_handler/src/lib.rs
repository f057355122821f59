//! A handler of messages that does what their bodies say, for each way in which a message can end.

use wasmcage_guest::{Error, Request, Response, Result, handler, info};

#[handler]
fn handle(request: Request) -> Result<Response> {
    let text = request.text().unwrap_or("bytes");
    match text {
        "misread" => return Err(Error::bad_arguments("a secret misfit")),
        "refuse" => return Err(Error::refused("a secret reason")),
        "fail" => {
            info!("failing {}", request.header("message-id").unwrap_or("one"));
            return Err(Error::failed("a secret cause"));
        }
        "panic" => panic!("a secret panic"),
        "error" => return Ok(Response::text("no such thing").status(404)),
        "exception" => return Ok(Response::text("broken").status(500).header("exception", "ValueError")),
        "slow" => std::thread::sleep(std::time::Duration::from_millis(700)),
        "headers" => {
            let lines: Vec<String> = request.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            return Ok(Response::text(format!("{} {}\n{}", request.action, request.target, lines.join("\n"))));
        }
        _ => {}
    }
    if request.header("reply-to").is_none() {
        info!("{} {}: {text}", request.action, request.target);
    }
    Ok(Response::bytes(request.body))
}
