//! Retried calls: each is accepted once, and attempted in the order of time and priority until it is done, refused or given
//! up. Every operation reads a few keys, however long the queue is; `FORMAT.md` describes the format.

mod keys;
mod operator;
mod queue;
mod record;
mod running;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

pub use self::operator::{CallFilter, CallView, QueueView};
use self::queue::QueueWriter;
pub use self::queue::{AttemptEnd, CallStart, FinishOutcome, GivenUpCall, QueueRules, QueueStatus};
pub use self::record::{CallEntry, CallState, StoredTarget, call_time};
use self::record::{IdRecord, QueueCounts, milliseconds};
pub use self::running::{InWorkGuard, RetriedQueue, RetriedQueues};
use super::{KeyValue, Reader, Space, Store, StoreError, Writer};
use wasmcage_core::request::Deadline;

/// The queue for calls that name none, and for calls handed over from another cage whose queue does not exist here.
pub const DEFAULT_QUEUE: &str = "retry";
/// Most pending calls of a queue; more are not accepted.
const PENDING_MAX: u64 = 10_000_000;
/// Longest id of a call, its scope included.
pub const ID_BYTES_MAX: usize = 1 << 10;

/// A call that is to be accepted. The dispatcher creates it and has checked its names and grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCall {
    pub queue: String,
    /// The id that the caller gave, with its scope, or a new one.
    pub id: String,
    pub target: StoredTarget,
    /// Context and arguments, encoded as for calls to other cages.
    pub message: Vec<u8>,
    pub expires: Option<SystemTime>,
    pub not_before: Option<SystemTime>,
    pub attempts_max: Option<u32>,
    pub priority: i8,
}

/// Reads of retried calls, for `Reader` and `Writer`.
pub(super) trait CallReads {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    fn range(
        &self,
        space: Space,
        keys: &keys::KeyRange,
        limit: usize,
        descending: bool,
    ) -> Result<Vec<KeyValue>, StoreError>;

    fn counts(&self, queue: &str) -> Result<QueueCounts, StoreError> {
        let counts = self.get(Space::Calls, &keys::counts(queue))?;
        counts.map_or(Ok(QueueCounts::default()), |bytes| QueueCounts::decode(&bytes))
    }

    fn id_record(&self, id: &str) -> Result<Option<IdRecord>, StoreError> {
        self.get(Space::CallsSeen, &keys::id(id))?.map(|bytes| IdRecord::decode(&bytes)).transpose()
    }

    fn entry(&self, queue: &str, sequence: u64, dead: bool) -> Result<Option<CallEntry>, StoreError> {
        let bytes = self.get(Space::Calls, &keys::entry(queue, sequence, dead))?;
        bytes.map(|bytes| CallEntry::decode(&bytes)).transpose()
    }

    /// Returns entries of a queue, with their sequence numbers, in the order in which they were accepted.
    fn entries(&self, queue: &str, dead: bool, from: u64, limit: usize) -> Result<Vec<(u64, CallEntry)>, StoreError> {
        let found = self.range(Space::Calls, &keys::entries(queue, dead, from), limit, false)?;
        let decode = |(key, value): KeyValue| {
            Ok((keys::sequence(&key).ok_or_else(record::damaged)?, CallEntry::decode(&value)?))
        };
        found.into_iter().map(decode).collect()
    }
}

impl CallReads for Reader<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Reader::get(self, space, key)
    }

    fn range(
        &self,
        space: Space,
        keys: &keys::KeyRange,
        limit: usize,
        descending: bool,
    ) -> Result<Vec<KeyValue>, StoreError> {
        Reader::range(self, space, &keys.0, &keys.1, limit, descending)
    }
}

impl CallReads for Writer<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Writer::get(self, space, key)
    }

    fn range(
        &self,
        space: Space,
        keys: &keys::KeyRange,
        limit: usize,
        descending: bool,
    ) -> Result<Vec<KeyValue>, StoreError> {
        Writer::range(self, space, &keys.0, &keys.1, limit, descending)
    }
}

/// Accepts a call, once for its id. Returns that id, also when the call was accepted before.
///
/// # Errors
/// The store's; `QuotaExceeded` when the queue is full.
pub(super) fn accept(writer: &mut Writer<'_>, call: &NewCall) -> Result<String, StoreError> {
    accept_at(writer, call, now_ms())
}

