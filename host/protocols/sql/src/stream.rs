//! A streamed result. The statement runs only while the consumer waits for the next part, so at most one part is read
//! ahead.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::connection::SqlConnection;
use super::operation::Statement;
use super::rows::{RowLimits, RowWriter};
use wasmcage_resource::{Connection, ReplyStream, ResourceError};

pub(super) struct ResultStream {
    /// The statement, which owns the connection until it ends.
    running: Option<BoxFuture<'static, Result<Box<SqlConnection>, ResourceError>>>,
    parts: mpsc::Receiver<Bytes>,
    session: Option<Box<SqlConnection>>,
}

impl ResultStream {
    pub(super) fn new(session: Box<SqlConnection>, statement: Statement, limits: RowLimits) -> Self {
        let (sender, parts) = mpsc::channel(1);
        let running = session.stream(statement, RowWriter::streamed(limits, sender));
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
        // A part may have been sent right before the end.
        Ok(self.parts.recv().await)
    }

    fn finish(self: Box<Self>) -> Option<Box<dyn Connection>> {
        self.session.map(|session| session as _)
    }
}
