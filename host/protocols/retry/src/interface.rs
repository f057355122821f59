//! Works off one queue: finds what is due, begins attempts as far as there are places, and sleeps until there is more to do.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio_util::task::TaskTracker;

use super::attempt::{Attempted, tell_given_up};
use super::config::RetryConfig;
use wasmcage_core::request::Deadline;
use wasmcage_protocol::{Address, Interface, InterfaceContext, InterfaceError};
use wasmcage_store::{CallStart, QueueStatus, RetriedQueue, StoreError};

/// A write of the store's takes no longer, or is tried again.
pub(super) const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries when the store can neither be read nor written.
pub(super) const STORE_PAUSE: Duration = Duration::from_secs(1);
/// The clock may be set: what is due is looked at so often at the least.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct RetryInterface {
    pub(super) config: RetryConfig,
}

/// One queue, as long as its interface runs.
struct Work {
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
        let work = Work { cx, config: self.config, queue, attempts: TaskTracker::new() };
        work.begin_all().await;
        drop(listening);
        work.attempts.close();
        work.attempts.wait().await;
        Ok(())
    }
}

impl Work {
    /// Until the drain begins. A write that records beginnings is not left half way: what it has begun is run.
    async fn begin_all(&self) {
        let drain = &self.cx.drain;
        // An interface that is being replaced still holds it for a moment.
        let Some(_lease) = drain.unless_begun(self.queue.lease()).await else { return };
        let mut trouble = Trouble::default();
        if self.queue.claim_resume() {
            while let Err(error) = self.resume().await {
                trouble.tell(&self.cx, &error);
                if drain.unless_begun(tokio::time::sleep(STORE_PAUSE)).await.is_none() {
                    return;
                }
            }
        }
        while !drain.begun() {
            let pause = match self.begin_due().await {
                Ok(pause) => {
                    trouble.end(&self.cx);
                    pause
                }
                Err(error) => {
                    trouble.tell(&self.cx, &error);
                    STORE_PAUSE
                }
            };
            let woken = async {
                // While the store cannot be used, more to do changes nothing.
                match trouble.is_told() {
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

    async fn look(&self) -> Result<QueueStatus, StoreError> {
        let (name, rules) = (self.cx.endpoint.interface.clone(), self.config.rules);
        self.cx.store.read_without_blocking(move |store| store.queue_status(&name, &rules)).await
    }

    async fn resume(&self) -> Result<(), StoreError> {
        let (store, name) = (&self.cx.store, &self.cx.endpoint.interface);
        store.ready().await;
        let look = self.look().await?;
        if !look.due && look.next_ms.is_none() {
            return Ok(());
        }
        store.resume_calls(name, self.config.rules, Deadline::after(WRITE_PATIENCE)).await
    }

    /// Begins what is due, as far as there are places. Returns how long nothing more will be.
    async fn begin_due(&self) -> Result<Duration, StoreError> {
        let (store, name, rules) = (&self.cx.store, &self.cx.endpoint.interface, self.config.rules);
        while self.cx.drain.unless_begun(store.ready()).await.is_some() {
            let places = self.config.concurrency.saturating_sub(self.queue.in_work().len());
            let look = self.look().await?;
            if places == 0 || !look.due {
                return Ok(look.next_ms.map_or(LOOK_INTERVAL, time_until).min(LOOK_INTERVAL));
            }
            let in_flight = self.cx.drain.token();
            let begun = store.begin_calls(name, rules, places, Deadline::after(WRITE_PATIENCE)).await?;
            for begun in begun {
                match begun {
                    CallStart::Attempt { sequence, entry } => {
                        let in_work = self.queue.begin(sequence);
                        let attempted = Attempted {
                            cx: self.cx.clone(),
                            config: self.config,
                            _in_work: in_work,
                            _in_flight: in_flight.clone(),
                            sequence,
                            entry,
                        };
                        // Guests run on the lanes.
                        self.cx.lanes.next().spawn(self.attempts.track_future(attempted.run()));
                    }
                    CallStart::GivenUp(given_up) => tell_given_up(&self.cx, &given_up),
                }
            }
        }
        Ok(LOOK_INTERVAL)
    }
}

fn time_until(at_ms: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(at_ms).saturating_sub(now)
}

/// The store cannot be used: told once, and when that is over.
#[derive(Default)]
pub(super) struct Trouble(Option<String>);

impl Trouble {
    pub(super) fn tell(&mut self, cx: &InterfaceContext, error: &StoreError) {
        let text = error.to_string();
        if self.0.as_ref() != Some(&text) {
            let (cage, interface) = (&*cx.endpoint.cage, &*cx.endpoint.interface);
            tracing::error!(cage, interface, error = %text, "retried calls wait for the store");
            self.0 = Some(text);
        }
    }

    pub(super) fn is_told(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn end(&mut self, cx: &InterfaceContext) {
        if self.0.take().is_some() {
            let (cage, interface) = (&*cx.endpoint.cage, &*cx.endpoint.interface);
            tracing::info!(cage, interface, "the store can be used again");
        }
    }
}
