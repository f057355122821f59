//! The commands that a running cage accepts on its control socket, done by the host of this process. Each command has a
//! timeout, and is cancelled when its client leaves.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;
use wasmcage::host::Host;

use crate::control::call::{CallRequest, answer_all, answer_id, answer_one};
use crate::control::state::{StateRequest, perform};
use crate::control::{CommandHandler, CommandRefusal, CommandRequest, retry};

/// The commands of one cage.
pub(super) struct SecondaryCommands {
    cage: String,
    /// None once it is stopping.
    host: Arc<Mutex<Option<Host>>>,
}

impl SecondaryCommands {
    pub(super) fn new(cage: String, host: Arc<Mutex<Option<Host>>>) -> Self {
        Self { cage, host }
    }

    fn with_host<T>(&self, read: impl FnOnce(&Host) -> T) -> Result<T, CommandRefusal> {
        let host = self.host.lock();
        host.as_ref().map(read).ok_or_else(|| CommandRefusal::new("draining", "the cage is stopping"))
    }

    /// Describes the process, with this cage only.
    fn ps(&self) -> Result<Value, CommandRefusal> {
        let mut snapshot = self.with_host(Host::snapshot)?;
        snapshot.cages.retain(|cage| cage.cage == self.cage);
        serde_json::to_value(&snapshot).map_err(|error| CommandRefusal::new("host-error", error))
    }

    async fn call(&self, arguments: Value) -> Result<Value, CommandRefusal> {
        let request: CallRequest =
            serde_json::from_value(arguments).map_err(|error| CommandRefusal::new("bad-request", error))?;
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
        called.await.unwrap_or_else(|error| Err(CommandRefusal::new("host-error", error)))
    }

    async fn state(&self, arguments: Value) -> Result<Value, CommandRefusal> {
        let request: StateRequest =
            serde_json::from_value(arguments).map_err(|error| CommandRefusal::new("bad-request", error))?;
        let (dispatcher, quota) = self.with_host(|host| {
            let cage = host.cage(&self.cage).expect("a cage that is asked is one of the process's");
            (cage.dispatcher().clone(), cage.state_quota())
        })?;
        perform(&dispatcher.services().store, quota, request).await
    }
}

#[async_trait]
impl CommandHandler for SecondaryCommands {
    async fn answer(&self, request: CommandRequest) -> Result<Value, CommandRefusal> {
        match request.command.as_str() {
            "ps" => self.ps(),
            "call" => self.call(request.arguments).await,
            "state" => self.state(request.arguments).await,
            "retry" => {
                let dispatcher = self.with_host(|host| host.cage(&self.cage).map(|cage| cage.dispatcher().clone()))?;
                let dispatcher = dispatcher.expect("a cage that is asked is one of the process's");
                retry::answer(&dispatcher.services().store, request.arguments).await
            }
            other => Err(CommandRefusal::new("unknown-command", format!("there is no command `{other}`"))),
        }
    }
}
