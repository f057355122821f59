//! Operations on resources and their replies, independent of the protocol.

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
    /// `query`, an HTTP method, `read`, ...
    pub action: String,
    /// What the action is applied to: a path, a file's name.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// Shows only the names of headers: values may be secrets, and bodies may be long.
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
    /// An HTTP status code; 200 for protocols without one.
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// The body of a long reply, in parts of bounded size. The producer waits until the part before was taken.
#[async_trait]
pub trait ReplyStream: Send {
    /// Returns the next part; none at the end.
    ///
    /// # Errors
    /// See the kinds; nothing follows an error.
    async fn next(&mut self) -> Result<Option<Bytes>, ResourceError>;

    /// After the end, returns the connection if it can be used again.
    fn finish(self: Box<Self>) -> Option<Box<dyn Connection>> {
        None
    }
}

/// Options of an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationOptions {
    /// The operation's timeout; the request's deadline holds anyway.
    pub timeout: Option<Duration>,
    /// Options for the beginning of its transaction.
    pub begin: Vec<(String, String)>,
    /// Use of the cache of reads; none: it is not used.
    pub caching: Option<Caching>,
}

/// How an operation uses the resource's cache of reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caching {
    /// A part of the cache key, besides the operation itself.
    pub key: Option<String>,
    /// How long a cached reply may be used, if shorter than by the resource's settings.
    pub ttl: Option<Duration>,
    /// Names of what the reply depends on.
    pub reads: Vec<String>,
    /// Names of what the operation changes.
    pub writes: Vec<String>,
    /// Neither read from the cache nor store in it.
    pub bypass: bool,
}

/// The module that asks for an operation, and the request on whose behalf.
#[derive(Clone, Debug)]
pub struct Caller {
    pub cage: Arc<str>,
    pub module: Arc<str>,
    pub request: Arc<RequestContext>,
}
