//! Implements `wasmcage:cage/call`: a guest's call of another module goes through the dispatcher, with the rest of the time
//! until the request's deadline.

use std::sync::Arc;
use std::time::Duration;

use super::GuestState;
use super::bindings::call::{
    CallError, CopyResult, Host, Options, Payload as WitPayload, RetriedCall as WitRetriedCall,
};
use crate::dispatcher::{CallOptions, Dispatcher};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{CallTarget, Payload, RequestContext, RetriedCall, RetriedOptions};

/// The greatest length of the name of a cage, a module or a function.
const NAME_BYTES_MAX: usize = 1024;

impl Host for GuestState {
    async fn call(
        &mut self,
        cage: Option<String>,
        module: String,
        function: String,
        arguments: WitPayload,
        options: Options,
    ) -> Result<WitPayload, CallError> {
        let target = call_target(cage, module, function)?;
        let (dispatcher, request) = self.calling()?;
        let result = dispatcher.call_from(&self.home, &request, target, arguments.into(), options.into()).await;
        result.and_then(WitPayload::try_from).map_err(CallError::from)
    }

    async fn call_all(
        &mut self,
        cage: Option<String>,
        module: String,
        function: String,
        arguments: WitPayload,
        options: Options,
    ) -> Result<Vec<CopyResult>, CallError> {
        let target = call_target(cage, module, function)?;
        let (dispatcher, request) = self.calling()?;
        let results = dispatcher.call_all_from(&self.home, &request, target, arguments.into(), options.into()).await?;
        let results = results.into_iter().map(|(copy, result)| {
            let result = result.and_then(WitPayload::try_from).map_err(CallError::from);
            CopyResult { copy, result }
        });
        Ok(results.collect())
    }

    async fn retried(&mut self, call: WitRetriedCall) -> Result<String, CallError> {
        let (dispatcher, request) = self.calling()?;
        let call = dispatcher.new_retried_call(&self.home, &request, call.into())?;
        Ok(dispatcher.accept_retried(call, self.deadline()).await?)
    }
}

/// Returns the target of a call.
///
/// # Errors
/// `BadRequest` if a name is longer than `NAME_BYTES_MAX`: names are compared with all known ones, and written to errors and
/// to the log.
pub(super) fn call_target(cage: Option<String>, module: String, function: String) -> Result<CallTarget, DispatchError> {
    let longest = cage.iter().chain([&module, &function]).map(String::len).max().unwrap_or(0);
    if longest > NAME_BYTES_MAX {
        let text = format!("a name of {longest} bytes, nothing is called by more than {NAME_BYTES_MAX}");
        return Err(DispatchError::BadRequest(text));
    }
    Ok(CallTarget { cage, module, function })
}

impl From<WitRetriedCall> for RetriedCall {
    fn from(call: WitRetriedCall) -> Self {
        let WitRetriedCall { cage, module, function, arguments, options } = call;
        let milliseconds = |value: Option<u64>| value.map(Duration::from_millis);
        Self {
            target: CallTarget { cage, module, function },
            arguments: arguments.into(),
            options: RetriedOptions {
                queue: options.queue,
                id: options.id,
                expires: milliseconds(options.expires_ms),
                not_before: milliseconds(options.not_before_ms),
                attempts_max: options.max_attempts,
                priority: options.priority.unwrap_or(0),
            },
        }
    }
}

impl GuestState {
    /// Returns the dispatcher that makes a call, and the request for which it is made.
    ///
    /// # Errors
    /// `NotPermitted` while the module is being loaded, and `Overloaded` when the cage has stopped.
    pub(super) fn calling(&self) -> Result<(Dispatcher, Arc<RequestContext>), CallError> {
        let request = self.request.clone().ok_or_else(|| {
            CallError::NotPermitted("there is no request to call for while the module is being loaded".into())
        })?;
        let dispatcher = self.home.dispatcher.upgrade().ok_or_else(|| CallError::Overloaded("draining".into()))?;
        Ok((dispatcher, request))
    }
}

impl From<Options> for CallOptions {
    fn from(options: Options) -> Self {
        let timeout = options.timeout_ms.map(|timeout| Duration::from_millis(timeout.into()));
        Self { timeout, idempotent: options.idempotent, bound: false }
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

impl TryFrom<Payload> for WitPayload {
    type Error = DispatchError;

    fn try_from(payload: Payload) -> Result<Self, DispatchError> {
        match payload {
            Payload::Json(json) => Ok(Self::Json(json)),
            Payload::Bytes(bytes) => Ok(Self::Bytes(bytes.into())),
            Payload::Values(_) => {
                Err(DispatchError::BadRequest("component values came where JSON or bytes are taken".into()))
            }
        }
    }
}

/// Converts the error of a call to the one that the calling guest gets.
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
            DispatchError::Unreachable(text) => Self::Unreachable(text),
            DispatchError::Draining => Self::Overloaded("draining".into()),
        }
    }
}
