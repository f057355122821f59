//! Counts and logs the end of each operation, also of one whose future is dropped.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Caller, LiveResource, Phase, ResourceError};
use wasmcage_core::readings::Outcome;
use wasmcage_core::telemetry::Level;

/// An operation in progress. Dropping it counts its end and writes the access log.
pub(crate) struct OperationRecord {
    resource: Arc<LiveResource>,
    /// Caller and action for the access log; none when its level is not enabled.
    access: Option<(Caller, String)>,
    begun: Instant,
    /// When it got a connection.
    acquired: Option<Instant>,
    outcome: Outcome,
}

impl OperationRecord {
    pub(super) fn begin(resource: &Arc<LiveResource>, caller: &Caller, action: &str) -> Self {
        resource.readings.begin();
        let level = caller.request.level().unwrap_or_else(|| resource.level.get());
        let access = (level >= Level::Debug).then(|| (caller.clone(), action.to_owned()));
        Self { resource: resource.clone(), access, begun: Instant::now(), acquired: None, outcome: Outcome::Abandoned }
    }

    pub(crate) fn acquired(&mut self) {
        self.acquired = Some(Instant::now());
    }

    /// Sets the outcome. An error gets the resource's name, and is logged if it is the resource's fault.
    pub(crate) fn end<T>(&mut self, caller: &Caller, result: Result<T, ResourceError>) -> Result<T, ResourceError> {
        let result = result.map_err(|error| ResourceError { participant: self.resource.name().to_owned(), ..error });
        self.outcome = outcome(&result);
        if let Err(error) = &result {
            self.warn(caller, error);
        }
        result
    }

    /// Logs an error for operators, unless it is the module's, such as a failed statement.
    fn warn(&self, caller: &Caller, error: &ResourceError) {
        let outside = matches!(error.phase, Phase::Acquire | Phase::Connect | Phase::Commit);
        if !outside && !error.terminal {
            return;
        }
        let resource = &*self.resource;
        resource.failures.log(|suppressed| {
            let (cage, module, request) =
                (&*resource.cage, &*caller.module, tracing::field::display(caller.request.tail()));
            tracing::warn!(cage, module, resource = resource.name(), %error, suppressed, request, "operation failed");
        });
    }
}

fn outcome<T>(result: &Result<T, ResourceError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Ok,
        Err(error) => match &*error.code {
            ResourceError::TIMED_OUT => Outcome::DeadlineExceeded,
            ResourceError::OVERLOADED => Outcome::Overloaded,
            ResourceError::BAD_OPERATION => Outcome::BadRequest,
            ResourceError::DISCONNECTED => Outcome::Lost,
            ResourceError::HOST_ERROR => Outcome::HostError,
            _ => Outcome::Failed,
        },
    }
}

impl Drop for OperationRecord {
    fn drop(&mut self) {
        let now = Instant::now();
        let acquired = self.acquired.unwrap_or(now);
        let (pending, processing) = (acquired - self.begun, now - acquired);
        self.resource.readings.end(self.outcome, pending, processing);
        if let Some((caller, action)) = &self.access {
            tracing::debug!(
                target: "access",
                cage = %self.resource.cage,
                module = %caller.module,
                resource = self.resource.name(),
                action = %action,
                outcome = self.outcome.name(),
                pending_us = pending.as_micros() as u64,
                elapsed_us = processing.as_micros() as u64,
                request = %caller.request.tail(),
                "operation completed"
            );
        }
    }
}
