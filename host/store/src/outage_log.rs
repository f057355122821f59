//! Reports an outage of the store to the log once, and not with each write that fails.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// An outage that lasts is reported again after this time.
const INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct OutageLog {
    cage: String,
    /// Kind and time of the last report; none while the store is available.
    last: Mutex<Option<(String, Instant)>>,
}

impl OutageLog {
    pub(super) fn new(cage: String) -> Self {
        Self { cage, last: Mutex::default() }
    }

    /// Texts that say the same have the same `kind`.
    pub(super) fn report(&self, kind: &str, text: &str) {
        let mut last = self.last.lock();
        if last.as_ref().is_none_or(|(known, at)| known != kind || at.elapsed() > INTERVAL) {
            tracing::error!(cage = %self.cage, error = %text, "the store is not available");
            *last = Some((kind.to_owned(), Instant::now()));
        }
    }

    /// Reports that another file was opened than the one that was open before.
    pub(super) fn report_replaced(&self, file: &str) {
        tracing::warn!(cage = %self.cage, file, "the store's file was replaced, the content of the new one is used from here on");
    }

    /// Reports the end of an outage, if there was one.
    pub(super) fn report_available(&self) {
        if self.last.lock().take().is_some() {
            tracing::info!(cage = %self.cage, "the store is available again");
        }
    }
}
