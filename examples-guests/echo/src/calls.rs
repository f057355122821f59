//! Calls that are described by the request's query.

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use wasmcage_guest::{CallError, Payload, Request, Response, Result, cage, context, module};

use crate::{parse, required};

pub fn call(request: &Request) -> Result<Response> {
    Ok(answer(run(request)??))
}

pub fn try_call(request: &Request) -> Result<Response> {
    match run(request)? {
        Ok(result) => Ok(answer(result)),
        Err(error) => Response::json(&json!({ "error": format!("{error:?}"), "text": error.to_string() })),
    }
}

/// The outer error is the request's, the inner one the call's.
fn run(request: &Request) -> Result<Result<Payload, CallError>> {
    let (cage_name, module_name) = (request.parameter("cage"), required(request, "module")?);
    let function = required(request, "function")?;
    let args: Vec<Box<RawValue>> = parameter_json(request, "args")?.unwrap_or_default();
    let kwargs: Value = parameter_json(request, "kwargs")?.unwrap_or(json!({}));

    if let Some(level) = request.parameter("level") {
        context::set_log_level(level.parse()?);
    }
    let mut callee = match &cage_name {
        Some(name) => cage(name).module(&module_name),
        None => module(&module_name),
    };
    if let Some(timeout_ms) = request.parameter("timeout_ms") {
        callee = callee.timeout(Duration::from_millis(parse("timeout_ms", &timeout_ms)?));
    }
    if request.parameter("idempotent").is_some() {
        callee = callee.idempotent();
    }
    // A body goes as bytes, in place of arguments.
    let arguments = match request.body.is_empty() {
        true => Payload::Json(format!("{{\"args\":{},\"kwargs\":{kwargs}}}", serde_json::to_string(&args)?)),
        false => Payload::Bytes(request.body.clone()),
    };
    Ok(callee.call_raw(&function, &arguments))
}

fn parameter_json<T: serde::de::DeserializeOwned>(request: &Request, name: &str) -> Result<Option<T>> {
    request
        .parameter(name)
        .map(|value| serde_json::from_str(&value))
        .transpose()
        .map_err(|error| wasmcage_guest::Error::refused(format_args!("the parameter {name}: {error}")))
}

fn answer(result: Payload) -> Response {
    match result {
        Payload::Json(json) => Response::text(json).header("content-type", "application/json"),
        Payload::Bytes(bytes) => Response::bytes(bytes),
    }
}
