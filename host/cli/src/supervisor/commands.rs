//! What a running cage can be asked on its control socket, and how the host in this process does it. Each command is
//! bounded in time, and given up when its client leaves.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;
use wasmcage::host::Host;

use crate::control::call::{CallRequest, answer_all, answer_id, answer_one};
use crate::control::state::{StateRequest, perform};
use crate::control::{Answer, Refusal, Request, retry};

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
        host.as_ref().map(read).ok_or_else(|| Refusal::new("draining", "the cage is stopping"))
    }

    /// The process, with this cage only.
    fn ps(&self) -> Result<Value, Refusal> {
        let mut snapshot = self.with_host(Host::snapshot)?;
        snapshot.cages.retain(|cage| cage.cage == self.cage);
        serde_json::to_value(&snapshot).map_err(|error| Refusal::new("host-error", error))
    }

    async fn call(&self, arguments: Value) -> Result<Value, Refusal> {
        let request: CallRequest =
            serde_json::from_value(arguments).map_err(|error| Refusal::new("bad-request", error))?;
        let (all, retried) = (request.all, request.retried.clone());
        let call = request.into_call()?;
        let (dispatcher, lane) = self.with_host(|host| {
            let dispatcher = host.cage(&self.cage).map(|cage| cage.dispatcher().clone());
            (dispatcher, host.lanes().next().clone())
        })?;
        let dispatcher = dispatcher.expect("a cage that is asked is one of the process's");
        // Guests run on the lanes.
        let called = AbortOnDropHandle::new(lane.spawn(async move {
            match all {
                _ if let Some(retried) = retried => {
                    answer_id(dispatcher.retry_for_operator(call, retried.into()).await?)
                }
                true => answer_all(dispatcher.call_all_for_operator(call).await?),
                false => answer_one(dispatcher.call_for_operator(call).await?),
            }
        }));
        called.await.unwrap_or_else(|error| Err(Refusal::new("host-error", error)))
    }

    async fn state(&self, arguments: Value) -> Result<Value, Refusal> {
        let request: StateRequest =
            serde_json::from_value(arguments).map_err(|error| Refusal::new("bad-request", error))?;
        let (dispatcher, quota) = self.with_host(|host| {
            let cage = host.cage(&self.cage).expect("a cage that is asked is one of the process's");
            (cage.dispatcher().clone(), cage.state_quota())
        })?;
        perform(&dispatcher.services().store, quota, request).await
    }
}

#[async_trait]
impl Answer for Commands {
    async fn answer(&self, request: Request) -> Result<Value, Refusal> {
        match request.command.as_str() {
            "ps" => self.ps(),
            "call" => self.call(request.arguments).await,
            "state" => self.state(request.arguments).await,
            "retry" => {
                let dispatcher = self.with_host(|host| host.cage(&self.cage).map(|cage| cage.dispatcher().clone()))?;
                let dispatcher = dispatcher.expect("a cage that is asked is one of the process's");
                retry::answer(&dispatcher.services().store, request.arguments).await
            }
            other => Err(Refusal::new("unknown-command", format!("there is no command `{other}`"))),
        }
    }
}
