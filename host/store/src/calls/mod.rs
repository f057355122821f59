//! Retried calls: accepted once, made in the order of their time and priority, until each is done, refused or given up. All
//! of it is found by reads of a few keys, however long a queue is; `FORMAT.md` says what is stored how.

mod keys;
mod operator;
mod queue;
mod record;
mod running;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

pub use self::operator::{CallView, CallsWanted, QueueView};
use self::queue::Working;
pub use self::queue::{Begun, End, Finished, GivenUp, Look, Rules};
pub use self::record::{CallEntry, CallState, Counts, StoredTarget, call_time};
use self::record::{Seen, milliseconds};
pub use self::running::{InWork, RetriedQueue, RetriedQueues};
use super::{Entry, Reader, Space, Store, StoreError, Writer};
use wasmcage_core::request::Deadline;

/// The queue of a call that names none, and of one that was handed over and names one that is not here.
pub const DEFAULT_QUEUE: &str = "retry";
/// A queue holds so many calls that are not done; more are not accepted.
pub const PENDING_MAX: u64 = 10_000_000;
/// A longer name of a call is not accepted, its scope included.
pub const ID_BYTES_MAX: usize = 1 << 10;

/// A call that is to be accepted. Made by the dispatcher, which checks names and grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCall {
    pub queue: String,
    /// The one given, with its scope, or a new one.
    pub id: String,
    pub target: StoredTarget,
    /// Context and arguments, as they are carried to other cages.
    pub message: Vec<u8>,
    pub expires: Option<SystemTime>,
    pub not_before: Option<SystemTime>,
    pub attempts_max: Option<u32>,
    pub priority: i8,
}

/// Where keys are looked up.
pub(super) trait Source {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    fn range(&self, space: Space, keys: &keys::Keys, limit: usize, descending: bool) -> Result<Vec<Entry>, StoreError>;

    fn counts(&self, queue: &str) -> Result<Counts, StoreError> {
        let counts = self.get(Space::Calls, &keys::counts(queue))?;
        counts.map_or(Ok(Counts::default()), |bytes| Counts::decode(&bytes))
    }

    fn seen(&self, id: &str) -> Result<Option<Seen>, StoreError> {
        self.get(Space::CallsSeen, &keys::id(id))?.map(|bytes| Seen::decode(&bytes)).transpose()
    }

    fn entry(&self, queue: &str, sequence: u64, dead: bool) -> Result<Option<CallEntry>, StoreError> {
        let bytes = self.get(Space::Calls, &keys::entry(queue, sequence, dead))?;
        bytes.map(|bytes| CallEntry::decode(&bytes)).transpose()
    }

    /// Entries of a queue in the order in which they were accepted, with their numbers.
    fn entries(&self, queue: &str, dead: bool, from: u64, limit: usize) -> Result<Vec<(u64, CallEntry)>, StoreError> {
        let found = self.range(Space::Calls, &keys::entries(queue, dead, from), limit, false)?;
        let decode =
            |(key, value): Entry| Ok((keys::sequence(&key).ok_or_else(record::damaged)?, CallEntry::decode(&value)?));
        found.into_iter().map(decode).collect()
    }
}

impl Source for Reader<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Reader::get(self, space, key)
    }

    fn range(&self, space: Space, keys: &keys::Keys, limit: usize, descending: bool) -> Result<Vec<Entry>, StoreError> {
        Reader::range(self, space, &keys.0, &keys.1, limit, descending)
    }
}

