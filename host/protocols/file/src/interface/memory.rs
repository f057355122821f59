//! What is remembered of the files that are there: since when they rest, how often they failed, which are done with but could
//! not be removed. Nothing is remembered of a file that is gone, so that the directory's look bounds it.

use std::collections::HashMap;
use std::ffi::CString;
use std::time::Duration;

use tokio::time::Instant;

use super::source::Found;
use crate::directory::Stamp;

#[derive(Default)]
pub(super) struct Memory(HashMap<CString, Known>);

struct Known {
    stamp: Stamp,
    since: Instant,
    failures: u32,
    /// Not before this.
    again: Option<Instant>,
    end: Option<End>,
}

/// Why a file that is there is not handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was handled, and could not be put away.
    Handled,
    /// It was given up for this reason, and could not be moved aside.
    GivenUp(String),
}

impl Memory {
    /// Takes note of what is there now. A file that changed is another one.
    pub(super) fn update(&mut self, found: &[Found]) {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.0);
        for Found { name, stamp } in found {
            let same = before.remove(name).filter(|known| known.stamp == *stamp);
            let new = || Known { stamp: *stamp, since: now, failures: 0, again: None, end: None };
            self.0.insert(name.clone(), same.unwrap_or_else(new));
        }
    }

    /// How long until it has rested for `settle`.
    pub(super) fn unrest(&self, found: &Found, settle: Duration) -> Duration {
        self.0.get(&found.name).map_or(settle, |known| settle.saturating_sub(known.since.elapsed()))
    }

    /// How long until it may be tried again.
    pub(super) fn pause(&self, found: &Found) -> Duration {
        let again = self.0.get(&found.name).and_then(|known| known.again);
        again.map_or(Duration::ZERO, |again| again.saturating_duration_since(Instant::now()))
    }

    /// Of a file that is only still there.
    pub(super) fn end(&self, found: &Found) -> Option<End> {
        self.0.get(&found.name).and_then(|known| known.end.clone())
    }

    pub(super) fn failures(&self, found: &Found) -> u32 {
        self.0.get(&found.name).map_or(0, |known| known.failures)
    }

    /// Not to be handed again.
    pub(super) fn ended(&mut self, found: &Found, end: End) {
        if let Some(known) = self.0.get_mut(&found.name) {
            known.end = Some(end);
        }
    }

    /// To be handed again, after `pause`.
    pub(super) fn failed(&mut self, found: &Found, pause: Duration) {
        if let Some(known) = self.0.get_mut(&found.name) {
            known.failures = known.failures.saturating_add(1);
            known.again = Some(Instant::now() + pause);
        }
    }

    pub(super) fn forget(&mut self, found: &Found) {
        self.0.remove(&found.name);
    }
}
