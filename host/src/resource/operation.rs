//! What every resource is asked, and what it answers, whatever its protocol.

use async_trait::async_trait;
use bytes::Bytes;

use super::ResourceError;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Operation {
    /// What is asked: `query`, an HTTP method, `read`, ...
    pub action: String,
    /// Of what: a path, a file's name.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationReply {
    /// An HTTP status code; 200 from protocols without one.
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// The body of a long reply. Bounded parts; the producer waits until the one before was taken.
#[async_trait]
pub trait ReplyStream: Send {
    /// None at the end.
    ///
    /// # Errors
    /// See the kinds; nothing follows one.
    async fn next(&mut self) -> Result<Option<Bytes>, ResourceError>;
}