impl Source for Writer<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Writer::get(self, space, key)
    }

    fn range(&self, space: Space, keys: &keys::Keys, limit: usize, descending: bool) -> Result<Vec<Entry>, StoreError> {
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
    if let Some(seen) = writer.seen(&call.id)? {
        let Some(forget_ms) = seen.forget_ms.filter(|at| *at <= now_ms) else { return Ok(call.id.clone()) };
        writer.remove(Space::CallsSeen, keys::forget(&seen.queue, forget_ms, &call.id));
    }
    let mut counts = writer.counts(&call.queue)?;
    if counts.pending >= PENDING_MAX {
        let text = format!("queue {} holds {PENDING_MAX} calls that are not done", call.queue);
        return Err(StoreError::QuotaExceeded(text));
    }
    let sequence = writer.get(Space::Calls, keys::NEXT)?.map_or(Ok(1), |bytes| record::number(&bytes))?;
    let expires_ms = call.expires.map(milliseconds);
    // Its end is looked at in time, too.
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
    let seen = Seen { sequence, queue: call.queue.clone(), forget_ms: None };
    writer.put(Space::CallsSeen, keys::id(&call.id), seen.encode());
    queue::put_pending(writer, &call.queue, sequence, &entry);
    writer.wake_queue(&call.queue);
    counts.pending += 1;
    writer.put(Space::Calls, keys::counts(&call.queue), counts.encode());
    Ok(call.id.clone())
}

/// For whoever works a queue off.
impl Store {
    /// What is known of a queue while the process runs.
    pub fn retried_queue(&self, name: &str) -> Arc<RetriedQueue> {
        self.retried_queues().get_or_create(name)
    }

    /// What there is to do in a queue now.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn look_for_calls(&self, queue: &str, rules: &Rules) -> Result<Look, StoreError> {
        let in_work = self.retried_queue(queue).in_work();
        self.read(|reader| queue::look(reader, queue, rules, &in_work, now_ms()))
    }

    /// Makes ready what failed before the cage was started.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn resume_calls(&self, queue: &str, rules: Rules, deadline: Deadline) -> Result<(), StoreError> {
        loop {
            let queue = queue.to_owned();
            let resumed = self.write(deadline, move |writer| working(writer, &queue, &rules).resume()).await?;
            if resumed {
                return Ok(());
            }
        }
    }

    /// Records the beginning of attempts at up to `places` calls that are due.
    ///
    /// # Errors
    /// See the kinds; what was begun then is begun again under the same number, since it did not run.
    pub async fn begin_calls(
        &self,
        queue: &str,
        rules: Rules,
        places: usize,
        deadline: Deadline,
    ) -> Result<Vec<Begun>, StoreError> {
        let known = self.retried_queue(queue);
        let (in_work, unrun) = (known.in_work(), known.unrun());
        let (writing, queue) = (known.clone(), queue.to_owned());
        let begun = self.write(deadline, move |writer| {
            let begun = working(writer, &queue, &rules).begin(&in_work, &unrun, places)?;
            attempts(&begun).for_each(|(sequence, entry)| writing.may_begin(sequence, entry.attempts));
            Ok(begun)
        });
        let begun = begun.await?;
        attempts(&begun).for_each(|(sequence, _)| known.runs(sequence));
        Ok(begun)
    }

    /// Records the end of an attempt, once however often it is asked for.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn finish_call(
        &self,
        queue: &str,
        rules: Rules,
        sequence: u64,
        end: End,
        deadline: Deadline,
    ) -> Result<Finished, StoreError> {
        let queue = queue.to_owned();
        self.write(deadline, move |writer| working(writer, &queue, &rules).finish(sequence, &end)).await
    }

    /// What a call says: as `NewCall::message`. None when it is not there any more.
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

fn attempts(begun: &[Begun]) -> impl Iterator<Item = (u64, &CallEntry)> {
    begun.iter().filter_map(|begun| match begun {
        Begun::Attempt { sequence, entry } => Some((*sequence, entry)),
        Begun::GivenUp(_) => None,
    })
}

fn now_ms() -> u64 {
    milliseconds(SystemTime::now())
}

fn working<'w, 'a>(writer: &'w mut Writer<'a>, queue: &'w str, rules: &'w Rules) -> Working<'w, 'a> {
    Working { writer, queue, rules, now_ms: now_ms() }
}
