//! An orderly stop: the intake is stopped, what is in flight is finished, and what is left at a deadline is dropped. The cage
//! has a `Drain`, and each interface a child of it, so that one interface can be replaced while the others serve.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

#[derive(Clone, Debug, Default)]
pub struct Drain {
    intake: CancellationToken,
    forced: CancellationToken,
    in_flight: TaskTracker,
    /// The parent's `intake`.
    outer: CancellationToken,
}

impl Drain {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a drain that begins when its parent does, or alone. The parent does not wait for what the child tracks.
    pub fn child(&self) -> Self {
        Self {
            intake: self.intake.child_token(),
            forced: self.forced.child_token(),
            in_flight: TaskTracker::new(),
            outer: self.intake.clone(),
        }
    }

    /// Stops the intake.
    pub fn begin(&self) {
        self.intake.cancel();
        self.in_flight.close();
    }

    /// Drops what is still in flight.
    pub fn force(&self) {
        self.begin();
        self.forced.cancel();
    }

    pub fn begun(&self) -> bool {
        self.intake.is_cancelled()
    }

    /// Returns whether the parent has begun, too.
    pub fn outer_begun(&self) -> bool {
        self.outer.is_cancelled()
    }

    /// Resolves when the drain has begun.
    pub async fn stopping(&self) {
        self.intake.cancelled().await;
    }

    /// Returns the result of the work; none if the drain begins first, which drops the work.
    pub async fn unless_begun<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stopping() => None,
            done = work => Some(done),
        }
    }

    /// Resolves when what is in flight must be dropped.
    pub async fn forcing(&self) {
        self.forced.cancelled().await;
    }

    /// A token to hold for as long as something is in flight.
    pub fn token(&self) -> TaskTrackerToken {
        self.in_flight.token()
    }

    /// Begins, waits up to `timeout` for what is in flight, then forces. Returns whether everything ended by itself.
    pub async fn complete(&self, timeout: Duration) -> bool {
        self.begin();
        let finished = tokio::time::timeout(timeout, self.in_flight.wait()).await.is_ok();
        self.forced.cancel();
        finished
    }
}
