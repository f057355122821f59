//! What every resource is asked, and what it answers, whatever its protocol.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::ResourceError;
use crate::Connection;
use wasmcage_core::request::RequestContext;

#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Operation {
    /// What is asked: `query`, an HTTP method, `read`, ...
    pub action: String,
    /// Of what: a path, a file's name.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// Names of headers only: values may be secrets, and bodies may be long.
impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("action", &self.action)
            .field("headers", &self.headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
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

    /// The connection, after the end, if it can be used again.
    fn finish(self: Box<Self>) -> Option<Box<dyn Connection>> {
        None
    }
}

/// How an operation is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationOptions {
    /// At most this long, and never longer than the request's deadline.
    pub timeout: Option<Duration>,
    /// For the beginning of its transaction.
    pub begin: Vec<(String, String)>,
    /// None: the cache of reads has nothing to do with it.
    pub caching: Option<Caching>,
}

/// Use of the resource's cache of reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caching {
    /// What the reply is kept under, besides the operation itself.
    pub key: Option<String>,
    /// Shorter than the resource's own.
    pub ttl: Option<Duration>,
    /// What the reply depends on.
    pub reads: Vec<String>,
    /// What the operation changes.
    pub writes: Vec<String>,
    /// As if there were no cache.
    pub bypass: bool,
}

/// Who asks for an operation, and on whose behalf.
#[derive(Clone, Debug)]
pub struct Caller {
    pub cage: Arc<str>,
    pub module: Arc<str>,
    pub request: Arc<RequestContext>,
}
