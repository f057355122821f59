//! A result that comes part by part. The statement goes on only while the consumer waits for the next part, so that nothing
//! is read ahead of it but one part.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::connection::Session;
use super::operation::Statement;
use super::rows::{Limits, Rows};
use wasmcage_resource::{Connection, ReplyStream, ResourceError};

pub(super) struct ResultStream {
    /// Owns the connection until it ends.
    running: Option<BoxFuture<'static, Result<Box<Session>, ResourceError>>>,
    parts: mpsc::Receiver<Bytes>,
    session: Option<Box<Session>>,
}

impl ResultStream {
    pub(super) fn new(session: Box<Session>, statement: Statement, limits: Limits) -> Self {
        let (sender, parts) = mpsc::channel(1);
        let running = session.stream(statement, Rows::streamed(limits, sender));
        Self { running: Some(Box::pin(running)), parts, session: None }
    }
}

#[async_trait]
impl ReplyStream for ResultStream {
    async fn next(&mut self) -> Result<Option<Bytes>, ResourceError> {
        let Some(running) = &mut self.running else { return Ok(self.parts.recv().await) };
        tokio::select! {
            biased;
            Some(part) = self.parts.recv() => return Ok(Some(part)),
            ended = running => {
                self.running = None;
                self.session = Some(ended?);
            }
        }
        // What was sent before the end.
        Ok(self.parts.recv().await)
    }

    fn finish(self: Box<Self>) -> Option<Box<dyn Connection>> {
        self.session.map(|session| session as _)
    }
}
