//! Implements the import `wasi:http/handler`: a request that a module forwards goes to the module that `cage.toml` binds the
//! import to. `module/binding.rs` links it, and wasmtime calls it.

use http_body_util::BodyExt as _;
use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p3::{Request, Response};
use wasmtime_wasi_http::{Error, WasiHttpView as _};

use super::GuestState;
use wasmcage_config::BindingTarget;
use wasmcage_core::body::StreamBody;
use wasmcage_core::error::DispatchError;
use wasmcage_core::telemetry::Level;

/// Adds the import to a module's linker, so that it forwards requests to `target`.
///
/// # Errors
/// wasmtime returns an error when the import is defined already.
pub fn link(linker: &mut Linker<GuestState>, import: &str, target: &BindingTarget) -> wasmtime::Result<()> {
    let target = target.clone();
    linker.instance(import)?.func_wrap_concurrent(
        "handle",
        move |accessor: &Accessor<GuestState>, (request,): (Resource<Request>,)| {
            let target = target.clone();
            Box::pin(async move { Ok((handle(accessor, &target, request).await?,)) })
        },
    )
}

/// Forwards a request and returns its response.
///
/// # Errors
/// The handle of the request is invalid, which ends the guest.
async fn handle(
    accessor: &Accessor<GuestState>,
    target: &BindingTarget,
    request: Resource<Request>,
) -> wasmtime::Result<Result<Resource<Response>, ErrorCode>> {
    let taken = accessor.with(|mut access| {
        let state = access.get();
        let (home, context) = (state.home.clone(), state.request.clone());
        let request = state.table.delete(request)?;
        wasmtime::error::Ok((home, context, request.into_http(&mut access, std::future::ready(Ok(())))))
    })?;
    let (home, context, request) = taken;
    let request = match request {
        // The guest's options concern connections, and there is none here.
        Ok((request, _options)) => request,
        Err(error) => return error.downcast().map(Err),
    };
    let (Some(context), Some(dispatcher)) = (context, home.dispatcher.upgrade()) else {
        return Ok(Err(ErrorCode::HttpRequestDenied));
    };
    let request = request.map(|body| -> StreamBody { body.map_err(Into::into).boxed_unsync() });
    match dispatcher.forward_from(&home, &context, target, request).await {
        Ok(response) => {
            let broken =
                |error: Box<dyn std::error::Error + Send + Sync>| Error::InternalError(Some(error.to_string()));
            let response = response.map(|body| body.map_err(broken).boxed_unsync());
            accessor.with(|mut access| {
                let http = access.get().http();
                let (response, _sent) = Response::from_http(http.hooks, response);
                Ok(Ok(http.table.push(response)?))
            })
        }
        Err(error) => {
            // The guest gets a code only: a text would become longer with each guest of a chain. The log gets the whole error.
            home.log.line(Level::Warn, &format!("request handed on to {target} failed: {error}"), Some(&context));
            Ok(Err(code(&error)))
        }
    }
}

/// Converts the error of a call to the error code of WASI.
fn code(error: &DispatchError) -> ErrorCode {
    match error {
        DispatchError::NoSuchCage(_) | DispatchError::NoSuchModule(_) | DispatchError::NoSuchFunction(_) => {
            ErrorCode::DestinationNotFound
        }
        DispatchError::Unreachable(_) => ErrorCode::DestinationUnavailable,
        DispatchError::DeadlineExceeded(_) => ErrorCode::HttpResponseTimeout,
        DispatchError::Overloaded(_) | DispatchError::Draining => ErrorCode::ConnectionLimitReached,
        DispatchError::NotPermitted(_) => ErrorCode::HttpRequestDenied,
        DispatchError::BadRequest(_)
        | DispatchError::Refused(_)
        | DispatchError::Failed(_)
        | DispatchError::Lost(_)
        | DispatchError::Trap(_)
        | DispatchError::Host(_) => {
            ErrorCode::InternalError(Some(format!("{}: {}", error.code(), error.public_text())))
        }
    }
}
