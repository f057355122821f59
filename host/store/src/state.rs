//! Keys and queues of modules: reads, and transactions of steps, which the writing thread does.

mod keys;
mod pages;
mod steps;
mod usage;

use self::keys::{check_key, check_module, check_queue};
use self::steps::StepRunner;
pub(super) use self::usage::UsageCount;
use super::access::Writer;
use super::calls::NewCall;
use super::overlay::Overlay;
use super::{Space, Store, StoreError};
use wasmcage_core::request::Deadline;
use wasmcage_core::store_settings::Quota;

/// Longest key of a module.
const KEY_BYTES_MAX: usize = 1_024;
/// Longest name of a queue.
const QUEUE_NAME_BYTES_MAX: usize = 255;
/// Largest value of a key, and largest entry of a queue.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// Most steps of one transaction.
pub const STEPS_MAX: usize = 10_000;
/// Most bytes that a transaction may write, keys and values together; and, counted apart, that its steps may return.
const TRANSACTION_BYTES_MAX: usize = 64 << 20;

/// The value of a key, or an entry of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateValue {
    Json(String),
    Bytes(Vec<u8>),
}

/// The keys that a scan returns, in the order of their bytes.
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
    /// The cursor of the next page; none on the last page.
    pub next: Option<String>,
}

/// One step of a transaction. Later steps see the effects of earlier ones.
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

/// The result of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    Done,
    Value(Option<StateValue>),
    Deleted(bool),
    Number(i64),
    Id(String),
}

impl Store {
    /// Does all steps, in order, or none. With `expected`, none is done unless the steps have exactly these results: otherwise
    /// it fails with `Conflict` and the index of the first step with another result.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn transact(
        &self,
        module: &str,
        quota: Quota,
        steps: Vec<Step>,
        expected: Option<Vec<StepResult>>,
        deadline: Deadline,
    ) -> Result<Vec<StepResult>, StoreError> {
        let module = module.to_owned();
        self.write(deadline, move |writer| transact(writer, &module, quota, &steps, expected.as_deref())).await
    }

    /// Returns the results that the steps would have now, without doing them.
    ///
    /// # Errors
    /// See the kinds.
    pub fn rehearse(&self, module: &str, quota: Quota, steps: &[Step]) -> Result<Vec<StepResult>, StoreError> {
        self.read(|reader| {
            let none_before = Overlay::default();
            transact(&mut Writer::new(reader.snapshot, &none_before, &self.file.queues), module, quota, steps, None)
        })
    }

    /// Returns the value of a key.
    ///
    /// # Errors
    /// See the kinds.
    pub fn get(&self, module: &str, key: &str) -> Result<Option<StateValue>, StoreError> {
        check_module(module)?;
        check_key(key)?;
        let key = keys::key(module, key);
        self.read(|reader| reader.with(Space::Keys, &key, StateValue::decode)?.transpose())
    }

    /// Returns up to `limit` entries of the range, and up to about 8 MiB of them, but at least one if there is one.
    ///
    /// # Errors
    /// See the kinds; a cursor that no page gave.
    pub fn scan(&self, module: &str, range: &Range, limit: usize, cursor: Option<&str>) -> Result<Page, StoreError> {
        check_module(module)?;
        self.read(|reader| pages::scan(reader, module, range, limit, cursor))
    }

    /// Returns up to `limit` entries from the first on, and up to about 8 MiB of them, but at least one if there is one.
    ///
    /// # Errors
    /// See the kinds.
    pub fn peek(&self, module: &str, queue: &str, limit: usize) -> Result<Vec<StateValue>, StoreError> {
        let page = self.queue_page(module, queue, limit, None)?;
        Ok(page.entries.into_iter().map(|(_, value)| value).collect())
    }

    /// As `peek`, with a cursor. The entries of the page have empty names.
    ///
    /// # Errors
    /// See the kinds; a cursor that no page gave.
    pub fn queue_page(
        &self,
        module: &str,
        queue: &str,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Page, StoreError> {
        check_module(module)?;
        check_queue(queue)?;
        self.read(|reader| pages::queue(reader, module, queue, limit, cursor))
    }

    /// Returns the number of entries of a queue.
    ///
    /// # Errors
    /// See the kinds.
    pub fn length(&self, module: &str, queue: &str) -> Result<u64, StoreError> {
        check_module(module)?;
        check_queue(queue)?;
        let head = keys::queue(module, queue);
        self.read(|reader| {
            Ok(reader.with(Space::Queues, &head, keys::Ends::decode)?.transpose()?.unwrap_or_default().length())
        })
    }

    /// Returns names and lengths of a module's queues that are not empty.
    ///
    /// # Errors
    /// See the kinds.
    pub fn queues(&self, module: &str) -> Result<Vec<(String, u64)>, StoreError> {
        check_module(module)?;
        self.read(|reader| pages::queues(reader, module))
    }

    /// Returns the modules that have stored something, and how much.
    ///
    /// # Errors
    /// See the kinds.
    pub fn modules(&self) -> Result<Vec<(String, Quota)>, StoreError> {
        self.read(usage::all)
    }
}

/// Does a module's steps as a part of a larger write.
///
/// # Errors
/// See the kinds. After an error the caller must fail the write, since some steps may be done.
pub(super) fn transact(
    writer: &mut Writer<'_>,
    module: &str,
    quota: Quota,
    steps: &[Step],
    expected: Option<&[StepResult]>,
) -> Result<Vec<StepResult>, StoreError> {
    check_module(module)?;
    steps::check(steps)?;
    let mut work = StepRunner::new(writer, module)?;
    let mut outcomes = Vec::with_capacity(steps.len());
    for (number, step) in steps.iter().enumerate() {
        let outcome = work.perform(number, step)?;
        if expected.is_some_and(|expected| expected.get(number) != Some(&outcome)) {
            return Err(StoreError::Conflict(number));
        }
        outcomes.push(outcome);
    }
    work.finish(quota)?;
    Ok(outcomes)
}

impl StateValue {
    const JSON: u8 = b'j';
    const BYTES: u8 = b'b';

    fn content(&self) -> &[u8] {
        match self {
            Self::Json(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let kind = match self {
            Self::Json(_) => Self::JSON,
            Self::Bytes(_) => Self::BYTES,
        };
        [&[kind], self.content()].concat()
    }

    fn decode(record: &[u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::damaged("a value");
        match record.split_first() {
            Some((&Self::JSON, text)) => String::from_utf8(text.to_vec()).map(Self::Json).map_err(|_| damaged()),
            Some((&Self::BYTES, bytes)) => Ok(Self::Bytes(bytes.to_vec())),
            _ => Err(damaged()),
        }
    }

    /// Length of the content of an encoded value.
    fn content_bytes(record: &[u8]) -> u64 {
        (record.len() as u64).saturating_sub(1)
    }
}
