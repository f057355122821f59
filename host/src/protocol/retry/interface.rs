//! Works off one queue: finds what is due, begins attempts as far as there are places, and sleeps until there is more to do.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio_util::task::TaskTracker;

use super::attempt::{Attempted, tell_given_up};
use super::config::RetryConfig;
use crate::protocol::{Interface, InterfaceContext, InterfaceError};
use crate::request::Deadline;
use crate::store::{Begun, RetriedQueue, StoreError};

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
        let queue = cx.services.store.retried_queue(&cx.endpoint.interface);
        cx.endpoint.announce(format!("queue:{}", cx.endpoint.interface));
        let work = Work { cx, config: self.config, queue, attempts: TaskTracker::new() };
        tokio::select! {
            () = work.begin_all() => {}
            () = work.cx.drain.stopping() => {}
        }
        work.cx.endpoint.forget_addresses();
        work.attempts.close();
        work.attempts.wait().await;
        Ok(())
    }
}

impl Work {
    /// Never returns. Dropped between two steps, it leaves nothing undone that the next one does not find.
    async fn begin_all(&self) {
        // An interface that is being replaced still holds it for a moment.
        let _lease = self.queue.lease().await;
        let mut trouble = Trouble::default();
        if self.queue.resumes() {
            while let Err(error) = self.resume().await {
                trouble.tell(&self.cx, &error);
                tokio::time::sleep(STORE_PAUSE).await;
            }
        }
        loop {
            match self.begin_due().await {
                Ok(pause) => {
                    trouble.end(&self.cx);
                    tokio::select! {
                        () = self.queue.woken() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                Err(error) => {
                    trouble.tell(&self.cx, &error);
                    tokio::time::sleep(STORE_PAUSE).await;
                }
            }
        }
    }

    async fn resume(&self) -> Result<(), StoreError> {
        let (store, name) = (&self.cx.services.store, &self.cx.endpoint.interface);
        store.ready().await;
        let look = store.look_for_calls(name, &self.config.rules)?;
        if !look.due && look.next_ms.is_none() {
            return Ok(());
        }
        store.resume_calls(name, self.config.rules, Deadline::after(WRITE_PATIENCE)).await
    }

    /// Begins what is due, as far as there are places. Returns how long nothing more will be.
    async fn begin_due(&self) -> Result<Duration, StoreError> {
        let (store, name, rules) = (&self.cx.services.store, &self.cx.endpoint.interface, self.config.rules);
        loop {
            store.ready().await;
            let places = self.config.concurrency.saturating_sub(self.queue.in_work().len());
            let look = store.look_for_calls(name, &rules)?;
            if places == 0 || !look.due {
                return Ok(look.next_ms.map_or(LOOK_INTERVAL, time_until).min(LOOK_INTERVAL));
            }
            let begun = store.begin_calls(name, rules, places, Deadline::after(WRITE_PATIENCE)).await?;
            for begun in begun {
                match begun {
                    Begun::Attempt { sequence, entry } => {
                        let in_work = self.queue.begin(sequence);
                        let attempted =
                            Attempted { cx: self.cx.clone(), config: self.config, _in_work: in_work, sequence, entry };
                        // Guests run on the lanes.
                        self.cx.lanes.next().spawn(self.attempts.track_future(attempted.run()));
                    }
                    Begun::GivenUp(given_up) => tell_given_up(&self.cx, &given_up),
                }
            }
        }
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

    pub(super) fn end(&mut self, cx: &InterfaceContext) {
        if self.0.take().is_some() {
            let (cage, interface) = (&*cx.endpoint.cage, &*cx.endpoint.interface);
            tracing::info!(cage, interface, "the store can be used again");
        }
    }
}
