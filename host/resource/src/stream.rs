//! A reply that comes in parts and holds its connection until its end.

use bytes::Bytes;

use super::operation_record::OperationRecord;
use super::pool::ConnectionLease;
use super::{Caller, Phase, ReplyStream, ResourceError, run_step};

/// An open reply. Dropping it before its end discards the connection.
pub struct OpenReply {
    stream: Option<Box<dyn ReplyStream>>,
    lease: Option<ConnectionLease>,
    caller: Caller,
    record: Option<OperationRecord>,
}

impl OpenReply {
    pub(super) fn new(
        stream: Box<dyn ReplyStream>,
        lease: ConnectionLease,
        caller: Caller,
        record: OperationRecord,
    ) -> Self {
        Self { stream: Some(stream), lease: Some(lease), caller, record: Some(record) }
    }

    /// Returns the next part; none at the end, and after it.
    ///
    /// # Errors
    /// See the kinds; nothing follows an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ResourceError> {
        let (Some(stream), Some(lease)) = (&mut self.stream, &self.lease) else { return Ok(None) };
        match run_step(Phase::Execute, lease.deadline, stream.next()).await {
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
        match self.record.take() {
            Some(mut record) => record.end(&self.caller, result),
            None => result,
        }
    }
}
