//! Works off a queue: finds what is due, and records start and end of each attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::record::{self, CallEntry, CallState, IdRecord, QueueCounts};
use super::{CallReads, keys};
use crate::{Space, StoreError, Writer};

/// Most calls that one write makes ready.
const PROMOTED_MAX: usize = 1_000;
/// Most ids that one write forgets.
const FORGOTTEN_MAX: usize = 1_000;
/// Most dead letters of a queue; one more displaces the oldest.
pub(super) const DEAD_MAX: u64 = 100_000;
/// Ids are forgotten so much later than they could be, so that one write forgets many.
const FORGET_SLACK_MS: u64 = 60_000;

/// Settings of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRules {
    /// Calls are made one after the other, in the order in which they were accepted; the first pending one holds up the rest.
    pub keep_order: bool,
    /// The longest time between two attempts.
    pub interval_max: Duration,
    /// Most attempts at one call; none: until it succeeds.
    pub attempts_max: Option<u32>,
    /// How long the id of a call is remembered after its end, and how long a call to another cage is kept while that cannot be
    /// reached.
    pub retention: Duration,
    /// Calls that are given up are kept as dead letters.
    pub dead_letters: bool,
}

/// Tells when there is something to do in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatus {
    /// There is something to do now.
    pub due: bool,
    /// Otherwise, when there will be, in milliseconds since 1970; none: not before another call is accepted.
    pub next_ms: Option<u64>,
}

/// The result of starting a call that was due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallStart {
    /// The call is to be made now; the start of the attempt is stored.
    Attempt {
        sequence: u64,
        entry: CallEntry,
    },
    GivenUp(GivenUpCall),
}

/// A call that is not attempted any more unless an operator asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUpCall {
    pub entry: CallEntry,
    /// The id of the oldest dead letter, if it was dropped to make room for this one.
    pub displaced: Option<String>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    Done,
    /// The attempt failed; the call is to be attempted again then.
    Later {
        error: String,
        due_ms: u64,
    },
    /// The attempt of this number surely did not run and does not count. The call is to be attempted again then.
    NotRun {
        attempt: u32,
        error: String,
        due_ms: u64,
    },
    /// The attempt failed for this reason, and no other may succeed.
    Never(String),
}

/// What `finish` has done with a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishOutcome {
    Done,
    Later,
    GivenUp(Box<GivenUpCall>),
    /// Nothing: the call was dropped or moved meanwhile, or the same end is stored already.
    Gone,
}

/// Changes one queue within one write.
pub(super) struct QueueWriter<'w, 'a> {
    pub writer: &'w mut Writer<'a>,
    pub queue: &'w str,
    pub rules: &'w QueueRules,
    pub now_ms: u64,
}

impl QueueStatus {
    /// Takes into account that something is to be done at that time.
    fn add_due(&mut self, at_ms: u64, now_ms: u64) {
        match at_ms <= now_ms {
            true => self.due = true,
            false => self.next_ms = Some(self.next_ms.map_or(at_ms, |next| next.min(at_ms))),
        }
    }
}

impl QueueRules {
    fn retention_ms(&self) -> u64 {
        u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX)
    }

    /// A failed call that is due at this time or later would wait longer than the longest interval: the clock was set back.
    fn horizon_ms(&self, now_ms: u64) -> u64 {
        let longest = u64::try_from(self.interval_max.as_millis()).unwrap_or(u64::MAX);
        now_ms.saturating_add(longest).saturating_add(1)
    }

    /// Returns when the first call of an ordered queue may be attempted.
    fn due_ms(&self, entry: &CallEntry, now_ms: u64) -> u64 {
        let due_ms = match entry.state {
            CallState::Ready | CallState::Dead { .. } => 0,
            CallState::Waiting { due_ms } => due_ms,
            CallState::Failed { due_ms } if due_ms >= self.horizon_ms(now_ms) => 0,
            CallState::Failed { due_ms } => due_ms,
        };
        due_ms.min(entry.expires_ms.unwrap_or(u64::MAX))
    }

    /// Returns why a call is given up; none if it is not.
    fn give_up_reason(&self, entry: &CallEntry, now_ms: u64) -> Option<String> {
        let after = || match entry.error.as_str() {
            "" => String::new(),
            error => format!("; last: {error}"),
        };
        if entry.expires_ms.is_some_and(|at| at <= now_ms) {
            return Some(format!("expired after {} attempts{}", entry.attempts, after()));
        }
        if let Some(cage) = &entry.target.cage {
            // The other cage may have accepted it already and forgotten its id since.
            let over = |started: u64| started.saturating_add(self.retention_ms()) <= now_ms;
            let late = entry.first_started_ms.is_some_and(over);
            return late.then(|| format!("cage {cage} did not take it within the queue's retention{}", after()));
        }
        let attempts_max = entry.attempts_max.into_iter().chain(self.attempts_max).min()?;
        (entry.attempts >= attempts_max).then(|| format!("failed {} times{}", entry.attempts, after()))
    }
}

