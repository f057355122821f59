//! Encodes and decodes the records of retried calls: see `FORMAT.md`. Records come from a file, so every length is checked
//! against the bytes that are there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut as _};

use crate::StoreError;

const VERSION: u8 = 1;
/// Longer error texts are cut.
const ERROR_BYTES_MAX: usize = 1 << 10;

/// The function that is called, and the cage that asked for the call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredTarget {
    /// The cage that asked for the call, or another caller that may.
    pub origin: String,
    /// The cage that is called; none for the cage of this store.
    pub cage: Option<String>,
    pub module: String,
    pub function: String,
}

/// State of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallState {
    /// To be attempted as soon as the interface can.
    Ready,
    /// Not to be attempted before its time.
    Waiting { due_ms: u64 },
    /// It failed and is to be attempted again then.
    Failed { due_ms: u64 },
    /// It was given up then.
    Dead { since_ms: u64 },
}

/// All that is stored of a call except its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallEntry {
    pub id: String,
    pub target: StoredTarget,
    pub state: CallState,
    pub priority: i8,
    /// Number of attempts that were started.
    pub attempts: u32,
    /// Most attempts, if the call has a lower limit than its queue.
    pub attempts_max: Option<u32>,
    /// Milliseconds since 1970, as all times here.
    pub accepted_ms: u64,
    /// Start of the first attempt.
    pub first_started_ms: Option<u64>,
    pub expires_ms: Option<u64>,
    /// Why the latest attempt failed, or why the call was given up; empty if neither.
    pub error: String,
}

/// The call that an id belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdRecord {
    pub sequence: u64,
    pub queue: String,
    /// When the id is forgotten; none while the call is pending or a dead letter.
    pub forget_ms: Option<u64>,
}

/// Number of pending calls and dead letters of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueCounts {
    pub(crate) pending: u64,
    pub(crate) dead: u64,
}

pub(super) fn milliseconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Converts a stored time. A time that is too late for the system's clock becomes the year 6325.
pub fn call_time(milliseconds: u64) -> SystemTime {
    const LATEST: Duration = Duration::from_secs(1 << 37);
    UNIX_EPOCH + Duration::from_millis(milliseconds).min(LATEST)
}

impl CallEntry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128 + self.id.len() + self.error.len());
        bytes.put_u8(VERSION);
        let (state, at) = match self.state {
            CallState::Ready => (0, 0),
            CallState::Waiting { due_ms } => (1, due_ms),
            CallState::Failed { due_ms } => (2, due_ms),
            CallState::Dead { since_ms } => (3, since_ms),
        };
        bytes.put_u8(state);
        bytes.put_u64(at);
        bytes.put_i8(self.priority);
        bytes.put_u32(self.attempts);
        bytes.put_u32(self.attempts_max.unwrap_or(0));
        bytes.put_u64(self.accepted_ms);
        bytes.put_u64(self.first_started_ms.unwrap_or(0));
        bytes.put_u64(self.expires_ms.unwrap_or(0));
        let StoredTarget { origin, cage, module, function } = &self.target;
        let error = cut(&self.error, ERROR_BYTES_MAX);
        for text in [&self.id, origin, cage.as_deref().unwrap_or_default(), module, function, error] {
            put_text(&mut bytes, text);
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut fields = Fields(bytes);
        fields.version()?;
        let (state, at) = (fields.u8()?, fields.u64()?);
        let state = match state {
            0 => CallState::Ready,
            1 => CallState::Waiting { due_ms: at },
            2 => CallState::Failed { due_ms: at },
            3 => CallState::Dead { since_ms: at },
            _ => return Err(damaged()),
        };
        let priority = fields.u8()? as i8;
        let (attempts, attempts_max) = (fields.u32()?, fields.u32()?);
        let (accepted_ms, first_started_ms, expires_ms) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (id, origin, cage) = (fields.text()?, fields.text()?, fields.text()?);
        let (module, function, error) = (fields.text()?, fields.text()?, fields.text()?);
        Ok(Self {
            id,
            target: StoredTarget { origin, cage: Some(cage).filter(|cage| !cage.is_empty()), module, function },
            state,
            priority,
            attempts,
            attempts_max: Some(attempts_max).filter(|max| *max > 0),
            accepted_ms,
            first_started_ms: Some(first_started_ms).filter(|at| *at > 0),
            expires_ms: Some(expires_ms).filter(|at| *at > 0),
            error,
        })
    }
}

impl IdRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + self.queue.len());
        bytes.put_u8(VERSION);
        bytes.put_u64(self.sequence);
        bytes.put_u64(self.forget_ms.unwrap_or(0));
        put_text(&mut bytes, &self.queue);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut fields = Fields(bytes);
        fields.version()?;
        let (sequence, forget_ms) = (fields.u64()?, fields.u64()?);
        Ok(Self { sequence, queue: fields.text()?, forget_ms: Some(forget_ms).filter(|at| *at > 0) })
    }
}

impl QueueCounts {
    pub(super) fn encode(self) -> Vec<u8> {
        [self.pending.to_be_bytes(), self.dead.to_be_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut fields = Fields(bytes);
        Ok(Self { pending: fields.u64()?, dead: fields.u64()? })
    }
}

pub(super) fn number(bytes: &[u8]) -> Result<u64, StoreError> {
    Fields(bytes).u64()
}

pub(super) fn damaged() -> StoreError {
    StoreError::damaged("the record of a retried call")
}

/// Cuts a text to at most so many bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Texts are shorter than 64 KiB: names were checked, errors are cut.
fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let text = cut(text, u16::MAX.into());
    bytes.put_u16(text.len() as u16);
    bytes.put_slice(text.as_bytes());
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn version(&mut self) -> Result<(), StoreError> {
        match self.u8()? {
            VERSION => Ok(()),
            _ => Err(damaged()),
        }
    }

    fn u8(&mut self) -> Result<u8, StoreError> {
        self.0.try_get_u8().map_err(|_| damaged())
    }

    fn u32(&mut self) -> Result<u32, StoreError> {
        self.0.try_get_u32().map_err(|_| damaged())
    }

    fn u64(&mut self) -> Result<u64, StoreError> {
        self.0.try_get_u64().map_err(|_| damaged())
    }

    fn text(&mut self) -> Result<String, StoreError> {
        let length = usize::from(self.0.try_get_u16().map_err(|_| damaged())?);
        let (text, rest) = self.0.split_at_checked(length).ok_or_else(damaged)?;
        self.0 = rest;
        std::str::from_utf8(text).map(str::to_owned).map_err(|_| damaged())
    }
}
