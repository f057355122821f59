//! Stopping in order: stop the intake, finish what is in flight, end by a deadline. One for the cage, a child for each
//! interface, so that an interface can be replaced while the others serve.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

#[derive(Clone, Debug, Default)]
pub struct Drain {
    intake: CancellationToken,
    forced: CancellationToken,
    in_flight: TaskTracker,
    /// Of the parent's.
    outer: CancellationToken,
}

impl Drain {
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to drain when its parent does, and may begin alone; what it tracks counts for itself only.
    pub fn child(&self) -> Self {
        Self {
            intake: self.intake.child_token(),
            forced: self.forced.child_token(),
            in_flight: TaskTracker::new(),
            outer: self.intake.clone(),
        }
    }

    /// Takes nothing new from now on.
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

    /// Whether this one began because its parent did.
    pub fn outer_begun(&self) -> bool {
        self.outer.is_cancelled()
    }

    /// Resolves when nothing new may be taken.
    pub async fn stopping(&self) {
        self.intake.cancelled().await;
    }

    /// What the work comes to, or none if the drain begins first, which drops it.
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

    /// Held by anything that must end before the drain is complete.
    pub fn token(&self) -> TaskTrackerToken {
        self.in_flight.token()
    }

    /// Begins, waits up to `timeout` for what is in flight, then forces. True when everything ended by itself.
    pub async fn complete(&self, timeout: Duration) -> bool {
        self.begin();
        let finished = tokio::time::timeout(timeout, self.in_flight.wait()).await.is_ok();
        self.forced.cancel();
        finished
    }
}