fn accept_at(writer: &mut Writer<'_>, call: &NewCall, now_ms: u64) -> Result<String, StoreError> {
    if let Some(seen) = writer.id_record(&call.id)? {
        let Some(forget_ms) = seen.forget_ms.filter(|at| *at <= now_ms) else { return Ok(call.id.clone()) };
        writer.remove(Space::CallsSeen, keys::forget(&seen.queue, forget_ms, &call.id));
    }
    let mut counts = writer.counts(&call.queue)?;
    if counts.pending >= PENDING_MAX {
        let text = format!("queue {} holds {PENDING_MAX} pending calls", call.queue);
        return Err(StoreError::QuotaExceeded(text));
    }
    let sequence = writer.get(Space::Calls, keys::NEXT)?.map_or(Ok(1), |bytes| record::number(&bytes))?;
    let expires_ms = call.expires.map(milliseconds);
    // A call that expires before it is due is looked at when it expires.
    let wait_ms = call.not_before.map(|at| milliseconds(at).min(expires_ms.unwrap_or(u64::MAX - 1)));
    let wait_ms = wait_ms.filter(|at| *at > now_ms);
    let entry = CallEntry {
        id: call.id.clone(),
        target: call.target.clone(),
        state: wait_ms.map_or(CallState::Ready, |due_ms| CallState::Waiting { due_ms }),
        priority: call.priority,
        attempts: 0,
        attempts_max: call.attempts_max,
        accepted_ms: now_ms,
        first_started_ms: None,
        expires_ms,
        error: String::new(),
    };
    writer.put(Space::Calls, keys::NEXT.to_vec(), (sequence + 1).to_be_bytes().to_vec());
    writer.put(Space::Calls, keys::message(sequence), call.message.clone());
    let seen = IdRecord { sequence, queue: call.queue.clone(), forget_ms: None };
    writer.put(Space::CallsSeen, keys::id(&call.id), seen.encode());
    queue::put_pending(writer, &call.queue, sequence, &entry);
    writer.wake_queue(&call.queue);
    counts.pending += 1;
    writer.put(Space::Calls, keys::counts(&call.queue), counts.encode());
    Ok(call.id.clone())
}

/// Operations for the interface that works a queue off.
impl Store {
    /// Returns what this process knows of a queue besides the file.
    pub fn retried_queue(&self, name: &str) -> Arc<RetriedQueue> {
        self.retried_queues().get_or_create(name)
    }

    /// Returns whether a queue has something to do now, or else when it will.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn queue_status(&self, queue: &str, rules: &QueueRules) -> Result<QueueStatus, StoreError> {
        let in_work = self.retried_queue(queue).in_work();
        self.read(|reader| queue::status(reader, queue, rules, &in_work, now_ms()))
    }

    /// Makes calls ready that failed before the cage was started.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn resume_calls(&self, queue: &str, rules: QueueRules, deadline: Deadline) -> Result<(), StoreError> {
        loop {
            let queue = queue.to_owned();
            let resumed = self.write(deadline, move |writer| working(writer, &queue, &rules).resume()).await?;
            if resumed {
                return Ok(());
            }
        }
    }

    /// Records the start of attempts at up to `places` calls that are due.
    ///
    /// # Errors
    /// See the kinds. If the write was done all the same, these attempts start again with the same number, since they did not run.
    pub async fn begin_calls(
        &self,
        queue: &str,
        rules: QueueRules,
        places: usize,
        deadline: Deadline,
    ) -> Result<Vec<CallStart>, StoreError> {
        let known = self.retried_queue(queue);
        let (in_work, unconfirmed) = (known.in_work(), known.unconfirmed());
        let (writing, queue) = (known.clone(), queue.to_owned());
        let begun = self.write(deadline, move |writer| {
            let begun = working(writer, &queue, &rules).begin(&in_work, &unconfirmed, places)?;
            attempts(&begun).for_each(|(sequence, entry)| writing.note_begin(sequence, entry.attempts));
            Ok(begun)
        });
        let begun = begun.await?;
        attempts(&begun).for_each(|(sequence, _)| known.confirm_begin(sequence));
        Ok(begun)
    }

    /// Records the end of an attempt. A second record of the same end has no effect.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn finish_call(
        &self,
        queue: &str,
        rules: QueueRules,
        sequence: u64,
        end: AttemptEnd,
        deadline: Deadline,
    ) -> Result<FinishOutcome, StoreError> {
        let queue = queue.to_owned();
        self.write(deadline, move |writer| working(writer, &queue, &rules).finish(sequence, &end)).await
    }

    /// Returns the `NewCall::message` of a call; none when the call is not stored any more.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn call_message(&self, sequence: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|reader| reader.get(Space::Calls, &keys::message(sequence)))
    }

    /// Accepts a call, once for its id. Returns that id, also when the call was accepted before.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn accept_call(&self, call: NewCall, deadline: Deadline) -> Result<String, StoreError> {
        self.write(deadline, move |writer| accept(writer, &call)).await
    }
}

fn attempts(begun: &[CallStart]) -> impl Iterator<Item = (u64, &CallEntry)> {
    begun.iter().filter_map(|begun| match begun {
        CallStart::Attempt { sequence, entry } => Some((*sequence, entry)),
        CallStart::GivenUp(_) => None,
    })
}

fn now_ms() -> u64 {
    milliseconds(SystemTime::now())
}

fn working<'w, 'a>(writer: &'w mut Writer<'a>, queue: &'w str, rules: &'w QueueRules) -> QueueWriter<'w, 'a> {
    QueueWriter { writer, queue, rules, now_ms: now_ms() }
}
