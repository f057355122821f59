//! Calls that an operator makes from the command line, on behalf of no request. Brought by a cage's control socket, whose
//! clients are the cage's own user only; made by that cage, to itself or to another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Call, CallOptions, DispatchError, Dispatcher};
use crate::readings::Outcome;
use crate::request::{Payload, RequestContext};

/// The caller of an operator's call to the cage that was asked to make it. No cage can be called so, and every cage
/// permits it what it permits itself.
pub(super) const COMMAND_LINE: &str = "(command line)";

/// What to call, and how.
#[derive(Clone, Debug)]
pub struct OperatorCall {
    /// Another cage than the one that is asked is called as that one, with its identity and permissions.
    pub cage: String,
    pub module: String,
    pub function: String,
    pub arguments: Payload,
    pub timeout: Duration,
    /// See `CallOptions`.
    pub idempotent: bool,
}

impl Dispatcher {
    /// # Errors
    /// See the kinds.
    pub async fn call_for_operator(&self, call: OperatorCall) -> Result<Payload, DispatchError> {
        let call = self.operators(call);
        let told = Told::begin(&call);
        let result = self.call_cage(call).await;
        told.end(self, Outcome::of(&result));
        result
    }

    /// The same call to every copy of the cage that is known now, at once; each with its copy's name.
    ///
    /// # Errors
    /// Why none was called.
    pub async fn call_all_for_operator(
        &self,
        call: OperatorCall,
    ) -> Result<Vec<(String, Result<Payload, DispatchError>)>, DispatchError> {
        let call = self.operators(call);
        let told = Told::begin(&call);
        let results = self.call_copies(call).await;
        let failed = results.iter().flatten().map(|(_, result)| Outcome::of(result)).find(|one| *one != Outcome::Ok);
        told.end(self, failed.unwrap_or_else(|| Outcome::of(&results)));
        results
    }

    fn operators(&self, call: OperatorCall) -> Call {
        let OperatorCall { cage, module, function, arguments, timeout, idempotent } = call;
        let context = RequestContext::new(COMMAND_LINE.into(), "control", timeout, Arc::default());
        let context = match *cage == *self.0.cage {
            true => context.for_call(COMMAND_LINE, "", None),
            false => context.for_call(&self.0.cage, COMMAND_LINE, None),
        };
        let options = CallOptions { idempotent, ..CallOptions::default() };
        self.outgoing(Arc::new(context), cage, module, function, arguments, options)
    }
}

/// What the log says of an operator's call.
struct Told {
    context: Arc<RequestContext>,
    callee: String,
    module: String,
    function: String,
    begun: Instant,
}

impl Told {
    fn begin(call: &Call) -> Self {
        let (callee, module, function) = (call.cage.clone(), call.module.clone(), call.function.clone());
        Self { context: call.context.clone(), callee, module, function, begun: Instant::now() }
    }

    fn end(self, dispatcher: &Dispatcher, outcome: Outcome) {
        tracing::info!(
            cage = %dispatcher.0.cage,
            callee = %self.callee,
            module = %self.module,
            function = %self.function,
            outcome = outcome.name(),
            elapsed_ms = self.begun.elapsed().as_millis() as u64,
            request = %self.context.tail(),
            "call from the command line completed"
        );
    }
}
