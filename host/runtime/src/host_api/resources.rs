//! Implements `wasmcage:cage/resources`: operations on the resources that `[resources.x]` of `cage.toml` configures.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::Resource;

use super::GuestState;
use super::bindings::resources::{
    Caching as WitCaching, Host, HostReplyStream, Operation as WitOperation, Options, Phase as WitPhase, Reply,
    ResourceError as WitError,
};
use super::per_request::Handle;
use wasmcage_resource::{
    Caching, Caller, LiveResource, OpenReply, Operation, OperationOptions, OperationReply, Phase, ResourceError,
};

/// A reply of which the guest has not read all parts yet.
pub type OpenReplyHandle = Handle<OpenReply>;

impl Host for GuestState {
    async fn execute(
        &mut self,
        name: String,
        operation: WitOperation,
        options: Options,
    ) -> wasmtime::Result<Result<Reply, WitError>> {
        let (resource, caller) = match self.resource(&name) {
            Ok(found) => found,
            Err(error) => return Ok(Err(error.into())),
        };
        let result = resource.execute(&caller, operation.into(), options.into()).await;
        Ok(result.map(Reply::from).map_err(WitError::from))
    }

    async fn open(
        &mut self,
        name: String,
        operation: WitOperation,
        options: Options,
    ) -> wasmtime::Result<Result<(Reply, Resource<OpenReplyHandle>), WitError>> {
        let (resource, caller) = match self.resource(&name) {
            Ok(found) => found,
            Err(error) => return Ok(Err(error.into())),
        };
        match resource.open(&caller, operation.into(), options.into()).await {
            Ok((reply, stream)) => {
                let handle = self.open_replies.add(stream);
                Ok(Ok((reply.into(), self.table.push(handle)?)))
            }
            Err(error) => Ok(Err(error.into())),
        }
    }
}

impl HostReplyStream for GuestState {
    async fn next(&mut self, stream: Resource<OpenReplyHandle>) -> wasmtime::Result<Result<Option<Vec<u8>>, WitError>> {
        let Some(stream) = self.open_replies.get(self.table.get(&stream)?) else { return Ok(Ok(None)) };
        let part = stream.next().await;
        Ok(part.map(|part| part.map(Into::into)).map_err(WitError::from))
    }

    async fn drop(&mut self, stream: Resource<OpenReplyHandle>) -> wasmtime::Result<()> {
        let handle = self.table.delete(stream)?;
        self.open_replies.remove(&handle);
        Ok(())
    }
}

impl GuestState {
    /// Returns the resource of this name, and the caller for which it is used.
    ///
    /// # Errors
    /// There is no such resource, the module may not use it, or the module is being loaded.
    pub(super) fn resource(&self, name: &str) -> Result<(Arc<LiveResource>, Caller), ResourceError> {
        let refused = |code: &str, text: &str| ResourceError {
            participant: name.to_owned(),
            ..ResourceError::harmless(Phase::Check, code, text)
        };
        let caller = self.caller().ok_or_else(|| {
            refused(ResourceError::NOT_PERMITTED, "there is no request to work for while the module is being loaded")
        })?;
        let resource = self.home.services.resources.granted(name, &self.home.module, &self.home.granted())?;
        Ok((resource, caller))
    }

    /// Returns the caller for operations of the current request. None while the module is being loaded.
    pub(super) fn caller(&self) -> Option<Caller> {
        let (cage, module) = (self.home.cage.clone(), self.home.module.clone());
        Some(Caller { cage, module, request: self.request.clone()? })
    }
}

impl From<WitOperation> for Operation {
    fn from(operation: WitOperation) -> Self {
        let WitOperation { action, target, headers, body } = operation;
        Self { action, target, headers, body: body.into() }
    }
}

impl From<Options> for OperationOptions {
    fn from(options: Options) -> Self {
        Self {
            timeout: options.timeout_ms.map(milliseconds),
            begin: options.begin,
            caching: options.caching.map(Caching::from),
        }
    }
}

impl From<WitCaching> for Caching {
    fn from(caching: WitCaching) -> Self {
        let WitCaching { key, ttl_ms, reads, writes, bypass } = caching;
        Self { key, ttl: ttl_ms.map(milliseconds), reads, writes, bypass }
    }
}

fn milliseconds(milliseconds: u32) -> Duration {
    Duration::from_millis(milliseconds.into())
}

impl From<OperationReply> for Reply {
    fn from(reply: OperationReply) -> Self {
        let OperationReply { status, headers, body } = reply;
        Self { status, headers, body: body.into() }
    }
}

impl From<ResourceError> for WitError {
    fn from(error: ResourceError) -> Self {
        let ResourceError { participant, index, code, text, recoverable, terminal, phase } = error;
        let phase = match phase {
            Phase::Check => WitPhase::Check,
            Phase::Acquire => WitPhase::Acquire,
            Phase::Connect => WitPhase::Connect,
            Phase::Begin => WitPhase::Begin,
            Phase::Execute => WitPhase::Execute,
            Phase::Commit => WitPhase::Commit,
            Phase::Rollback => WitPhase::Rollback,
        };
        Self { participant, index: u32::try_from(index).unwrap_or(u32::MAX), code, text, recoverable, terminal, phase }
    }
}
