//! Between the interfaces and the modules: admission, route, deadline, the one error table, one completion event.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

use crate::request::{Reply, Request, RequestContext};

/// A streamed body on its way in or out of a module that speaks `wasi:http`.
pub type StreamBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Why a request got no reply of its module's. Who must act decides the kind; each interface matches all of them.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The caller's fault: the request or its arguments do not fit.
    #[error("bad request: {0}")]
    BadRequest(String),
    #[error("no such cage: {0}")]
    NoSuchCage(String),
    #[error("no such module: {0}")]
    NoSuchModule(String),
    #[error("no such function: {0}")]
    NoSuchFunction(String),
    #[error("not permitted: {0}")]
    NotPermitted(String),
    /// The guest says never.
    #[error("refused: {0}")]
    Refused(String),
    /// The guest says later.
    #[error("failed: {0}")]
    Failed(String),
    /// The guest was killed by its own doing.
    #[error("trapped: {0}")]
    Trap(String),
    #[error("deadline exceeded: {0}")]
    DeadlineExceeded(String),
    /// Ours: no room now.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// Ours: shutting down.
    #[error("draining")]
    Draining,
    /// Ours: a bug or a lack in the host.
    #[error("host error: {0}")]
    Host(String),
}

impl DispatchError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad-request",
            Self::NoSuchCage(_) => "no-such-cage",
            Self::NoSuchModule(_) => "no-such-module",
            Self::NoSuchFunction(_) => "no-such-function",
            Self::NotPermitted(_) => "not-permitted",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
            Self::Trap(_) => "trapped",
            Self::DeadlineExceeded(_) => "deadline-exceeded",
            Self::Overloaded(_) => "overloaded",
            Self::Draining => "draining",
            Self::Host(_) => "host-error",
        }
    }

    /// Fit for strangers: says nothing of the inside.
    pub fn public_text(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "the request cannot be understood",
            Self::NoSuchCage(_) | Self::NoSuchModule(_) | Self::NoSuchFunction(_) => {
                "nothing is here to answer this request"
            }
            Self::NotPermitted(_) => "this request is not permitted",
            Self::Refused(_) => "the request was refused",
            Self::Failed(_) | Self::Trap(_) => "the request failed",
            Self::DeadlineExceeded(_) => "the request was not answered in time",
            Self::Overloaded(_) => "too many requests at the moment",
            Self::Draining => "the server is shutting down",
            Self::Host(_) => "the server failed",
        }
    }
}

#[derive(Clone)]
pub struct Dispatcher(Arc<()>);

/// An interface's way to the module that serves it.
pub struct Endpoint {
    /// Name of the interface.
    pub interface: Arc<str>,
    pub cage: Arc<str>,
    pub protocol: &'static str,
    /// Name of the module.
    pub module: Arc<str>,
    /// Timeout of a request that brings no deadline of its own.
    pub timeout: Duration,
}

/// The module version that will serve one request: chosen when the request begins, kept to its end.
pub struct Route(());

/// How a route's module wants the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Collected: `Dispatcher::handle`.
    Whole,
    /// As it comes: `Dispatcher::stream`.
    Streamed,
}

impl Route {
    pub fn kind(&self) -> RouteKind {
        todo!()
    }
}

impl Endpoint {
    /// The current version; none while the interface has no module.
    /// # Errors
    /// `Host` when the module exists but exports nothing that this interface can use.
    pub fn route(&self) -> Result<Option<Route>, DispatchError> {
        todo!()
    }
    /// Where the interface can be reached from outside, such as `http://127.0.0.1:8080/`; shown at start and by `ps`.
    pub fn announce(&self, _address: String) {
        todo!()
    }
}

impl Dispatcher {
    /// Has a `handler` module answer. Once begun it runs to its end, or to the deadline, even when the caller drops
    /// this future because its client left.
    pub async fn handle(&self, _endpoint: &Endpoint, _route: Route, _request: Request) -> Result<Reply, DispatchError> {
        todo!()
    }

    /// Has a `wasi:http` module answer. Resolves when the response's head is there; bodies stream both ways.
    pub async fn stream(
        &self,
        _endpoint: &Endpoint,
        _route: Route,
        _context: Arc<RequestContext>,
        _request: http::Request<StreamBody>,
    ) -> Result<http::Response<StreamBody>, DispatchError> {
        todo!()
    }
}
