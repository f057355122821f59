//! Who waits for a place: a line for each module, and in it the earliest deadline first. Always under the admission's lock.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Bulkhead, Entry, Place, Refusal};
use crate::request::Deadline;

/// The order of waiters: among equal deadlines the first come goes first.
pub(super) type Turn = (Deadline, u64);
/// Brings a waiter its place, or tells it why it gets none.
pub(super) type Waiter = oneshot::Sender<Result<Place, Refusal>>;
type Waiters = BTreeMap<Turn, Waiter>;

/// Only lines in which somebody waits are here.
#[derive(Default)]
pub(super) struct Lines {
    lines: Vec<Line>,
    /// Waiters from outside, of all lines.
    outside: usize,
    arrivals: u64,
}

struct Line {
    /// None: whoever waits needs a place in the admission only.
    bulkhead: Option<Arc<Bulkhead>>,
    outside: Waiters,
    within: Waiters,
}

impl Lines {
    pub(super) fn outside(&self) -> usize {
        self.outside
    }

    pub(super) fn add(
        &mut self,
        bulkhead: Option<&Arc<Bulkhead>>,
        entry: Entry,
        deadline: Deadline,
        waiter: Waiter,
    ) -> Turn {
        let turn = (deadline, self.arrivals);
        self.arrivals += 1;
        self.outside += usize::from(entry == Entry::Outside);
        let at = self.find(bulkhead).unwrap_or_else(|| {
            self.lines.push(Line { bulkhead: bulkhead.cloned(), outside: Waiters::new(), within: Waiters::new() });
            self.lines.len() - 1
        });
        self.lines[at].waiters(entry).insert(turn, waiter);
        turn
    }

    /// Room for one more from outside among `max`. When there is none, who waits last in the longest line leaves, unless that
    /// is the newcomer's own: one module's waiters cannot fill the queue for the others. Returns whether somebody left.
    pub(super) fn make_room(&mut self, bulkhead: Option<&Arc<Bulkhead>>, max: usize) -> Result<bool, Refusal> {
        if self.outside < max {
            return Ok(false);
        }
        let full = Refusal::Full(self.outside);
        let own = self.find(bulkhead).map_or(0, |at| self.lines[at].outside.len());
        let longest = self.lines.iter_mut().max_by_key(|line| line.outside.len());
        let Some(longest) = longest.filter(|longest| longest.outside.len() > own + 1) else { return Err(full) };
        let displaced = longest.outside.pop_last();
        self.outside -= 1;
        if let Some((_, waiter)) = displaced {
            // One that has just left needs no answer.
            let _ = waiter.send(Err(full));
        }
        Ok(true)
    }

    /// The earliest deadline among those for whom there is a place.
    pub(super) fn next(&self, room_in_cage: bool) -> Option<(Option<Arc<Bulkhead>>, Entry, Turn)> {
        let open = self.lines.iter().filter(|line| line.bulkhead.as_ref().is_none_or(|bulkhead| bulkhead.has_room()));
        let first = open.filter_map(|line| {
            let outside = line.outside.keys().next().filter(|_| room_in_cage).map(|turn| (*turn, Entry::Outside));
            let within = line.within.keys().next().map(|turn| (*turn, Entry::Within));
            let (turn, entry) = [outside, within].into_iter().flatten().min_by_key(|(turn, _)| *turn)?;
            Some((turn, entry, line))
        });
        let (turn, entry, line) = first.min_by_key(|(turn, ..)| *turn)?;
        Some((line.bulkhead.clone(), entry, turn))
    }

    pub(super) fn remove(&mut self, bulkhead: Option<&Arc<Bulkhead>>, entry: Entry, turn: Turn) -> Option<Waiter> {
        let at = self.find(bulkhead)?;
        let waiter = self.lines[at].waiters(entry).remove(&turn)?;
        self.outside -= usize::from(entry == Entry::Outside);
        if self.lines[at].is_empty() {
            self.lines.swap_remove(at);
        }
        Some(waiter)
    }

    /// Removes those whose deadline has passed, and returns their number: none of them may begin any more.
    pub(super) fn remove_expired(&mut self) -> usize {
        let mut removed = 0;
        for line in &mut self.lines {
            let outside = remove_expired(&mut line.outside);
            self.outside -= outside;
            removed += outside + remove_expired(&mut line.within);
        }
        self.lines.retain(|line| !line.is_empty());
        removed
    }

    /// Empties the line of a bulkhead.
    pub(super) fn clear(&mut self, bulkhead: &Arc<Bulkhead>) -> Vec<Waiter> {
        let Some(at) = self.find(Some(bulkhead)) else { return Vec::new() };
        let Line { outside, within, .. } = self.lines.swap_remove(at);
        self.outside -= outside.len();
        outside.into_values().chain(within.into_values()).collect()
    }

    fn find(&self, bulkhead: Option<&Arc<Bulkhead>>) -> Option<usize> {
        self.lines.iter().position(|line| match (&line.bulkhead, bulkhead) {
            (Some(known), Some(bulkhead)) => Arc::ptr_eq(known, bulkhead),
            (None, None) => true,
            _ => false,
        })
    }
}

impl Line {
    fn waiters(&mut self, entry: Entry) -> &mut Waiters {
        match entry {
            Entry::Outside => &mut self.outside,
            Entry::Within => &mut self.within,
        }
    }

    fn is_empty(&self) -> bool {
        self.outside.is_empty() && self.within.is_empty()
    }
}

fn remove_expired(waiters: &mut Waiters) -> usize {
    let mut removed = 0;
    while waiters.first_key_value().is_some_and(|((deadline, _), _)| deadline.passed()) {
        waiters.pop_first();
        removed += 1;
    }
    removed
}
