//! What operators can see of retried calls and do with them: `wasmcage retry`.

use serde::Serialize;

use super::record::{CallEntry, CallState, call_time};
use super::{CallReads, keys, now_ms, queue};
use crate::{Space, Store, StoreError, Writer};
use wasmcage_core::request::Deadline;
use wasmcage_core::telemetry;

/// The id of a call that an operator drops is remembered so long: a caller that repeats the call does not get it back.
const DROPPED_RETENTION_MS: u64 = 3 * 24 * 3600 * 1000;

/// Selects the calls to list.
#[derive(Clone, Debug, Default)]
pub struct CallFilter {
    /// One queue; none: all queues.
    pub queue: Option<String>,
    /// List dead letters instead of pending calls.
    pub dead: bool,
    /// List at most so many.
    pub limit: usize,
}

/// One call, as operators see it. Times are in RFC 3339, UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallView {
    pub id: String,
    pub queue: String,
    /// `ready`, `in work`, `waiting` (for its first time), `failed` (to be made again), `dead`.
    pub state: &'static str,
    /// The cage that is called; none: this one.
    pub cage: Option<String>,
    pub module: String,
    pub function: String,
    /// The cage that asked for the call.
    pub origin: String,
    pub priority: i8,
    /// Number of attempts that were started.
    pub attempts: u32,
    pub attempts_max: Option<u32>,
    pub accepted: String,
    pub first_started: Option<String>,
    /// When it is attempted next, if not now.
    pub due: Option<String>,
    pub expires: Option<String>,
    /// When it was given up.
    pub given_up: Option<String>,
    /// Why the latest attempt failed, or why the call was given up.
    pub error: Option<String>,
}

/// A queue that has pending calls or dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueView {
    pub queue: String,
    pub pending: u64,
    pub in_work: usize,
    pub dead: u64,
}

/// A call in the store.
struct StoredCall {
    queue: String,
    sequence: u64,
    entry: CallEntry,
    dead: bool,
}

