//! Tells what a handler sees and can do; the request's path chooses. Tests and curious people use it:
//!
//! | path | answer |
//! |---|---|
//! | `/status/418` | that status |
//! | `/body` | the request's body, of the request's type |
//! | `/headers` | the request's headers as JSON |
//! | `/context` | what the context tells, as JSON; `?describe=` and `?level=` set what it says |
//! | `/log?level=info&text=` | empty, after a line in the log |
//! | `/print?to=stderr&text=` | empty, after a line on stdout or stderr |
//! | `/config?key=` | one setting, or all, as JSON |
//! | `/call?cage=&module=&function=&args=[..]&kwargs={..}&timeout_ms=&idempotent&level=` | the result; errors by `?` |
//! | `/try_call?..` | the same, errors as JSON |
//! | `/call_all?..` | the same of every copy of the cage, as JSON |
//! | `/misread?text=`, `/refuse?text=`, `/fail?text=` | that error |
//! | `/json` | the request's body, which has to be a list of numbers |
//! | `/env`, `/file?path=` | what the module is granted of these; PUT writes the file |
//! | anything else | the request as JSON |

mod calls;

use std::str::FromStr;

use serde_json::{Value, json};
use wasmcage_guest::log::Level;
use wasmcage_guest::{Error, Request, Response, Result, config, context, handler, log};

#[handler]
fn handle(request: Request) -> Result<Response> {
    match request.path().trim_start_matches('/').split('/').collect::<Vec<_>>()[..] {
        ["status", status] => Ok(Response::text(format!("status {status}")).status(parse("status", status)?)),
        ["body"] => Ok(body(request)),
        ["headers"] => Response::json(&request.headers),
        ["context"] => tell_context(&request),
        ["log"] => {
            let level = request.parameter("level").map_or(Ok(Level::Info), |level| level.parse())?;
            log!(level, "{}", text(&request));
            Ok(().into())
        }
        ["print"] => {
            match request.parameter("to").as_deref() {
                Some("stderr") => eprintln!("{}", text(&request)),
                _ => println!("{}", text(&request)),
            }
            Ok(().into())
        }
        ["config"] => match request.parameter("key") {
            Some(key) => Response::json(&config::value::<Value>(&key)?),
            None => Response::json(&config::all::<Value>()?),
        },
        ["call"] => calls::call(&request),
        ["try_call"] => calls::try_call(&request),
        ["call_all"] => calls::call_all(&request),
        ["misread"] => Err(Error::bad_arguments(text(&request))),
        ["json"] => Response::json(&request.json::<Vec<f64>>()?),
        ["refuse"] => Err(Error::refused(text(&request))),
        ["fail"] => Err(Error::failed(text(&request))),
        ["env"] => Response::json(&std::env::vars().collect::<std::collections::BTreeMap<_, _>>()),
        ["file"] if request.method() == "PUT" => {
            std::fs::write(required(&request, "path")?, &request.body)?;
            Ok(().into())
        }
        ["file"] => Ok(Response::bytes(std::fs::read(required(&request, "path")?)?)),
        _ => Response::json(&json!({
            "id": request.id,
            "interface": request.interface_name,
            "protocol": request.protocol,
            "method": request.method(),
            "target": request.target(),
            "path": request.path(),
            "parameters": request.parameters().collect::<Vec<_>>(),
            "headers": request.headers,
            "body": String::from_utf8_lossy(&request.body),
        })),
    }
}

fn body(request: Request) -> Response {
    let content_type = request.header("content-type").unwrap_or("application/octet-stream").to_owned();
    Response::bytes(request.body).header("content-type", content_type)
}

fn tell_context(request: &Request) -> Result<Response> {
    if let Some(text) = request.parameter("describe") {
        context::describe(&text);
    }
    if let Some(level) = request.parameter("level") {
        context::set_log_level(level.parse()?);
    }
    Response::json(&json!({
        "request_id": context::request_id(),
        "deadline_left_ms": context::deadline_left().as_millis() as u64,
        "cage": context::cage(),
        "module": context::module(),
        "facts": context::facts().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "log_level": context::log_level().name(),
    }))
}

fn text(request: &Request) -> String {
    request.parameter("text").unwrap_or("no text".into())
}

fn required(request: &Request, name: &str) -> Result<String> {
    request.parameter(name).ok_or_else(|| Error::bad_arguments(format_args!("the parameter {name} is missing")))
}

fn parse<T: FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| Error::bad_arguments(format_args!("the parameter {name} cannot be {value}")))
}
