//! Calls that are described by the request's query.

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use wasmcage_guest::{CallError, CopyResult, Module, Payload, Request, Response, Result, cage, context, module};

use crate::{parse, required};

pub fn call(request: &Request) -> Result<Response> {
    Ok(answer(run(request)??))
}

pub fn try_call(request: &Request) -> Result<Response> {
    match run(request)? {
        Ok(result) => Ok(answer(result)),
        Err(error) => Response::json(&told(&error)),
    }
}

pub fn call_all(request: &Request) -> Result<Response> {
    let all = asked(request, |callee, function, arguments| callee.call_all_raw(function, arguments))?;
    let all = match all {
        Ok(all) => all,
        Err(error) => return Response::json(&told(&error)),
    };
    let copies = all.into_iter().map(|CopyResult { copy, result }| match result {
        Ok(Payload::Json(json)) => Ok(json!({ "copy": copy, "ok": serde_json::from_str::<Value>(&json)? })),
        Ok(Payload::Bytes(bytes)) => Ok(json!({ "copy": copy, "ok": bytes })),
        Err(error) => Ok(json!({ "copy": copy, "error": told(&error) })),
    });
    Response::json(&copies.collect::<Result<Vec<_>>>()?)
}

fn told(error: &CallError) -> Value {
    json!({ "error": format!("{error:?}"), "text": error.to_string(), "may_have_run": error.may_have_run() })
}

/// The outer error is the request's, the inner one the call's.
fn run(request: &Request) -> Result<Result<Payload, CallError>> {
    asked(request, |callee, function, arguments| callee.call_raw(function, arguments))
}

/// Makes the call that the request describes.
fn asked<T>(request: &Request, call: impl FnOnce(Module<'_>, &str, &Payload) -> T) -> Result<T> {
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
    Ok(call(callee, &function, &arguments))
}

fn parameter_json<T: serde::de::DeserializeOwned>(request: &Request, name: &str) -> Result<Option<T>> {
    request
        .parameter(name)
        .map(|value| serde_json::from_str(&value))
        .transpose()
        .map_err(|error| wasmcage_guest::Error::bad_arguments(format_args!("the parameter {name}: {error}")))
}

fn answer(result: Payload) -> Response {
    match result {
        Payload::Json(json) => Response::text(json).header("content-type", "application/json"),
        Payload::Bytes(bytes) => Response::bytes(bytes),
    }
}
