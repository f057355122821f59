//! `wasmcage:cage/resources`: operations on what `[resources.x]` reaches.

use wasmtime::component::Resource;

use super::GuestState;
use super::bindings::resources::{Host, HostReplyStream, Operation, Options, Phase, Reply, ResourceError};
use crate::resource::ReplyStream;

/// A reply whose rest is still to come.
pub struct OpenReply {
    stream: Box<dyn ReplyStream>,
}

fn unavailable(participant: String) -> ResourceError {
    let (code, text) = ("no-such-resource".into(), "not in this version".into());
    ResourceError { participant, index: 0, code, text, recoverable: true, terminal: false, phase: Phase::Check }
}

impl Host for GuestState {
    async fn execute(
        &mut self,
        name: String,
        _operation: Operation,
        _options: Options,
    ) -> wasmtime::Result<Result<Reply, ResourceError>> {
        Ok(Err(unavailable(name)))
    }

    async fn open(
        &mut self,
        name: String,
        _operation: Operation,
        _options: Options,
    ) -> wasmtime::Result<Result<(Reply, Resource<OpenReply>), ResourceError>> {
        Ok(Err(unavailable(name)))
    }
}

impl HostReplyStream for GuestState {
    async fn next(&mut self, stream: Resource<OpenReply>) -> wasmtime::Result<Result<Option<Vec<u8>>, ResourceError>> {
        let part = self.table.get_mut(&stream)?.stream.next().await;
        Ok(part.map(|part| part.map(Into::into)).map_err(|error| unavailable(error.participant)))
    }

    async fn drop(&mut self, stream: Resource<OpenReply>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}
