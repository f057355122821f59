//! A module's keys and queues: steps of its transactions, done by the writing thread; scans.

use super::calls::NewCall;
use super::{Reader, Store, StoreError, Writer};
use crate::request::Deadline;

/// What a key or an entry of a queue holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateValue {
    Json(String),
    Bytes(Vec<u8>),
}

/// What a module may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Of keys, values and entries of queues together.
    pub bytes: u64,
    /// Keys and entries of queues.
    pub entries: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { bytes: 1 << 30, entries: 10_000_000 }
    }
}

/// Which keys a scan goes through, in the order of their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub prefix: String,
    pub from: Option<String>,
    pub to: Option<String>,
    pub descending: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<(String, StateValue)>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// One step of a transaction. Later ones see what earlier ones did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Get(String),
    Set(String, StateValue),
    Delete(String),
    Check(String, Option<StateValue>),
    Increment(String, i64),
    Push(String, StateValue),
    Pop(String),
    Length(String),
    Retry(Box<NewCall>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Value(Option<StateValue>),
    Deleted(bool),
    Number(i64),
    Id(String),
}

impl Store {
    /// Does all steps, in order, or none. With `expected`, none is done either unless they give just that
    /// (`Conflict`, with the number of the first that does not).
    ///
    /// # Errors
    /// See the kinds.
    pub async fn transact(
        &self,
        module: &str,
        quota: Quota,
        steps: Vec<Step>,
        expected: Option<Vec<Outcome>>,
        deadline: Deadline,
    ) -> Result<Vec<Outcome>, StoreError> {
        let module = module.to_owned();
        self.write(deadline, move |writer| transact(writer, &module, quota, &steps, expected.as_deref())).await
    }

    /// What the steps would give now, with nothing done.
    ///
    /// # Errors
    /// See the kinds.
    pub fn rehearse(&self, _module: &str, _quota: Quota, _steps: &[Step]) -> Result<Vec<Outcome>, StoreError> {
        self.read(|_reader| Ok(Vec::new()))
    }

    /// # Errors
    /// See the kinds.
    pub fn get(&self, _module: &str, _key: &str) -> Result<Option<StateValue>, StoreError> {
        self.read(|_reader: &Reader<'_>| Ok(None))
    }

    /// # Errors
    /// See the kinds; a cursor that no page gave.
    pub fn scan(
        &self,
        _module: &str,
        _range: &Range,
        _limit: usize,
        _cursor: Option<&str>,
    ) -> Result<Page, StoreError> {
        self.read(|_reader| Ok(Page::default()))
    }

    /// # Errors
    /// See the kinds.
    pub fn peek(&self, _module: &str, _queue: &str, _limit: usize) -> Result<Vec<StateValue>, StoreError> {
        self.read(|_reader| Ok(Vec::new()))
    }

    /// # Errors
    /// See the kinds.
    pub fn length(&self, _module: &str, _queue: &str) -> Result<u64, StoreError> {
        self.read(|_reader| Ok(0))
    }
}

/// For writes that do more than one module's steps.
///
/// # Errors
/// See the kinds; nothing may be written by the caller after one.
pub(super) fn transact(
    _writer: &mut Writer<'_>,
    _module: &str,
    _quota: Quota,
    _steps: &[Step],
    _expected: Option<&[Outcome]>,
) -> Result<Vec<Outcome>, StoreError> {
    Ok(Vec::new())
}
