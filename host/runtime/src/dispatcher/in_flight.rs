//! Counts a request or a call as in flight from its beginning to its end: an answer, an error, a panic, or the drop of its
//! future because the caller has gone.

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

/// Counts a request or a call as in flight until this is dropped. The outcome is `Abandoned` unless `finish` was called.
pub(super) struct InFlight<'a> {
    /// The interface that it came through, if any.
    endpoint: Option<&'a Endpoint>,
    /// The module that it is for, unless that is counted by another guard.
    slot: Option<&'a Slot>,
    arrived: Instant,
    /// The time at which work on it began. None while it waits for a permit.
    begun: Option<Instant>,
    outcome: Outcome,
    event: CompletionEvent<'a>,
}

/// The event that is written to the access log at the end.
enum CompletionEvent<'a> {
    None,
    /// A request. Its log level is read at its end, since its module may set it.
    Request(&'a Dispatcher, &'a RequestContext),
    /// A call that came through an interface, or an attempt at a retried call.
    Call(Box<(Arc<RequestContext>, CallAction)>),
}

impl<'a> InFlight<'a> {
    /// Begins to count a request that came through an interface, for the interface and for the module that serves it.
    pub(super) fn request(
        dispatcher: &'a Dispatcher,
        endpoint: &'a Endpoint,
        slot: &'a Slot,
        context: &'a RequestContext,
    ) -> Self {
        let event = CompletionEvent::Request(dispatcher, context);
        Self::begin(Some(endpoint), Some(slot), context.started, None, event)
    }

    /// Begins to count a call that came through an interface. `InFlight::module` counts it for its module.
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

    /// Begins to count a call of a module, from any caller.
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

    /// Records that the wait for a permit is over.
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
