//! Calls the module that `cage.toml` binds an import to. The call goes through the dispatcher like one of
//! `wasmcage:cage/call`, with component values in place of JSON. The host functions of `module/binding.rs` and
//! `module/carrier.rs` call this.

use std::sync::Arc;

use super::{GuestState, Home};
use crate::dispatcher::CallOptions;
use crate::module::binding::BoundFunction;
use crate::module::value::{self, Item, Side};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{CallTarget, Payload, RequestContext};
use wasmcage_core::telemetry::error_chain;

/// The caller of a function, which is read from the guest's store before the guest is suspended.
pub struct Caller {
    home: Arc<Home>,
    /// None while the module is being loaded.
    request: Option<Arc<RequestContext>>,
}

impl Caller {
    pub fn of(state: &GuestState) -> Self {
        Self { home: state.home.clone(), request: state.request.clone() }
    }
}

/// Calls the function that an imported one is bound to. If the call fails, the error is returned as the function's result,
/// provided that its type can hold an error text.
///
/// # Errors
/// The call failed, and the result's type cannot hold the error. This ends the guest.
pub async fn call(caller: Caller, function: &BoundFunction, arguments: Vec<Item>) -> wasmtime::Result<Vec<Item>> {
    match try_call(caller, function, arguments).await {
        Ok(results) => Ok(results),
        Err(error) => match function.signature.failure(error.code(), &error.to_string()) {
            Some(result) => Ok(vec![Item::Val(result)]),
            None => Err(wasmtime::Error::msg(format!(
                "calling {} of {}, which cannot tell of a failed call by its result: {error}",
                function.name, function.target
            ))),
        },
    }
}

async fn try_call(caller: Caller, function: &BoundFunction, arguments: Vec<Item>) -> Result<Vec<Item>, DispatchError> {
    let Caller { home, request } = caller;
    let request = request.ok_or_else(|| {
        DispatchError::NotPermitted("there is no request to call for while the module is being loaded".into())
    })?;
    let dispatcher = home.dispatcher.upgrade().ok_or(DispatchError::Draining)?;
    let signature = &function.signature;
    let arguments = value::carry(signature, Side::Arguments, arguments)
        .map_err(|error| DispatchError::BadRequest(format!("the arguments have {error}")))?;
    let target = CallTarget {
        cage: function.target.cage.clone(),
        module: function.target.module.clone(),
        function: function.name.clone(),
    };
    let options = CallOptions { bound: true, ..CallOptions::default() };
    let answer = dispatcher.call_from(&home, &request, target, Payload::Values(arguments), options).await?;
    let Payload::Values(results) = answer else {
        return Err(DispatchError::Failed("the answer is not of component values".into()));
    };
    let results = value::items(results, signature, Side::Result, function.carrier.is_some());
    results.map_err(|error| DispatchError::Failed(format!("the result cannot be taken: {}", error_chain(&error))))
}
