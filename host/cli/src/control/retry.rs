//! Arguments and answer of the control command `retry`, by which operators list and change retried calls. The secondary
//! of a running cage performs it; for a cage that is not running, `wasmcage retry` does it on the store itself.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wasmcage_core::request::Deadline;
use wasmcage_runtime::dispatcher::retried_arguments;
use wasmcage_store::{CallFilter, Store, StoreError};

use super::call::EncodedPayload;
use super::{CONTENT_BYTES_MAX, CommandRefusal};

/// Calls in one list.
pub(crate) const LISTED_MAX: usize = 10_000;
/// Timeout of one change, and for the store to be opened.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The arguments of the command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum RetryRequest {
    /// Answered by `{"queues": [..], "calls": [..]}`.
    List { queue: Option<String>, dead: bool, limit: usize },
    /// Answered by `{"call": {..}, "arguments": {"json" or "base64": ".."}}`.
    Show { id: String },
    /// Makes the calls due now, with `to` in another queue. Answered by a list of `ChangeResult`.
    Run { ids: Vec<String>, to: Option<String> },
    /// Answered by a list of `ChangeResult`.
    Drop { ids: Vec<String> },
}

/// The result of changing one call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChangeResult {
    pub id: String,
    /// Why the call was not changed; none when it was.
    pub error: Option<String>,
}

/// Performs the command.
///
/// # Errors
/// The arguments are invalid, there is no such call to show, or the store cannot be read.
pub(crate) async fn answer(store: &Arc<Store>, arguments: Value) -> Result<Value, CommandRefusal> {
    let request = serde_json::from_value(arguments).map_err(|error| CommandRefusal::new("bad-request", error))?;
    // On a failure the operation that follows returns the error.
    let _ = tokio::time::timeout(TIMEOUT, store.ready()).await;
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
            let arguments = EncodedPayload::of(retried_arguments(message)?, &mut { CONTENT_BYTES_MAX })?;
            Ok(json!({ "call": call, "arguments": arguments }))
        }
        RetryRequest::Run { ids, to } => {
            if let Some(to) = to.as_deref().filter(|to| !wasmcage_config::is_name(to)) {
                return Err(CommandRefusal::new("bad-request", format!("{to:?} cannot name a queue")));
            }
            change_all(store, ids, &CallChange::Run { to }).await
        }
        RetryRequest::Drop { ids } => change_all(store, ids, &CallChange::Drop).await,
    }
}

enum CallChange {
    Run { to: Option<String> },
    Drop,
}

/// Changes the calls at the same time, so that the store commits the changes together.
async fn change_all(store: &Store, ids: Vec<String>, change: &CallChange) -> Result<Value, CommandRefusal> {
    let changes: Vec<_> = ids.into_iter().map(|id| change_one(store, id, change)).collect();
    let changes = futures_util::future::join_all(changes).await;
    serde_json::to_value(changes).map_err(|error| CommandRefusal::new("host-error", error))
}

async fn change_one(store: &Store, id: String, change: &CallChange) -> ChangeResult {
    let deadline = Deadline::after(TIMEOUT);
    let changed = match change {
        CallChange::Run { to } => store.run_call(&id, to.as_deref(), deadline).await,
        CallChange::Drop => store.drop_call(&id, deadline).await,
    };
    ChangeResult { id, error: changed.err().map(|error| error.to_string()) }
}

fn refusal(error: StoreError) -> CommandRefusal {
    let code = match error {
        StoreError::Invalid(_) => "no-such-call",
        StoreError::QuotaExceeded(_) | StoreError::Conflict(_) | StoreError::Unavailable(_) => "unavailable",
        StoreError::TimedOut => "timed-out",
    };
    CommandRefusal::new(code, error)
}
