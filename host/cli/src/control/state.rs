//! Arguments and answer of the control command `state`, by which operators read and change the durable data of a cage.
//! The secondary of a running cage performs it; for a cage that is not running, `wasmcage state` does it on the store
//! itself.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wasmcage_core::request::{Deadline, Payload};
use wasmcage_store::{Quota, Range, StateValue, Step, StepResult, Store, StoreError};

use super::call::EncodedPayload;
use super::{CONTENT_BYTES_MAX, CommandRefusal};

/// The arguments of the command. Each variant's comment has the type of its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum StateRequest {
    /// `Vec<ModuleLine>`: the modules that have data.
    Modules {},
    /// `EntryPage`: keys of a module with their values.
    Keys { module: String, prefix: String, limit: usize, cursor: Option<String> },
    /// `Vec<QueueLine>`.
    Queues { module: String },
    /// `EntryPage`: entries of a queue, with empty names.
    Queue { module: String, queue: String, limit: usize, cursor: Option<String> },
    /// `Option<EncodedPayload>`.
    Get { module: String, key: String },
    /// Null. All items are stored, or none.
    Put { module: String, items: Vec<PutItem> },
    /// `bool`: whether the key was there.
    Delete { module: String, key: String },
    /// `CompactionSizes`.
    Compact {},
}

/// Timeout of all operations but compacting.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of compacting, which copies the whole file.
const COMPACT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

impl StateRequest {
    /// Returns the timeout of the operation.
    pub(crate) fn timeout(&self) -> Duration {
        match self {
            Self::Compact {} => COMPACT_TIMEOUT,
            Self::Modules {}
            | Self::Keys { .. }
            | Self::Queues { .. }
            | Self::Queue { .. }
            | Self::Get { .. }
            | Self::Put { .. }
            | Self::Delete { .. } => TIMEOUT,
        }
    }
}

/// The amount of data of a module.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ModuleLine {
    pub module: String,
    /// Keys and entries of queues.
    pub entries: u64,
    pub bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct QueueLine {
    pub queue: String,
    pub length: u64,
}

/// Keys with their values, or entries of a queue.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EntryPage {
    pub entries: Vec<(String, EncodedPayload)>,
    /// Cursor of the next page; none at the end.
    pub next: Option<String>,
}

/// A value to store.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PutItem {
    Key {
        key: String,
        value: EncodedPayload,
    },
    /// An entry that is added at the end of the queue.
    Queue {
        queue: String,
        entry: EncodedPayload,
    },
}

/// Size of the store's file in bytes, before and after compacting.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CompactionSizes {
    pub before: u64,
    pub after: u64,
}

/// Performs the command. `quota` returns how much a module may store.
///
/// # Errors
/// The store returns an error, or a value is too long for the socket.
pub(crate) async fn perform(
    store: &Arc<Store>,
    quota: impl Fn(&str) -> Quota,
    request: StateRequest,
) -> Result<Value, CommandRefusal> {
    let deadline = Deadline::after(request.timeout());
    // On a failure the operation that follows returns the error.
    let _ = tokio::time::timeout_at(deadline.instant(), store.ready()).await;
    match request {
        StateRequest::Modules {} => {
            let line =
                |(module, usage): (String, Quota)| ModuleLine { module, entries: usage.entries, bytes: usage.bytes };
            let modules = store.read_without_blocking(Store::modules).await?;
            value(&modules.into_iter().map(line).collect::<Vec<_>>())
        }
        StateRequest::Keys { module, prefix, limit, cursor } => {
            let range = Range { prefix, ..Range::default() };
            let page =
                store.read_without_blocking(move |store| store.scan(&module, &range, limit, cursor.as_deref())).await?;
            entries(page.entries, page.next)
        }
        StateRequest::Queues { module } => {
            let queues = store.read_without_blocking(move |store| store.queues(&module)).await?;
            let lines = queues.into_iter().map(|(queue, length)| QueueLine { queue, length });
            value(&lines.collect::<Vec<_>>())
        }
        StateRequest::Queue { module, queue, limit, cursor } => {
            let page = store
                .read_without_blocking(move |store| store.queue_page(&module, &queue, limit, cursor.as_deref()))
                .await?;
            entries(page.entries, page.next)
        }
        StateRequest::Get { module, key } => {
            let found = store.read_without_blocking(move |store| store.get(&module, &key)).await?;
            value(&found.map(|value| content(value, &mut { CONTENT_BYTES_MAX })).transpose()?)
        }
        StateRequest::Put { module, items } => {
            let steps = items.into_iter().map(Step::try_from).collect::<Result<_, _>>()?;
            store.transact(&module, quota(&module), steps, None, deadline).await?;
            Ok(Value::Null)
        }
        StateRequest::Delete { module, key } => {
            let outcomes = store.transact(&module, quota(&module), vec![Step::Delete(key)], None, deadline).await?;
            value(&(outcomes == [StepResult::Deleted(true)]))
        }
        StateRequest::Compact {} => {
            let (before, after) = store.compact(deadline).await?;
            value(&CompactionSizes { before, after })
        }
    }
}

fn entries(found: Vec<(String, StateValue)>, next: Option<String>) -> Result<Value, CommandRefusal> {
    let mut room = CONTENT_BYTES_MAX;
    let entries = found.into_iter().map(|(name, value)| Ok((name, content(value, &mut room)?)));
    value(&EntryPage { entries: entries.collect::<Result<_, CommandRefusal>>()?, next })
}

fn content(value: StateValue, room: &mut usize) -> Result<EncodedPayload, CommandRefusal> {
    let payload = match value {
        StateValue::Json(json) => Payload::Json(json),
        StateValue::Bytes(bytes) => Payload::Bytes(bytes.into()),
    };
    EncodedPayload::of(payload, room)
}

fn value(answer: &impl Serialize) -> Result<Value, CommandRefusal> {
    serde_json::to_value(answer).map_err(|error| CommandRefusal::new("host-error", error))
}

impl TryFrom<PutItem> for Step {
    type Error = CommandRefusal;

    fn try_from(item: PutItem) -> Result<Self, CommandRefusal> {
        Ok(match item {
            PutItem::Key { key, value } => Self::Set(key, state_value(value)?),
            PutItem::Queue { queue, entry } => Self::Push(queue, state_value(entry)?),
        })
    }
}

/// Decodes a value to store, and checks that JSON is valid.
fn state_value(content: EncodedPayload) -> Result<StateValue, CommandRefusal> {
    match content.payload().map_err(|error| CommandRefusal::new("bad-request", error))? {
        Payload::Json(json) => match serde_json::from_str::<serde::de::IgnoredAny>(&json) {
            Ok(_) => Ok(StateValue::Json(json)),
            Err(error) => Err(CommandRefusal::new("invalid", format!("a value is no JSON: {error}"))),
        },
        Payload::Bytes(bytes) => Ok(StateValue::Bytes(bytes.into())),
        Payload::Values(_) => Err(CommandRefusal::new("bad-request", "component values are not kept")),
    }
}

impl From<StoreError> for CommandRefusal {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Invalid(_) => "invalid",
            StoreError::QuotaExceeded(_) => "quota-exceeded",
            StoreError::Conflict(_) => "conflict",
            StoreError::Unavailable(_) => "unavailable",
            StoreError::TimedOut => "timed-out",
        };
        Self::new(code, error)
    }
}