/// Returns what there is to do while these calls are in work.
pub(super) fn status(
    source: &impl CallReads,
    queue: &str,
    rules: &QueueRules,
    in_work: &BTreeSet<u64>,
    now_ms: u64,
) -> Result<QueueStatus, StoreError> {
    let mut status = QueueStatus::default();
    let forgotten = source.range(Space::CallsSeen, &keys::forgotten(queue, u64::MAX), 1, false)?;
    if let Some((at_ms, _)) = forgotten.first().and_then(|(key, _)| keys::forgotten_id(queue, key)) {
        status.add_due(at_ms.saturating_add(FORGET_SLACK_MS), now_ms);
    }
    if rules.keep_order {
        if let Some((_, head)) = source.entries(queue, false, 0, 1)?.first().filter(|_| in_work.is_empty()) {
            status.add_due(rules.due_ms(head, now_ms), now_ms);
        }
        return Ok(status);
    }
    let ready = source.range(Space::CallsDue, &keys::ready(queue), in_work.len() + 1, false)?;
    status.due |= ready.iter().filter_map(|(key, _)| keys::sequence(key)).any(|sequence| !in_work.contains(&sequence));
    for kind in [keys::WAITING, keys::FAILED] {
        let first = source.range(Space::CallsDue, &keys::timed(queue, kind, 0, u64::MAX), 1, false)?;
        if let Some(at_ms) = first.first().and_then(|(key, _)| keys::due_ms(key)) {
            status.add_due(at_ms, now_ms);
        }
    }
    let beyond = keys::timed(queue, keys::FAILED, rules.horizon_ms(now_ms), u64::MAX);
    status.due |= !source.range(Space::CallsDue, &beyond, 1, false)?.is_empty();
    Ok(status)
}

/// Stores a pending call and its key among those that are due.
pub(super) fn put_pending(writer: &mut Writer<'_>, queue: &str, sequence: u64, entry: &CallEntry) {
    writer.put(Space::Calls, keys::entry(queue, sequence, false), entry.encode());
    if let Some(due) = keys::due(queue, sequence, entry) {
        writer.put(Space::CallsDue, due, Vec::new());
    }
}

/// Removes a pending call and its key among those that are due. Its message and its id stay.
pub(super) fn remove_pending(writer: &mut Writer<'_>, queue: &str, sequence: u64, entry: &CallEntry) {
    writer.remove(Space::Calls, keys::entry(queue, sequence, false));
    if let Some(due) = keys::due(queue, sequence, entry) {
        writer.remove(Space::CallsDue, due);
    }
}

/// Changes the counts of a queue.
pub(super) fn count(
    writer: &mut Writer<'_>,
    queue: &str,
    change: impl FnOnce(&mut QueueCounts),
) -> Result<(), StoreError> {
    let mut counts = writer.counts(queue)?;
    change(&mut counts);
    match counts {
        QueueCounts { pending: 0, dead: 0 } => writer.remove(Space::Calls, keys::counts(queue)),
        counts => writer.put(Space::Calls, keys::counts(queue), counts.encode()),
    }
    Ok(())
}

/// Remembers the id of a call that has ended until then.
pub(super) fn forget_later(writer: &mut Writer<'_>, queue: &str, sequence: u64, id: &str, forget_ms: u64) {
    let seen = IdRecord { sequence, queue: queue.to_owned(), forget_ms: Some(forget_ms) };
    writer.put(Space::CallsSeen, keys::id(id), seen.encode());
    writer.put(Space::CallsSeen, keys::forget(queue, forget_ms, id), Vec::new());
}

