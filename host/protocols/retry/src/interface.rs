//! Processes one queue: finds the calls that are due, starts attempts up to the configured concurrency, and sleeps
//! until more are due.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio_util::task::TaskTracker;

use super::attempt::{CallAttempt, report_given_up};
use super::config::RetryConfig;
use wasmcage_core::request::Deadline;
use wasmcage_protocol::{Address, Interface, InterfaceContext, InterfaceError};
use wasmcage_store::{CallStart, QueueStatus, RetriedQueue, StoreError};

/// How long one write to the store may take before it is retried.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause before the store is tried again after an error.
pub(super) const STORE_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often the queue is polled at least, since the clock may be set.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct RetryInterface {
    pub(super) config: RetryConfig,
}

/// Processes one queue while its interface runs.
struct QueueWorker {
    cx: InterfaceContext,
    config: RetryConfig,
    queue: Arc<RetriedQueue>,
    attempts: TaskTracker,
}

#[async_trait]
impl Interface for RetryInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let queue = cx.store.retried_queue(&cx.endpoint.interface);
        let listening = cx.endpoint.listen(Address::Cage(format!("queue:{}", cx.endpoint.interface)));
        let worker = QueueWorker { cx, config: self.config, queue, attempts: TaskTracker::new() };
        worker.process().await;
        drop(listening);
        worker.attempts.close();
        worker.attempts.wait().await;
        Ok(())
    }
}

impl QueueWorker {
    /// Starts attempts until the drain begins. Once a write has recorded that attempts begin, they are run in any case.
    async fn process(&self) {
        let drain = &self.cx.drain;
        // An interface that is being replaced may still hold the lease for a moment.
        let Some(_lease) = drain.unless_begun(self.queue.lease()).await else { return };
        let mut store_status = StoreStatus::default();
        if self.queue.claim_resume() {
            while let Err(error) = self.resume().await {
                store_status.report_error(&self.cx, &error);
                if drain.unless_begun(tokio::time::sleep(STORE_RETRY_PAUSE)).await.is_none() {
                    return;
                }
            }
        }
        while !drain.begun() {
            let pause = match self.begin_due().await {
                Ok(pause) => {
                    store_status.report_success(&self.cx);
                    pause
                }
                Err(error) => {
                    store_status.report_error(&self.cx, &error);
                    STORE_RETRY_PAUSE
                }
            };
            let woken = async {
                // While the store cannot be used, new calls need not wake this.
                match store_status.has_failed() {
                    true => std::future::pending().await,
                    false => self.queue.woken().await,
                }
            };
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep(pause) => {}
                () = drain.stopping() => {}
            }
        }
    }

    /// Looks for calls that are due.
    async fn look(&self) -> Result<QueueStatus, StoreError> {
        let (name, rules) = (self.cx.endpoint.interface.clone(), self.config.rules);
        self.cx.store.read_without_blocking(move |store| store.queue_status(&name, &rules)).await
    }

    /// Makes the calls due at once that failed before the process started and wait for a retry.
    async fn resume(&self) -> Result<(), StoreError> {
        let (store, name) = (&self.cx.store, &self.cx.endpoint.interface);
        store.ready().await;
        let look = self.look().await?;
        if !look.due && look.next_ms.is_none() {
            return Ok(());
        }
        store.resume_calls(name, self.config.rules, Deadline::after(WRITE_TIMEOUT)).await
    }

    /// Starts attempts at the calls that are due, as far as there are places. Returns how long until the next one is
    /// due.
    async fn begin_due(&self) -> Result<Duration, StoreError> {
        let (store, name, rules) = (&self.cx.store, &self.cx.endpoint.interface, self.config.rules);
        while self.cx.drain.unless_begun(store.ready()).await.is_some() {
            let places = self.config.concurrency.saturating_sub(self.queue.in_work().len());
            let look = self.look().await?;
            if places == 0 || !look.due {
                return Ok(look.next_ms.map_or(POLL_INTERVAL, time_until).min(POLL_INTERVAL));
            }
            let in_flight = self.cx.drain.token();
            let begun = store.begin_calls(name, rules, places, Deadline::after(WRITE_TIMEOUT)).await?;
            for begun in begun {
                match begun {
                    CallStart::Attempt { sequence, entry } => {
                        let in_work = self.queue.begin(sequence);
                        let attempt = CallAttempt {
                            cx: self.cx.clone(),
                            config: self.config,
                            _in_work: in_work,
                            _in_flight: in_flight.clone(),
                            sequence,
                            entry,
                        };
                        self.cx.lanes.next().spawn(self.attempts.track_future(attempt.run()));
                    }
                    CallStart::GivenUp(given_up) => report_given_up(&self.cx, &given_up),
                }
            }
        }
        Ok(POLL_INTERVAL)
    }
}

fn time_until(at_ms: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(at_ms).saturating_sub(now)
}

/// The last error of the store, if it cannot be used. Each error is logged once, and the recovery, too.
#[derive(Default)]
pub(super) struct StoreStatus(Option<String>);

impl StoreStatus {
    pub(super) fn report_error(&mut self, cx: &InterfaceContext, error: &StoreError) {
        let text = error.to_string();
        if self.0.as_ref() != Some(&text) {
            let (cage, interface) = (&*cx.endpoint.cage, &*cx.endpoint.interface);
            tracing::error!(cage, interface, error = %text, "retried calls wait for the store");
            self.0 = Some(text);
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn report_success(&mut self, cx: &InterfaceContext) {
        if self.0.take().is_some() {
            let (cage, interface) = (&*cx.endpoint.cage, &*cx.endpoint.interface);
            tracing::info!(cage, interface, "the store can be used again");
        }
    }
}
