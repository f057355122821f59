//! `wasmcage:cage/call`: a guest's call of another module goes back through the dispatcher, with what is left of the
//! deadline.

use std::time::Duration;

use super::GuestState;
use super::bindings::call::{CallError, Host, Options, Payload as WitPayload};
use crate::dispatcher::{CallOptions, DispatchError};
use crate::request::{CallTarget, Payload};

impl Host for GuestState {
    async fn call(
        &mut self,
        cage: Option<String>,
        module: String,
        function: String,
        arguments: WitPayload,
        options: Options,
    ) -> Result<WitPayload, CallError> {
        let request = self.request.clone().ok_or_else(|| {
            CallError::NotPermitted("there is no request to call for while the module is being loaded".into())
        })?;
        let dispatcher = self.home.dispatcher.upgrade().ok_or_else(|| CallError::Overloaded("draining".into()))?;
        let timeout = options.timeout_ms.map(|timeout| Duration::from_millis(timeout.into()));
        let target = CallTarget { cage, module, function };
        let options = CallOptions { timeout, idempotent: options.idempotent };
        let result = dispatcher.call_from(&self.home, &request, target, arguments.into(), options).await;
        result.map(WitPayload::from).map_err(CallError::from)
    }
}

impl From<WitPayload> for Payload {
    fn from(payload: WitPayload) -> Self {
        match payload {
            WitPayload::Json(json) => Self::Json(json),
            WitPayload::Bytes(bytes) => Self::Bytes(bytes.into()),
        }
    }
}

impl From<Payload> for WitPayload {
    fn from(payload: Payload) -> Self {
        match payload {
            Payload::Json(json) => Self::Json(json),
            Payload::Bytes(bytes) => Self::Bytes(bytes.into()),
        }
    }
}

/// The error table's column for calling guests.
impl From<DispatchError> for CallError {
    fn from(error: DispatchError) -> Self {
        match error {
            DispatchError::BadRequest(text) => Self::BadArguments(text),
            DispatchError::NoSuchCage(text) => Self::NoSuchCage(text),
            DispatchError::NoSuchModule(text) => Self::NoSuchModule(text),
            DispatchError::NoSuchFunction(text) => Self::NoSuchFunction(text),
            DispatchError::NotPermitted(text) => Self::NotPermitted(text),
            DispatchError::Refused(text) => Self::Refused(text),
            DispatchError::Failed(text) | DispatchError::Host(text) => Self::Failed(text),
            DispatchError::Trap(text) => Self::Failed(format!("trapped: {text}")),
            DispatchError::DeadlineExceeded(text) => Self::TimedOut(text),
            DispatchError::Lost(text) => Self::Lost(text),
            DispatchError::Overloaded(text) => Self::Overloaded(text),
            DispatchError::Draining => Self::Overloaded("draining".into()),
        }
    }
}