impl Store {
    /// Returns the queues that have pending calls or dead letters, by name.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn call_queues(&self) -> Result<Vec<QueueView>, StoreError> {
        const QUEUES_MAX: usize = 10_000;
        let found =
            self.read(|reader| CallReads::range(reader, Space::Calls, &keys::all_counts(), QUEUES_MAX, false))?;
        let mut views = Vec::with_capacity(found.len());
        for (key, value) in found {
            let queue = keys::queue_of_counts(&key).ok_or_else(super::record::damaged)?;
            let counts = super::QueueCounts::decode(&value)?;
            let in_work = self.retried_queues().get(queue).map_or(0, |queue| queue.in_work().len());
            views.push(QueueView { queue: queue.to_owned(), pending: counts.pending, in_work, dead: counts.dead });
        }
        Ok(views)
    }

    /// Returns calls in the order in which they were accepted, queue by queue.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn calls(&self, wanted: &CallFilter) -> Result<Vec<CallView>, StoreError> {
        let queues = match &wanted.queue {
            Some(queue) => vec![queue.clone()],
            None => self.call_queues()?.into_iter().map(|view| view.queue).collect(),
        };
        let mut views = Vec::new();
        for queue in queues {
            let room = wanted.limit - views.len();
            let entries = self.read(|reader| reader.entries(&queue, wanted.dead, 0, room))?;
            views.extend(entries.iter().map(|(sequence, entry)| self.view(&queue, *sequence, entry)));
        }
        Ok(views)
    }

    /// Returns a pending or dead call and its message.
    ///
    /// # Errors
    /// `Invalid` when there is none with this id; the store cannot be read.
    pub fn find_call(&self, id: &str) -> Result<(CallView, Vec<u8>), StoreError> {
        let (found, message) = self.read(|reader| {
            let found = find(reader, id)?;
            let message = reader.get(Space::Calls, &keys::message(found.sequence))?;
            Ok((found, message.unwrap_or_default()))
        })?;
        Ok((self.view(&found.queue, found.sequence, &found.entry), message))
    }

    /// Makes a call ready: a waiting one, or a dead one, whose attempts are counted anew and which does not expire any more. With
    /// `to` it is moved into that queue, where its place depends on when it was accepted.
    ///
    /// # Errors
    /// `Invalid` when there is none with this id, or it is in work; see the kinds.
    pub async fn run_call(&self, id: &str, to: Option<&str>, deadline: Deadline) -> Result<(), StoreError> {
        let to = to.map(str::to_owned);
        self.change_call(id, deadline, move |writer, found| {
            let mut entry = CallEntry { state: CallState::Ready, ..found.entry.clone() };
            if found.dead {
                entry = CallEntry { attempts: 0, first_started_ms: None, expires_ms: None, ..entry };
            }
            remove(writer, found)?;
            put(writer, to.as_ref().unwrap_or(&found.queue), found.sequence, &entry)
        })
        .await
    }

    /// Drops a call. Its id is remembered for three days.
    ///
    /// # Errors
    /// Those of `run_call`.
    pub async fn drop_call(&self, id: &str, deadline: Deadline) -> Result<(), StoreError> {
        self.change_call(id, deadline, |writer, found| {
            let StoredCall { queue, sequence, entry, .. } = found;
            remove(writer, found)?;
            writer.remove(Space::Calls, keys::message(*sequence));
            let forget_ms = now_ms().saturating_add(DROPPED_RETENTION_MS);
            queue::forget_later(writer, queue, *sequence, &entry.id, forget_ms);
            Ok(())
        })
        .await
    }

    /// Changes a call unless it is in work: the end of an attempt is recorded in the queue in which it was started.
    async fn change_call(
        &self,
        id: &str,
        deadline: Deadline,
        mut change: impl FnMut(&mut Writer<'_>, &StoredCall) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let found = self.read(|reader| find(reader, id))?;
        if self.retried_queues().get(&found.queue).is_some_and(|queue| queue.is_in_work(found.sequence)) {
            return Err(StoreError::Invalid(format!("call {id} is being made")));
        }
        let id = id.to_owned();
        self.write(deadline, move |writer| {
            let found = find(writer, &id)?;
            change(writer, &found)
        })
        .await
    }

    fn view(&self, queue: &str, sequence: u64, entry: &CallEntry) -> CallView {
        let utc = |at_ms: u64| telemetry::utc(call_time(at_ms));
        let in_work = self.retried_queues().get(queue).is_some_and(|queue| queue.is_in_work(sequence));
        let (state, due_ms, dead_ms) = match entry.state {
            // Its last attempt may still be marked as in work.
            CallState::Dead { since_ms } => ("dead", None, Some(since_ms)),
            _ if in_work => ("in work", None, None),
            CallState::Ready => ("ready", None, None),
            CallState::Waiting { due_ms } => ("waiting", Some(due_ms), None),
            CallState::Failed { due_ms } => ("failed", Some(due_ms), None),
        };
        CallView {
            id: entry.id.clone(),
            queue: queue.to_owned(),
            state,
            cage: entry.target.cage.clone(),
            module: entry.target.module.clone(),
            function: entry.target.function.clone(),
            origin: entry.target.origin.clone(),
            priority: entry.priority,
            attempts: entry.attempts,
            attempts_max: entry.attempts_max,
            accepted: utc(entry.accepted_ms),
            first_started: entry.first_started_ms.map(utc),
            due: due_ms.map(utc),
            expires: entry.expires_ms.map(utc),
            given_up: dead_ms.map(utc),
            error: Some(entry.error.clone()).filter(|error| !error.is_empty()),
        }
    }
}

fn find(source: &impl CallReads, id: &str) -> Result<StoredCall, StoreError> {
    let none = || StoreError::Invalid(format!("there is no call {id}"));
    let seen = source.id_record(id)?.ok_or_else(none)?;
    for dead in [false, true] {
        if let Some(entry) = source.entry(&seen.queue, seen.sequence, dead)? {
            return Ok(StoredCall { queue: seen.queue, sequence: seen.sequence, entry, dead });
        }
    }
    Err(StoreError::Invalid(format!("call {id} was made or dropped before; only its id is still remembered")))
}

/// Removes a call from its queue.
fn remove(writer: &mut Writer<'_>, found: &StoredCall) -> Result<(), StoreError> {
    let StoredCall { queue, sequence, entry, dead } = found;
    if *dead {
        writer.remove(Space::Calls, keys::entry(queue, *sequence, true));
    } else {
        queue::remove_pending(writer, queue, *sequence, entry);
    }
    queue::count(writer, queue, |counts| {
        let of = if *dead { &mut counts.dead } else { &mut counts.pending };
        *of = of.saturating_sub(1);
    })
}

/// Puts a call that was removed from its queue into a queue.
fn put(writer: &mut Writer<'_>, queue: &str, sequence: u64, entry: &CallEntry) -> Result<(), StoreError> {
    queue::put_pending(writer, queue, sequence, entry);
    queue::count(writer, queue, |counts| counts.pending += 1)?;
    let seen = super::IdRecord { sequence, queue: queue.to_owned(), forget_ms: None };
    writer.put(Space::CallsSeen, keys::id(&entry.id), seen.encode());
    writer.wake_queue(queue);
    Ok(())
}
