//! The sending side of Postage's demos: what comes by HTTP goes on as a message or as an rpc. `/once` sends a message and
//! remembers it: both, or nothing.

use wasmcage_guest::amqp::{AmqpError, Producer, producer};
use wasmcage_guest::serde_json::{Value, json};
use wasmcage_guest::{Request, Response, Result, handler, state, transaction};

#[handler]
fn handle(request: Request) -> Result<Response> {
    let parameters = json!({"text": request.parameter("text").unwrap_or_default()});
    let mut echo = producer("out");
    if let Some(key) = request.parameter("key") {
        echo = echo.key(key);
    }
    match request.path() {
        "/command" => echo.command("echo", parameters)?,
        "/once" => once(&echo, parameters)?,
        "/rpc" => {
            return match echo.rpc::<Value>("echo", parameters) {
                Ok(value) => Response::json(&value),
                Err(error @ AmqpError::Refused(_)) => Err(error.into_error()),
                Err(error) => Err(error.into()),
            };
        }
        "/many" => {
            let count: u32 = request.parameter("count").and_then(|count| count.parse().ok()).unwrap_or(1);
            for _ in 0..count {
                echo.publish([b'x'; 200])?;
            }
        }
        _ => return Ok(Response::new(404)),
    }
    Ok(().into())
}

fn once(echo: &Producer, parameters: Value) -> Result<()> {
    let mut memory = state::transaction();
    memory.check("sent", None::<&bool>);
    memory.set("sent", &true);
    let mut both = transaction();
    both.state(memory)?;
    both.operation("out", echo.operation().command("echo", parameters)?);
    both.execute()?;
    Ok(())
}