impl QueueWriter<'_, '_> {
    /// Records the start of attempts at up to `places` calls that are due and not in work. An attempt of `unconfirmed` whose
    /// start is stored already starts again with the same number.
    pub(super) fn begin(
        &mut self,
        in_work: &BTreeSet<u64>,
        unconfirmed: &BTreeMap<u64, u32>,
        places: usize,
    ) -> Result<Vec<CallStart>, StoreError> {
        self.forget()?;
        if self.rules.keep_order {
            return self.begin_first(in_work, unconfirmed);
        }
        self.promote(self.now_ms)?;
        let ready = keys::ready(self.queue);
        let found = self.writer.range(Space::CallsDue, &ready.0, &ready.1, in_work.len() + places, false)?;
        let numbers = found.iter().filter_map(|(key, _)| keys::sequence(key));
        let mut begun = Vec::with_capacity(places);
        for sequence in numbers.filter(|sequence| !in_work.contains(sequence)).take(places) {
            let entry = self.writer.entry(self.queue, sequence, false)?.ok_or_else(record::damaged)?;
            begun.push(self.attempt(sequence, entry, unconfirmed)?);
        }
        Ok(begun)
    }

    fn begin_first(
        &mut self,
        in_work: &BTreeSet<u64>,
        unconfirmed: &BTreeMap<u64, u32>,
    ) -> Result<Vec<CallStart>, StoreError> {
        let head = self.writer.entries(self.queue, false, 0, 1)?.pop();
        let head = head.filter(|(_, entry)| in_work.is_empty() && self.rules.due_ms(entry, self.now_ms) <= self.now_ms);
        match head {
            Some((sequence, entry)) => Ok(vec![self.attempt(sequence, entry, unconfirmed)?]),
            None => Ok(Vec::new()),
        }
    }

    fn attempt(
        &mut self,
        sequence: u64,
        mut entry: CallEntry,
        unconfirmed: &BTreeMap<u64, u32>,
    ) -> Result<CallStart, StoreError> {
        if unconfirmed.get(&sequence) == Some(&entry.attempts) {
            entry.attempts = entry.attempts.saturating_sub(1);
        }
        if let Some(reason) = self.rules.give_up_reason(&entry, self.now_ms) {
            return self.bury(sequence, entry, reason).map(CallStart::GivenUp);
        }
        remove_pending(self.writer, self.queue, sequence, &entry);
        entry.state = CallState::Ready;
        entry.attempts = entry.attempts.saturating_add(1);
        entry.first_started_ms.get_or_insert(self.now_ms);
        put_pending(self.writer, self.queue, sequence, &entry);
        Ok(CallStart::Attempt { sequence, entry })
    }

    /// Makes ready the calls that are due by then. Returns how many.
    fn promote(&mut self, until_ms: u64) -> Result<usize, StoreError> {
        let (until_ms, horizon_ms) = (until_ms.saturating_add(1), self.rules.horizon_ms(self.now_ms));
        let mut promoted = 0;
        for (kind, from_ms, to_ms) in [
            (keys::WAITING, 0, self.now_ms.saturating_add(1)),
            (keys::FAILED, 0, until_ms),
            (keys::FAILED, horizon_ms.max(until_ms), u64::MAX),
        ] {
            let keys = keys::timed(self.queue, kind, from_ms, to_ms);
            for (key, _) in self.writer.range(Space::CallsDue, &keys.0, &keys.1, PROMOTED_MAX, false)? {
                let sequence = keys::sequence(&key).ok_or_else(record::damaged)?;
                let mut entry = self.writer.entry(self.queue, sequence, false)?.ok_or_else(record::damaged)?;
                remove_pending(self.writer, self.queue, sequence, &entry);
                entry.state = CallState::Ready;
                put_pending(self.writer, self.queue, sequence, &entry);
                promoted += 1;
            }
        }
        Ok(promoted)
    }

    /// Makes ready some of the calls that failed before the cage was started. Returns whether those were all.
    pub(super) fn resume(&mut self) -> Result<bool, StoreError> {
        Ok(self.promote(u64::MAX - 1)? < PROMOTED_MAX)
    }

