//! `wasi:http/handler` as an import: a request that a module hands on goes to the module that `cage.toml` binds the import
//! to. Called by wasmtime; linked by `module/binding.rs`.

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

/// # Errors
/// wasmtime's, when the import is defined already.
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

/// # Errors
/// What ends the guest: a handle that is none.
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
        // What the guest asked of connections has no meaning here.
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
            // The code has little to say, and its text must not grow from guest to guest of a chain.
            home.log.line(Level::Warn, &format!("request handed on to {target} failed: {error}"), Some(&context));
            Ok(Err(code(&error)))
        }
    }
}

/// What WASI calls it.
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
