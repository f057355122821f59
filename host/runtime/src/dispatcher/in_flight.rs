//! Counts a request or a call from its beginning to its end, whichever way it ends: an answer, an error, a panic, or a caller
//! that left, so that its future was dropped.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Dispatcher;
use crate::module::slot::Slot;
use wasmcage_core::call::CallAction;
use wasmcage_core::readings::{Outcome, Readings};
use wasmcage_core::request::RequestContext;
use wasmcage_core::telemetry::Level;
use wasmcage_protocol::Endpoint;

/// The readings count it as in flight until this is dropped; the outcome is `Abandoned` unless `finish` was called.
pub(super) struct InFlight<'a> {
    /// The interface that it came through, if any.
    endpoint: Option<&'a Endpoint>,
    /// The module that it is for, unless that is counted by another guard.
    slot: Option<&'a Slot>,
    arrived: Instant,
    /// When work on it began; none while it waits for a place.
    begun: Option<Instant>,
    outcome: Outcome,
    event: CompletionEvent<'a>,
}

/// What the access log says at the end.
enum CompletionEvent<'a> {
    None,
    /// Logged or not as the request's level says at its end: its module may set that.
    Request(&'a Dispatcher, &'a RequestContext),
    /// A call from another cage, or of a retried call.
    Call(Box<(Arc<RequestContext>, CallAction)>),
}

impl<'a> InFlight<'a> {
    /// A request that came through an interface, for the module that serves it.
    pub(super) fn request(
        dispatcher: &'a Dispatcher,
        endpoint: &'a Endpoint,
        slot: &'a Slot,
        context: &'a RequestContext,
    ) -> Self {
        let event = CompletionEvent::Request(dispatcher, context);
        Self::begin(Some(endpoint), Some(slot), context.started, None, event)
    }

    /// A call that came through an interface. The module that it is for is counted by `InFlight::module`.
    pub(super) fn call(
        dispatcher: &Dispatcher,
        endpoint: &'a Endpoint,
        context: &Arc<RequestContext>,
        action: impl FnOnce() -> CallAction,
    ) -> Self {
        let event = match dispatcher.logs_completion(context) {
            true => CompletionEvent::Call(Box::new((context.clone(), action()))),
            false => CompletionEvent::None,
        };
        let now = Instant::now();
        Self::begin(Some(endpoint), None, now, Some(now), event)
    }

    /// A call of a module, wherever it comes from.
    pub(super) fn module(slot: &'a Slot) -> Self {
        Self::begin(None, Some(slot), Instant::now(), None, CompletionEvent::None)
    }

    fn begin(
        endpoint: Option<&'a Endpoint>,
        slot: Option<&'a Slot>,
        arrived: Instant,
        begun: Option<Instant>,
        event: CompletionEvent<'a>,
    ) -> Self {
        let this = Self { endpoint, slot, arrived, begun, outcome: Outcome::Abandoned, event };
        this.readings().for_each(|readings| readings.begin());
        this
    }

    fn readings(&self) -> impl Iterator<Item = &'a Readings> + use<'a> {
        let endpoint = self.endpoint.map(|endpoint| &endpoint.readings);
        endpoint.into_iter().chain(self.slot.map(|slot| &slot.readings))
    }

    /// It waits no more.
    pub(super) fn work_begins(&mut self) {
        self.begun = Some(Instant::now());
    }

    pub(super) fn finish(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let begun = self.begun.unwrap_or(now);
        let (pending, processing) = (begun - self.arrived, now - begun);
        self.readings().for_each(|readings| readings.end(self.outcome, pending, processing));
        if let Some(endpoint) = self.endpoint {
            self.event.log(endpoint, self.outcome, pending, processing);
        }
    }
}

impl CompletionEvent<'_> {
    fn log(&self, endpoint: &Endpoint, outcome: Outcome, pending: Duration, processing: Duration) {
        let Endpoint { cage, interface, .. } = endpoint;
        let (outcome, pending_us) = (outcome.name(), pending.as_micros() as u64);
        let elapsed_us = processing.as_micros() as u64;
        match self {
            Self::None => {}
            Self::Request(dispatcher, context) if !dispatcher.logs_completion(context) => {}
            Self::Request(_, context) => tracing::debug!(
                target: "access",
                %cage,
                %interface,
                module = %endpoint.module,
                outcome,
                pending_us,
                elapsed_us,
                request = %context.tail(),
                "request completed"
            ),
            Self::Call(call) => {
                let (context, action) = &**call;
                let (module, function) = match action {
                    CallAction::Run { module, function } => (Some(&**module), Some(&**function)),
                    CallAction::AcceptRetried => (None, None),
                };
                tracing::debug!(
                    target: "access",
                    %cage,
                    %interface,
                    module,
                    function,
                    caller = context.callers.last().map(|caller| &**caller),
                    outcome,
                    elapsed_us,
                    request = %context.tail(),
                    "call completed"
                );
            }
        }
    }
}

impl Dispatcher {
    fn logs_completion(&self, context: &RequestContext) -> bool {
        context.level().unwrap_or_else(|| self.0.level.get()) >= Level::Debug
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_whose_caller_left_is_counted_as_abandoned() {
        let slot = Slot::new("work".into());
        let mut in_flight = InFlight::module(&slot);
        in_flight.work_begins();
        assert_eq!(slot.readings.snapshot().in_work, 1);
        drop(in_flight);
        let readings = slot.readings.snapshot();
        assert_eq!((readings.in_work, readings.outcomes.get("abandoned")), (0, Some(&1)), "{readings:?}");
    }
}
