//! The cage's durable data: one file, `state/store.redb`, written by one thread that groups writes into commits. What a
//! write's caller is told is on the disk. `FORMAT.md` beside this file says what is stored how.

mod calls;
mod error;
mod state;

use std::path::{Path, PathBuf};

pub use self::calls::{
    Begun, CallEntry, CallState, CallView, CallsWanted, Counts, DEFAULT_QUEUE, End, Finished, ID_BYTES_MAX, InWork,
    Look, NewCall, PENDING_MAX, Queue, QueueView, Queues, Rules, StoredTarget, call_time,
};
pub use self::error::StoreError;
pub use self::state::{Outcome, Page, Quota, Range, StateValue, Step};
use crate::request::Deadline;

/// What the cage's configuration says of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// With less room on the disk, nothing is written.
    pub minimum_free_bytes: u64,
}

/// One for a cage. The file is opened, or made, when it is first needed.
pub struct Store {
    directory: PathBuf,
    settings: StoreSettings,
    queues: Queues,
}

/// Tables of the file: keys and values are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Of modules' keys.
    Keys,
    /// Of modules' queues.
    Queues,
    /// Bytes and keys of each module.
    Usage,
    /// Retried calls: the calls themselves, when they are due, names that were seen.
    Calls,
    CallsDue,
    CallsSeen,
    /// Of interfaces: what they must know again after a restart.
    Interfaces,
}

/// One write in the group that is being committed. Sees what it has done itself; all of it is dropped when it fails, and
/// none of it is visible to others before it is on the disk.
pub struct Writer<'a> {
    _store: &'a Store,
}

/// What was committed when the read began.
pub struct Reader<'a> {
    _store: &'a Store,
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

impl Store {
    pub fn new(directory: &Path, settings: StoreSettings) -> Self {
        Self { directory: directory.to_owned(), settings, queues: Queues::default() }
    }

    /// Queues of retried calls, as far as they are worked off.
    pub fn queues(&self) -> &Queues {
        &self.queues
    }

    /// # Errors
    /// The store cannot be read.
    pub fn read<T>(&self, _work: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        Err(self.unavailable())
    }

    /// Has the writing thread do `work`, and waits until it is on the disk. `work` may be done again when the commit that it
    /// was in fails for another's sake.
    ///
    /// # Errors
    /// That of `work`, after which nothing of it is done; `Unavailable`; `TimedOut`, after which it may be done or not.
    pub async fn write<T: Send + 'static>(
        &self,
        _deadline: Deadline,
        _work: impl FnMut(&mut Writer<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        Err(self.unavailable())
    }

    fn unavailable(&self) -> StoreError {
        let (directory, free) = (self.directory.display(), self.settings.minimum_free_bytes);
        StoreError::Unavailable(format!("{directory}: there is no store yet ({free})"))
    }
}

impl Reader<'_> {
    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, _space: Space, _key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    /// Up to `limit` entries from `from` (included) to `to` (not included), from the last on when `descending`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn range(
        &self,
        _space: Space,
        _from: &[u8],
        _to: &[u8],
        _limit: usize,
        _descending: bool,
    ) -> Result<Vec<Entry>, StoreError> {
        Ok(Vec::new())
    }
}

impl Writer<'_> {
    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, _space: Space, _key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    /// As of a `Reader`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn range(
        &self,
        _space: Space,
        _from: &[u8],
        _to: &[u8],
        _limit: usize,
        _descending: bool,
    ) -> Result<Vec<Entry>, StoreError> {
        Ok(Vec::new())
    }

    pub fn put(&mut self, _space: Space, _key: Vec<u8>, _value: Vec<u8>) {}

    pub fn remove(&mut self, _space: Space, _key: Vec<u8>) {}

    /// Wakes whoever works off that queue, once this is on the disk.
    pub fn wake_queue(&mut self, _name: &str) {}
}
