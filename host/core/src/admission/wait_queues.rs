//! Requests that wait for a permit: a queue for each module, ordered by deadline. Used under the admission's lock.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{AdmissionError, Bulkhead, EntryKind, Permit};
use crate::request::Deadline;

/// Order of waiters: by deadline, then by arrival.
pub(super) type QueuePosition = (Deadline, u64);
/// Sends a waiter its permit, or the reason why it gets none.
pub(super) type PermitSender = oneshot::Sender<Result<Permit, AdmissionError>>;
type Senders = BTreeMap<QueuePosition, PermitSender>;

/// All queues that are not empty.
#[derive(Default)]
pub(super) struct WaitQueues {
    queues: Vec<WaitQueue>,
    /// Number of waiters from outside, in all queues.
    outside: usize,
    arrivals: u64,
}

struct WaitQueue {
    /// None for waiters that need a permit of the admission only.
    bulkhead: Option<Arc<Bulkhead>>,
    outside: Senders,
    within: Senders,
}

impl WaitQueues {
    pub(super) fn outside(&self) -> usize {
        self.outside
    }

    pub(super) fn add(
        &mut self,
        bulkhead: Option<&Arc<Bulkhead>>,
        entry: EntryKind,
        deadline: Deadline,
        waiter: PermitSender,
    ) -> QueuePosition {
        let position = (deadline, self.arrivals);
        self.arrivals += 1;
        self.outside += usize::from(entry == EntryKind::Outside);
        let at = self.find(bulkhead).unwrap_or_else(|| {
            self.queues.push(WaitQueue {
                bulkhead: bulkhead.cloned(),
                outside: Senders::new(),
                within: Senders::new(),
            });
            self.queues.len() - 1
        });
        self.queues[at].waiters(entry).insert(position, waiter);
        position
    }

    /// Makes room for one more waiter from outside, of at most `max`. If there is none, the last waiter of the longest queue is
    /// displaced, unless the newcomer's own queue is the longest: one module's waiters cannot shut out those of others. Returns
    /// whether a waiter was displaced.
    pub(super) fn make_room(&mut self, bulkhead: Option<&Arc<Bulkhead>>, max: usize) -> Result<bool, AdmissionError> {
        if self.outside < max {
            return Ok(false);
        }
        let full = AdmissionError::Full(self.outside);
        let own = self.find(bulkhead).map_or(0, |at| self.queues[at].outside.len());
        let longest = self.queues.iter_mut().max_by_key(|queue| queue.outside.len());
        let Some(longest) = longest.filter(|longest| longest.outside.len() > own + 1) else { return Err(full) };
        let displaced = longest.outside.pop_last();
        self.outside -= 1;
        if let Some((_, waiter)) = displaced {
            // A waiter that has just left needs no answer.
            let _ = waiter.send(Err(full));
        }
        Ok(true)
    }

    /// Returns the waiter with the earliest deadline among those for whom there is a permit.
    pub(super) fn next(&self, room_in_cage: bool) -> Option<(Option<Arc<Bulkhead>>, EntryKind, QueuePosition)> {
        let open =
            self.queues.iter().filter(|queue| queue.bulkhead.as_ref().is_none_or(|bulkhead| bulkhead.has_room()));
        let first = open.filter_map(|queue| {
            let outside =
                queue.outside.keys().next().filter(|_| room_in_cage).map(|position| (*position, EntryKind::Outside));
            let within = queue.within.keys().next().map(|position| (*position, EntryKind::Within));
            let (position, entry) = [outside, within].into_iter().flatten().min_by_key(|(position, _)| *position)?;
            Some((position, entry, queue))
        });
        let (position, entry, queue) = first.min_by_key(|(position, ..)| *position)?;
        Some((queue.bulkhead.clone(), entry, position))
    }

    pub(super) fn remove(
        &mut self,
        bulkhead: Option<&Arc<Bulkhead>>,
        entry: EntryKind,
        position: QueuePosition,
    ) -> Option<PermitSender> {
        let at = self.find(bulkhead)?;
        let waiter = self.queues[at].waiters(entry).remove(&position)?;
        self.outside -= usize::from(entry == EntryKind::Outside);
        if self.queues[at].is_empty() {
            self.queues.swap_remove(at);
        }
        Some(waiter)
    }

    /// Removes waiters whose deadline has passed, so that they never run. Returns their number.
    pub(super) fn remove_expired(&mut self) -> usize {
        let mut removed = 0;
        for queue in &mut self.queues {
            let outside = remove_expired(&mut queue.outside);
            self.outside -= outside;
            removed += outside + remove_expired(&mut queue.within);
        }
        self.queues.retain(|queue| !queue.is_empty());
        removed
    }

    /// Removes the queue of a bulkhead and returns its waiters.
    pub(super) fn clear(&mut self, bulkhead: &Arc<Bulkhead>) -> Vec<PermitSender> {
        let Some(at) = self.find(Some(bulkhead)) else { return Vec::new() };
        let WaitQueue { outside, within, .. } = self.queues.swap_remove(at);
        self.outside -= outside.len();
        outside.into_values().chain(within.into_values()).collect()
    }

    fn find(&self, bulkhead: Option<&Arc<Bulkhead>>) -> Option<usize> {
        self.queues.iter().position(|queue| match (&queue.bulkhead, bulkhead) {
            (Some(known), Some(bulkhead)) => Arc::ptr_eq(known, bulkhead),
            (None, None) => true,
            _ => false,
        })
    }
}

impl WaitQueue {
    fn waiters(&mut self, entry: EntryKind) -> &mut Senders {
        match entry {
            EntryKind::Outside => &mut self.outside,
            EntryKind::Within => &mut self.within,
        }
    }

    fn is_empty(&self) -> bool {
        self.outside.is_empty() && self.within.is_empty()
    }
}

fn remove_expired(waiters: &mut Senders) -> usize {
    let mut removed = 0;
    while waiters.first_key_value().is_some_and(|((deadline, _), _)| deadline.passed()) {
        waiters.pop_first();
        removed += 1;
    }
    removed
}
