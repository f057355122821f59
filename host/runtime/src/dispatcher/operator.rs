//! Makes the calls of an operator at the command line, which belong to no request. They arrive at a cage's control socket,
//! which accepts only the cage's own user, and that cage calls itself or another one. Where no cage runs, the command line
//! makes the call itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Dispatcher;
use wasmcage_core::call::{COMMAND_LINE, Call, CallAction};
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings::Outcome;
use wasmcage_core::request::{Payload, RequestContext};

/// A call of an operator.
#[derive(Clone, Debug)]
pub struct OperatorCall {
    /// The cage to call. If it is not the cage that makes the call, that cage calls it with its own identity and permissions.
    pub cage: String,
    pub module: String,
    pub function: String,
    pub arguments: Payload,
    pub timeout: Duration,
    /// Is true if the call may run twice without harm.
    pub idempotent: bool,
}

impl OperatorCall {
    /// Makes a call whose caller is the command line: one of the command line itself, or of a cage that calls itself.
    pub fn by_command_line(self) -> Call {
        self.by(COMMAND_LINE, "")
    }

    fn by(self, cage: &str, module: &str) -> Call {
        let context = RequestContext::new(COMMAND_LINE.into(), "control", self.timeout, Arc::default());
        let context = Arc::new(context.for_call(cage, module, None).without_permits());
        let Self { cage, module, function, arguments, timeout: _, idempotent } = self;
        Call { context, cage, action: CallAction::Run { module, function }, arguments, idempotent }
    }
}

impl Dispatcher {
    /// Makes a call for an operator, and logs it.
    ///
    /// # Errors
    /// See the variants of `DispatchError`.
    pub async fn call_for_operator(&self, call: OperatorCall) -> Result<Payload, DispatchError> {
        let call = self.operators(call);
        let log = OperatorLog::begin(&call);
        let result = self.call_cage(call).await;
        log.end(self, Outcome::of(&result));
        result
    }

    /// Makes a call to every known copy of the cage at the same time. Returns the result of each with the copy's name.
    ///
    /// # Errors
    /// No copy was called, for the reason that the error tells.
    pub async fn call_all_for_operator(
        &self,
        call: OperatorCall,
    ) -> Result<Vec<(String, Result<Payload, DispatchError>)>, DispatchError> {
        let call = self.operators(call);
        let log = OperatorLog::begin(&call);
        let results = self.call_copies(call).await;
        let failed = results.iter().flatten().map(|(_, result)| Outcome::of(result)).find(|one| *one != Outcome::Ok);
        log.end(self, failed.unwrap_or_else(|| Outcome::of(&results)));
        results
    }

    pub(super) fn operators(&self, mut call: OperatorCall) -> Call {
        let config = self.0.config.load();
        call.idempotent |= config.calls.is_idempotent(&call.cage, &call.module, &call.function);
        match *call.cage == *self.0.cage {
            true => call.by_command_line(),
            false => call.by(&self.0.cage, COMMAND_LINE),
        }
    }
}

/// Logs an operator's call when it has ended.
struct OperatorLog {
    context: Arc<RequestContext>,
    callee: String,
    action: CallAction,
    begun: Instant,
}

impl OperatorLog {
    fn begin(call: &Call) -> Self {
        let (callee, action) = (call.cage.clone(), call.action.clone());
        Self { context: call.context.clone(), callee, action, begun: Instant::now() }
    }

    fn end(self, dispatcher: &Dispatcher, outcome: Outcome) {
        tracing::info!(
            cage = %dispatcher.0.cage,
            callee = %self.callee,
            function = %self.action,
            outcome = outcome.name(),
            elapsed_ms = self.begun.elapsed().as_millis() as u64,
            request = %self.context.tail(),
            "call from the command line completed"
        );
    }
}
