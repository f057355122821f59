//! A reply that comes in parts, with the place in the pool that it holds until its end.

use bytes::Bytes;

use super::observed::Observed;
use super::pool::Lease;
use super::{Caller, Phase, ReplyStream, ResourceError, guarded};

/// Dropped before its end, it discards the connection.
pub struct OpenReply {
    stream: Option<Box<dyn ReplyStream>>,
    lease: Option<Lease>,
    caller: Caller,
    observed: Option<Observed>,
}

impl OpenReply {
    pub(super) fn new(stream: Box<dyn ReplyStream>, lease: Lease, caller: Caller, observed: Observed) -> Self {
        Self { stream: Some(stream), lease: Some(lease), caller, observed: Some(observed) }
    }

    /// The next part; none at the end, and ever after.
    ///
    /// # Errors
    /// See the kinds; nothing follows one.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ResourceError> {
        let (Some(stream), Some(lease)) = (&mut self.stream, &self.lease) else { return Ok(None) };
        match guarded(Phase::Execute, lease.deadline, stream.next()).await {
            Ok(Some(part)) => Ok(Some(part)),
            Ok(None) => {
                let connection = self.stream.take().and_then(ReplyStream::finish);
                if let (Some(mut lease), Some(connection)) = (self.lease.take(), connection) {
                    lease.restore(connection);
                    lease.keep();
                }
                self.end(Ok(None))
            }
            Err(error) => {
                (self.stream, self.lease) = (None, None);
                self.end(Err(error))
            }
        }
    }

    fn end(&mut self, result: Result<Option<Bytes>, ResourceError>) -> Result<Option<Bytes>, ResourceError> {
        match self.observed.take() {
            Some(mut observed) => observed.end(&self.caller, result),
            None => result,
        }
    }
}
