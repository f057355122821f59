//! The states of the files in a watched directory: since when a file is unchanged, how often it failed, and whether it
//! is handled but could not be removed. A file that is gone has no state, so the scan of the directory limits their
//! number.

use std::collections::HashMap;
use std::ffi::CString;
use std::time::Duration;

use tokio::time::Instant;

use super::watched::WatchedFile;
use crate::directory::FileStamp;

/// The states by the files' names.
#[derive(Default)]
pub(super) struct FileStates(HashMap<CString, FileState>);

struct FileState {
    stamp: FileStamp,
    since: Instant,
    failures: u32,
    /// The time of the next attempt.
    retry_at: Option<Instant>,
    leftover: Option<Leftover>,
}

/// Why a file is still there and must not be handled again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leftover {
    /// It was handled, and could not be removed or moved.
    Handled,
    /// It was given up for this reason, and could not be moved aside.
    GivenUp(String),
}

impl FileStates {
    /// Updates the states to the files that are there now. A changed file counts as a new one.
    pub(super) fn update(&mut self, files: &[WatchedFile]) {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.0);
        for WatchedFile { name, stamp } in files {
            let same = before.remove(name).filter(|state| state.stamp == *stamp);
            let new = || FileState { stamp: *stamp, since: now, failures: 0, retry_at: None, leftover: None };
            self.0.insert(name.clone(), same.unwrap_or_else(new));
        }
    }

    /// How long it takes until the file has been unchanged for `settle`.
    pub(super) fn unsettled_for(&self, file: &WatchedFile, settle: Duration) -> Duration {
        self.0.get(&file.name).map_or(settle, |state| settle.saturating_sub(state.since.elapsed()))
    }

    /// How long it takes until the file's next attempt.
    pub(super) fn retry_after(&self, file: &WatchedFile) -> Duration {
        let retry_at = self.0.get(&file.name).and_then(|state| state.retry_at);
        retry_at.map_or(Duration::ZERO, |retry_at| retry_at.saturating_duration_since(Instant::now()))
    }

    pub(super) fn leftover(&self, file: &WatchedFile) -> Option<Leftover> {
        self.0.get(&file.name).and_then(|state| state.leftover.clone())
    }

    pub(super) fn failures(&self, file: &WatchedFile) -> u32 {
        self.0.get(&file.name).map_or(0, |state| state.failures)
    }

    /// Records that the file must not be handled again.
    pub(super) fn set_leftover(&mut self, file: &WatchedFile, leftover: Leftover) {
        if let Some(state) = self.0.get_mut(&file.name) {
            state.leftover = Some(leftover);
        }
    }

    /// Records a failure; the next attempt is due after `pause`.
    pub(super) fn failed(&mut self, file: &WatchedFile, pause: Duration) {
        if let Some(state) = self.0.get_mut(&file.name) {
            state.failures = state.failures.saturating_add(1);
            state.retry_at = Some(Instant::now() + pause);
        }
    }

    pub(super) fn forget(&mut self, file: &WatchedFile) {
        self.0.remove(&file.name);
    }
}
