//! What is wrong with the store, told to the log once and not with each write that fails.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Told again after so long, if it is still so.
const INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Complaint {
    cage: String,
    told: Mutex<Option<(String, Instant)>>,
}

impl Complaint {
    pub(super) fn new(cage: String) -> Self {
        Self { cage, told: Mutex::default() }
    }

    /// Texts that say the same have the same `kind`.
    pub(super) fn tell(&self, kind: &str, text: &str) {
        let mut told = self.told.lock();
        if told.as_ref().is_none_or(|(known, at)| known != kind || at.elapsed() > INTERVAL) {
            tracing::error!(cage = %self.cage, error = %text, "the store is not available");
            *told = Some((kind.to_owned(), Instant::now()));
        }
    }

    /// Another file was opened than the one that was open before.
    pub(super) fn replaced(&self, file: &str) {
        tracing::warn!(cage = %self.cage, file, "the store's file was replaced, what the new one holds counts from here on");
    }

    /// It works, perhaps again.
    pub(super) fn settle(&self) {
        if self.told.lock().take().is_some() {
            tracing::info!(cage = %self.cage, "the store is available again");
        }
    }
}
