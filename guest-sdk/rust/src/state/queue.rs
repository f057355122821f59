//! Durable queues: first in, first out.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{StateError, from_payload, state, to_payload};
use crate::bindings::imports::wasmcage::cage::types::Payload;

/// A durable queue of this module with this name. It needs not be created.
///
/// ```no_run
/// # use wasmcage_guest::{Result, state};
/// # fn f() -> Result<()> {
/// let mail = state::queue("mail");
/// mail.push(&("alice@example.org", "Welcome !"))?;
/// while let Some((to, text)) = mail.pop::<(String, String)>()? {
///     // ..
/// }
/// # Ok(()) }
/// ```
pub fn queue(name: &str) -> Queue<'_> {
    Queue { name }
}

/// A durable queue, made by [`queue`].
#[derive(Clone, Copy, Debug)]
pub struct Queue<'a> {
    name: &'a str,
}

impl Queue<'_> {
    /// Adds an entry at the end, and returns the queue's new length.
    ///
    /// # Errors
    /// See the kinds.
    pub fn push<T: Serialize + ?Sized>(self, entry: &T) -> Result<u64, StateError> {
        self.push_raw(&to_payload(entry)?)
    }

    /// Adds bytes as an entry at the end, and returns the queue's new length.
    ///
    /// # Errors
    /// See the kinds.
    pub fn push_bytes(self, entry: impl Into<Vec<u8>>) -> Result<u64, StateError> {
        self.push_raw(&Payload::Bytes(entry.into()))
    }

    /// Adds an unconverted entry at the end, and returns the queue's new length.
    ///
    /// # Errors
    /// See the kinds.
    pub fn push_raw(self, entry: &Payload) -> Result<u64, StateError> {
        Ok(state::queue_push(self.name, entry)?)
    }

    /// Takes the first entry; none when the queue is empty. To take it only when the work on it is done, put the `pop` into
    /// the [`transaction`](super::transaction) that writes the work's result.
    ///
    /// # Errors
    /// [`StateError::BadValue`] when the entry does not fit `T`; it is taken all the same. See the other kinds.
    pub fn pop<T: DeserializeOwned>(self) -> Result<Option<T>, StateError> {
        self.pop_raw()?.map(|entry| from_payload(self.name, entry)).transpose()
    }

    /// Takes the first entry, unconverted; none when the queue is empty.
    ///
    /// # Errors
    /// See the kinds.
    pub fn pop_raw(self) -> Result<Option<Payload>, StateError> {
        Ok(state::queue_pop(self.name)?)
    }

    /// Returns up to `limit` entries from the first on, without taking them.
    ///
    /// # Errors
    /// See the kinds.
    pub fn peek<T: DeserializeOwned>(self, limit: u32) -> Result<Vec<T>, StateError> {
        self.peek_raw(limit)?.into_iter().map(|entry| from_payload(self.name, entry)).collect()
    }

    /// Returns up to `limit` unconverted entries from the first on, without taking them.
    ///
    /// # Errors
    /// See the kinds.
    pub fn peek_raw(self, limit: u32) -> Result<Vec<Payload>, StateError> {
        Ok(state::queue_peek(self.name, limit)?)
    }

    /// # Errors
    /// See the kinds.
    #[expect(clippy::len_without_is_empty, reason = "it would ask the same, and a queue is nobody's collection")]
    pub fn len(self) -> Result<u64, StateError> {
        Ok(state::queue_length(self.name)?)
    }
}
