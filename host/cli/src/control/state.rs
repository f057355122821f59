//! What command `state` of the control socket takes and answers: the durable data of one cage, for its operator. Written by
//! `wasmcage state`, done by the cage that runs, or by the command itself where none does.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wasmcage_core::request::{Deadline, Payload};
use wasmcage_store::{Quota, Range, StateValue, Step, StepResult, Store, StoreError};

use super::call::Content;
use super::{CONTENT_BYTES_MAX, Refusal};

/// The arguments of the command. Answers are named beside them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum StateRequest {
    /// `Vec<ModuleLine>`: the modules that keep something.
    Modules {},
    /// `Entries`: keys of a module, and what they hold.
    Keys { module: String, prefix: String, limit: usize, cursor: Option<String> },
    /// `Vec<QueueLine>`.
    Queues { module: String },
    /// `Entries`: entries of a queue, whose names are empty.
    Queue { module: String, queue: String, limit: usize, cursor: Option<String> },
    /// `Option<Content>`.
    Get { module: String, key: String },
    /// Null. All of it or nothing.
    Put { module: String, items: Vec<Item> },
    /// `bool`: whether the key was there.
    Delete { module: String, key: String },
    /// `Compacted`.
    Compact {},
}

/// For all but compacting.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A large file is copied as a whole.
const COMPACT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

impl StateRequest {
    /// How long it may take.
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

/// What a module keeps.
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
pub(crate) struct Entries {
    pub entries: Vec<(String, Content)>,
    /// Where the next ones begin.
    pub next: Option<String>,
}

/// What is to be kept.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Item {
    Key {
        key: String,
        value: Content,
    },
    /// Goes to the end of the queue.
    Queue {
        queue: String,
        entry: Content,
    },
}

/// Bytes of the file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Compacted {
    pub before: u64,
    pub after: u64,
}

/// Does it. `quota` tells what a module may keep.
///
/// # Errors
/// The store's; what cannot be carried.
pub(crate) async fn perform(
    store: &Arc<Store>,
    quota: impl Fn(&str) -> Quota,
    request: StateRequest,
) -> Result<Value, Refusal> {
    let deadline = Deadline::after(request.timeout());
    // What comes of it says the operation that follows.
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
            value(&Compacted { before, after })
        }
    }
}

fn entries(found: Vec<(String, StateValue)>, next: Option<String>) -> Result<Value, Refusal> {
    let mut room = CONTENT_BYTES_MAX;
    let entries = found.into_iter().map(|(name, value)| Ok((name, content(value, &mut room)?)));
    value(&Entries { entries: entries.collect::<Result<_, Refusal>>()?, next })
}

fn content(value: StateValue, room: &mut usize) -> Result<Content, Refusal> {
    let payload = match value {
        StateValue::Json(json) => Payload::Json(json),
        StateValue::Bytes(bytes) => Payload::Bytes(bytes.into()),
    };
    Content::of(payload, room)
}

fn value(answer: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(answer).map_err(|error| Refusal::new("host-error", error))
}

impl TryFrom<Item> for Step {
    type Error = Refusal;

    fn try_from(item: Item) -> Result<Self, Refusal> {
        Ok(match item {
            Item::Key { key, value } => Self::Set(key, state_value(value)?),
            Item::Queue { queue, entry } => Self::Push(queue, state_value(entry)?),
        })
    }
}

/// What is kept as JSON is JSON.
fn state_value(content: Content) -> Result<StateValue, Refusal> {
    match content.payload().map_err(|error| Refusal::new("bad-request", error))? {
        Payload::Json(json) => match serde_json::from_str::<serde::de::IgnoredAny>(&json) {
            Ok(_) => Ok(StateValue::Json(json)),
            Err(error) => Err(Refusal::new("invalid", format!("a value is no JSON: {error}"))),
        },
        Payload::Bytes(bytes) => Ok(StateValue::Bytes(bytes.into())),
        Payload::Values(_) => Err(Refusal::new("bad-request", "component values are not kept")),
    }
}

impl From<StoreError> for Refusal {
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
