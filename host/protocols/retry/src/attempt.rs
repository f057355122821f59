//! Runs one attempt at a call and records its result in the store.

use std::time::{Instant, SystemTime};

use tokio_util::task::task_tracker::TaskTrackerToken;

use super::config::RetryConfig;
use super::interface::{STORE_RETRY_PAUSE, StoreStatus, WRITE_TIMEOUT};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Deadline;
use wasmcage_core::task;
use wasmcage_protocol::InterfaceContext;
use wasmcage_store::{AttemptEnd, CallEntry, FinishOutcome, GivenUpCall, InWorkGuard, StoreError, call_time};

/// How long a call may go on after its deadline, at which guests are stopped.
const DEADLINE_GRACE: std::time::Duration = std::time::Duration::from_secs(1);

/// An attempt whose beginning is recorded in the store.
pub(super) struct CallAttempt {
    pub(super) cx: InterfaceContext,
    pub(super) config: RetryConfig,
    /// Its place among the queue's concurrent calls, which is freed when this is dropped.
    pub(super) _in_work: InWorkGuard,
    /// Makes a drain wait for the attempt from its beginning on.
    pub(super) _in_flight: TaskTrackerToken,
    pub(super) sequence: u64,
    pub(super) entry: CallEntry,
}

impl CallAttempt {
    /// Runs the attempt until its result is recorded, or the drain is forced.
    pub(super) async fn run(self) {
        let drain = self.cx.drain.clone();
        let ended = async {
            // A call whose attempt panics is retried after a pause, like others.
            if let Err(panic) = task::catch_panic_async(self.run_and_record()).await {
                self.cx.tasks.report("an attempt at a retried call", &panic);
                self.record(AttemptEnd::Later { error: panic.to_string(), due_ms: self.next_ms() }).await;
            }
        };
        tokio::select! {
            () = ended => {}
            // The call is made again when the queue is processed next.
            () = drain.forcing() => {}
        }
    }

    async fn run_and_record(&self) {
        let end = match self.message().await {
            Ok(Some(message)) => self.end_of(self.call(message).await),
            // The call was dropped or moved meanwhile.
            Ok(None) => return,
            Err(error) => self.not_run(format!("the store cannot be read: {error}")),
        };
        self.record(end).await;
    }

    /// The call's arguments; none if the call does not exist any more.
    async fn message(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let sequence = self.sequence;
        self.cx.store.read_without_blocking(move |store| store.call_message(sequence)).await
    }

    async fn call(&self, message: Vec<u8>) -> Result<(), DispatchError> {
        let InterfaceContext { dispatch, endpoint, .. } = &self.cx;
        let expires_in = self.entry.expires_ms.map(|at| call_time(at).duration_since(SystemTime::now()));
        let timeout = endpoint.timeout().min(expires_in.map_or(endpoint.timeout(), Result::unwrap_or_default));
        let deadline = Deadline::after(timeout);
        let attempt = dispatch.attempt(&self.entry, message, deadline);
        let ended = tokio::time::timeout_at(deadline.instant() + DEADLINE_GRACE, attempt).await;
        ended.unwrap_or_else(|_| Err(DispatchError::DeadlineExceeded("it did not end at its deadline".into())))
    }

    fn end_of(&self, result: Result<(), DispatchError>) -> AttemptEnd {
        match result {
            Ok(()) => AttemptEnd::Done,
            Err(error) if is_final(&error) => AttemptEnd::Never(error.to_string()),
            // A draining cage has not run the call, and must not use up what may be its only attempt.
            Err(error @ DispatchError::Draining) => self.not_run(error.to_string()),
            Err(error) => AttemptEnd::Later { error: error.to_string(), due_ms: self.next_ms() },
        }
    }

    fn not_run(&self, error: String) -> AttemptEnd {
        AttemptEnd::NotRun { attempt: self.entry.attempts, error, due_ms: self.next_ms() }
    }

    /// When the next attempt is due, in milliseconds since 1970.
    fn next_ms(&self) -> u64 {
        let due = SystemTime::now() + self.config.pause(self.entry.attempts);
        let since = due.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Records the result, and retries until the store accepts it. The call keeps its place meanwhile, so that it is
    /// not run a second time because of the store.
    async fn record(&self, end: AttemptEnd) {
        let (store, queue) = (&self.cx.store, &self.cx.endpoint.interface);
        let mut store_status = StoreStatus::default();
        loop {
            let deadline = Deadline::after(WRITE_TIMEOUT);
            match store.finish_call(queue, self.config.rules, self.sequence, end.clone(), deadline).await {
                Ok(finished) => return self.log(&end, finished),
                Err(error) => store_status.report_error(&self.cx, &error),
            }
            tokio::time::sleep(STORE_RETRY_PAUSE).await;
        }
    }

    fn log(&self, end: &AttemptEnd, finished: FinishOutcome) {
        let (cage, interface) = (&*self.cx.endpoint.cage, &*self.cx.endpoint.interface);
        let CallEntry { id, target, attempts, .. } = &self.entry;
        let (module, function) = (&target.module, &target.function);
        match (finished, end) {
            (FinishOutcome::GivenUp(given_up), _) => report_given_up(&self.cx, &given_up),
            (FinishOutcome::Later, AttemptEnd::Later { error, .. } | AttemptEnd::NotRun { error, .. }) => {
                tracing::info!(
                    cage,
                    interface,
                    module,
                    function,
                    call = id,
                    attempts,
                    error,
                    "call is made again later"
                );
            }
            (FinishOutcome::Done | FinishOutcome::Gone | FinishOutcome::Later, _) => {
                tracing::debug!(cage, interface, module, function, call = id, attempts, "call is done");
            }
        }
    }
}

/// Logs a call that will not be retried any more.
pub(super) fn report_given_up(cx: &InterfaceContext, given_up: &GivenUpCall) {
    let GivenUpCall { entry, displaced } = given_up;
    let (cage, interface) = (&*cx.endpoint.cage, &*cx.endpoint.interface);
    let CallEntry { id, target, error, attempts, .. } = entry;
    let (module, function) = (&target.module, &target.function);
    tracing::warn!(cage, interface, module, function, call = id, attempts, error, "call is given up");
    let Some(oldest) = displaced else { return };
    if let Some(dropped) = cx.store.retried_queue(interface).count_displaced(Instant::now()) {
        tracing::error!(
            cage,
            interface,
            call = oldest,
            dropped,
            "the oldest dead letter was dropped, since the queue had as many as it may: look at `wasmcage retry list --dead`, \
             and run or drop them"
        );
    }
}

/// Returns whether a retry would fail in the same way.
fn is_final(error: &DispatchError) -> bool {
    match error {
        DispatchError::BadRequest(_) | DispatchError::NotPermitted(_) | DispatchError::Refused(_) => true,
        DispatchError::NoSuchCage(_)
        | DispatchError::Unreachable(_)
        | DispatchError::NoSuchModule(_)
        | DispatchError::NoSuchFunction(_)
        | DispatchError::Failed(_)
        | DispatchError::Trap(_)
        | DispatchError::DeadlineExceeded(_)
        | DispatchError::Lost(_)
        | DispatchError::Overloaded(_)
        | DispatchError::Draining
        | DispatchError::Host(_) => false,
    }
}
