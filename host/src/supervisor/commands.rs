//! What a running cage can be asked on its control socket, and how the host in this process does it. Each command is
//! bounded in time, and given up when its client leaves.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;
use wasmcage::dispatcher::{Dispatcher, OperatorCall};
use wasmcage::host::Host;

use crate::control::call::{CallRequest, Content, CopyAnswer};
use crate::control::{Answer, CONTENT_BYTES_MAX, Refusal, Reply, Request};

/// The commands of one cage.
pub(super) struct Commands {
    cage: String,
    /// None once it is stopping.
    host: Arc<Mutex<Option<Host>>>,
}

impl Commands {
    pub(super) fn new(cage: String, host: Arc<Mutex<Option<Host>>>) -> Self {
        Self { cage, host }
    }

    fn with_host<T>(&self, read: impl FnOnce(&Host) -> T) -> Result<T, Refusal> {
        let host = self.host.lock();
        host.as_ref().map(read).ok_or_else(|| refusal("draining", "the cage is stopping"))
    }

    /// The process, with this cage only.
    fn ps(&self) -> Result<Value, Refusal> {
        let mut snapshot = self.with_host(Host::snapshot)?;
        snapshot.cages.retain(|cage| cage.cage == self.cage);
        value(&snapshot)
    }

    async fn call(&self, arguments: Value) -> Result<Value, Refusal> {
        let CallRequest { cage, module, function, arguments, timeout_ms, idempotent, all } =
            serde_json::from_value(arguments).map_err(|error| refusal("bad-request", error))?;
        let arguments = arguments.payload().map_err(|error| refusal("bad-request", error))?;
        let timeout = Duration::from_millis(timeout_ms);
        let call = OperatorCall { cage, module, function, arguments, timeout, idempotent };
        let (dispatcher, lane) = self.with_host(|host| {
            let dispatcher = host.cage(&self.cage).map(|cage| cage.dispatcher().clone());
            (dispatcher, host.lanes().next().clone())
        })?;
        let dispatcher = dispatcher.expect("a cage that is asked is one of the process's");
        // Guests run on the lanes.
        let called = AbortOnDropHandle::new(lane.spawn(async move {
            match all {
                true => call_all(&dispatcher, call).await,
                false => call_one(&dispatcher, call).await,
            }
        }));
        called.await.unwrap_or_else(|error| Err(refusal("host-error", error)))
    }
}

async fn call_one(dispatcher: &Dispatcher, call: OperatorCall) -> Result<Value, Refusal> {
    let result = dispatcher.call_for_operator(call).await?;
    value(&Content::of(result, &mut { CONTENT_BYTES_MAX })?)
}

async fn call_all(dispatcher: &Dispatcher, call: OperatorCall) -> Result<Value, Refusal> {
    let results = dispatcher.call_all_for_operator(call).await?;
    let mut room = CONTENT_BYTES_MAX;
    let answers = results.into_iter().map(|(copy, result)| {
        let result = match result.map_err(Refusal::from).and_then(|payload| Content::of(payload, &mut room)) {
            Ok(content) => Reply::Ok(content),
            Err(refusal) => Reply::Error(refusal),
        };
        CopyAnswer { copy, result }
    });
    value(&answers.collect::<Vec<_>>())
}

fn value(answer: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(answer).map_err(|error| refusal("host-error", error))
}

fn refusal(code: &str, text: impl ToString) -> Refusal {
    Refusal { code: code.into(), text: text.to_string() }
}

#[async_trait]
impl Answer for Commands {
    async fn answer(&self, request: Request) -> Result<Value, Refusal> {
        match request.command.as_str() {
            "ps" => self.ps(),
            "call" => self.call(request.arguments).await,
            other => Err(refusal("unknown-command", format!("there is no command `{other}`"))),
        }
    }
}
