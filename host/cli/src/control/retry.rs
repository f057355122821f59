//! What command `retry` of the control socket takes and answers: retried calls as operators see and change them. Done by the
//! secondary of a running cage, and by `wasmcage retry` itself on the store of one that is not running.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wasmcage_core::request::Deadline;
use wasmcage_runtime::dispatcher::retried_arguments;
use wasmcage_store::{CallFilter, Store, StoreError};

use super::call::Content;
use super::{CONTENT_BYTES_MAX, Refusal};

/// Calls that are listed at most.
pub(crate) const LISTED_MAX: usize = 10_000;
/// Of one change; of a store that is being opened.
const PATIENCE: Duration = Duration::from_secs(10);

/// The arguments of the command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum RetryRequest {
    /// Answered by `{"queues": [..], "calls": [..]}`.
    List { queue: Option<String>, dead: bool, limit: usize },
    /// Answered by `{"call": {..}, "arguments": {"json" or "base64": ".."}}`.
    Show { id: String },
    /// Makes them now, with `to` in another queue. Answered by a list of `Changed`.
    Run { ids: Vec<String>, to: Option<String> },
    /// Answered by a list of `Changed`.
    Drop { ids: Vec<String> },
}

/// What became of one call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Changed {
    pub id: String,
    /// Why it is as it was; none when it was changed.
    pub error: Option<String>,
}

/// Does the command.
///
/// # Errors
/// Arguments that cannot be read; a call that is not there, for `show`; the store cannot be read.
pub(crate) async fn answer(store: &Arc<Store>, arguments: Value) -> Result<Value, Refusal> {
    let request = serde_json::from_value(arguments).map_err(|error| Refusal::new("bad-request", error))?;
    // What comes of it says the operation that follows.
    let _ = tokio::time::timeout(PATIENCE, store.ready()).await;
    match request {
        RetryRequest::List { queue, dead, limit } => {
            let wanted = CallFilter { queue, dead, limit: limit.min(LISTED_MAX) };
            let read = store.read_without_blocking(move |store| Ok((store.call_queues()?, store.calls(&wanted)?)));
            let (queues, calls) = read.await.map_err(refusal)?;
            Ok(json!({ "queues": queues, "calls": calls }))
        }
        RetryRequest::Show { id } => {
            let (call, message) =
                store.read_without_blocking(move |store| store.find_call(&id)).await.map_err(refusal)?;
            let arguments = Content::of(retried_arguments(message)?, &mut { CONTENT_BYTES_MAX })?;
            Ok(json!({ "call": call, "arguments": arguments }))
        }
        RetryRequest::Run { ids, to } => {
            if let Some(to) = to.as_deref().filter(|to| !wasmcage_config::is_name(to)) {
                return Err(Refusal::new("bad-request", format!("{to:?} cannot name a queue")));
            }
            changed(store, ids, &Change::Run { to }).await
        }
        RetryRequest::Drop { ids } => changed(store, ids, &Change::Drop).await,
    }
}

enum Change {
    Run { to: Option<String> },
    Drop,
}

/// The store commits the changes of all of them together.
async fn changed(store: &Store, ids: Vec<String>, change: &Change) -> Result<Value, Refusal> {
    let changes: Vec<_> = ids.into_iter().map(|id| changed_one(store, id, change)).collect();
    let changes = futures_util::future::join_all(changes).await;
    serde_json::to_value(changes).map_err(|error| Refusal::new("host-error", error))
}

async fn changed_one(store: &Store, id: String, change: &Change) -> Changed {
    let deadline = Deadline::after(PATIENCE);
    let changed = match change {
        Change::Run { to } => store.run_call(&id, to.as_deref(), deadline).await,
        Change::Drop => store.drop_call(&id, deadline).await,
    };
    Changed { id, error: changed.err().map(|error| error.to_string()) }
}

fn refusal(error: StoreError) -> Refusal {
    let code = match error {
        StoreError::Invalid(_) => "no-such-call",
        StoreError::QuotaExceeded(_) | StoreError::Conflict(_) | StoreError::Unavailable(_) => "unavailable",
        StoreError::TimedOut => "timed-out",
    };
    Refusal::new(code, error)
}