    /// Forgets ids whose retention is over.
    fn forget(&mut self) -> Result<(), StoreError> {
        let keys = keys::forgotten(self.queue, self.now_ms.saturating_add(1));
        for (key, _) in self.writer.range(Space::CallsSeen, &keys.0, &keys.1, FORGOTTEN_MAX, false)? {
            let (_, id) = keys::forgotten_id(self.queue, &key).ok_or_else(record::damaged)?;
            self.writer.remove(Space::CallsSeen, keys::id(id));
            self.writer.remove(Space::CallsSeen, key);
        }
        Ok(())
    }

    /// Records the end of an attempt. The same end a second time has no effect.
    pub(super) fn finish(&mut self, sequence: u64, end: &AttemptEnd) -> Result<FinishOutcome, StoreError> {
        let Some(mut entry) = self.writer.entry(self.queue, sequence, false)? else { return Ok(FinishOutcome::Gone) };
        match end {
            AttemptEnd::Done => {
                remove_pending(self.writer, self.queue, sequence, &entry);
                self.writer.remove(Space::Calls, keys::message(sequence));
                count(self.writer, self.queue, |counts| counts.pending = counts.pending.saturating_sub(1))?;
                self.forget_after_retention(sequence, &entry.id);
                Ok(FinishOutcome::Done)
            }
            AttemptEnd::Never(error) => {
                self.bury(sequence, entry, error.clone()).map(|given_up| FinishOutcome::GivenUp(Box::new(given_up)))
            }
            AttemptEnd::Later { error, due_ms } | AttemptEnd::NotRun { error, due_ms, .. } => {
                entry.error.clone_from(error);
                if let AttemptEnd::NotRun { attempt, .. } = end {
                    entry.attempts = entry.attempts.min(attempt.saturating_sub(1));
                }
                if let Some(reason) = self.rules.give_up_reason(&entry, self.now_ms) {
                    return self
                        .bury(sequence, entry, reason)
                        .map(|given_up| FinishOutcome::GivenUp(Box::new(given_up)));
                }
                remove_pending(self.writer, self.queue, sequence, &entry);
                // A call that expires before it is due is looked at when it expires.
                let due_ms = (*due_ms).min(entry.expires_ms.unwrap_or(u64::MAX - 1));
                entry.state = CallState::Failed { due_ms };
                put_pending(self.writer, self.queue, sequence, &entry);
                Ok(FinishOutcome::Later)
            }
        }
    }

    /// Gives up a pending call.
    fn bury(&mut self, sequence: u64, mut entry: CallEntry, reason: String) -> Result<GivenUpCall, StoreError> {
        remove_pending(self.writer, self.queue, sequence, &entry);
        entry.error = reason;
        let keep = self.rules.dead_letters;
        let mut displaced = None;
        if keep {
            if self.writer.counts(self.queue)?.dead >= DEAD_MAX {
                displaced = self.drop_oldest_dead()?;
            }
            entry.state = CallState::Dead { since_ms: self.now_ms };
            self.writer.put(Space::Calls, keys::entry(self.queue, sequence, true), entry.encode());
        } else {
            self.writer.remove(Space::Calls, keys::message(sequence));
            self.forget_after_retention(sequence, &entry.id);
        }
        count(self.writer, self.queue, |counts| {
            counts.pending = counts.pending.saturating_sub(1);
            counts.dead += u64::from(keep);
        })?;
        Ok(GivenUpCall { entry, displaced })
    }

    /// Drops the oldest dead letter. Returns its id.
    fn drop_oldest_dead(&mut self) -> Result<Option<String>, StoreError> {
        let Some((sequence, oldest)) = self.writer.entries(self.queue, true, 0, 1)?.pop() else { return Ok(None) };
        self.writer.remove(Space::Calls, keys::entry(self.queue, sequence, true));
        self.writer.remove(Space::Calls, keys::message(sequence));
        self.forget_after_retention(sequence, &oldest.id);
        count(self.writer, self.queue, |counts| counts.dead = counts.dead.saturating_sub(1))?;
        Ok(Some(oldest.id))
    }

    fn forget_after_retention(&mut self, sequence: u64, id: &str) {
        let forget_ms = self.now_ms.saturating_add(self.rules.retention_ms());
        forget_later(self.writer, self.queue, sequence, id, forget_ms);
    }
}
