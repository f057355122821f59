//! What the host does for one interface. Which method to take:
//!
//! | what has come in | method |
//! |---|---|
//! | a request for the module that serves the interface | `route`, then by its kind `handle` or `stream` |
//! | something that is for a function, such as a message | `call` |
//! | a call that a module of another cage makes | `called` |
//! | an attempt at a call that this cage keeps | `attempt` |
//!
//! Each counts the request in the interface's readings, waits for a place in the cage and one with the module, obeys the
//! deadline, contains panics, and logs what fails. It must be run on a lane: see `InterfaceContext::lanes`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use wasmcage_core::body::StreamBody;
use wasmcage_core::call::{Call, Remote};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Deadline, Payload, Reply, Request, RequestContext};
use wasmcage_core::run_to_end::RunToEnd;
use wasmcage_store::CallEntry;

use crate::Route;

/// The way from one interface to the modules of its cage.
#[async_trait]
pub trait Dispatch: Send + Sync {
    /// The version of the interface's module that is current now; none while there is none.
    ///
    /// # Errors
    /// `Host` when the module exports nothing that this interface can use.
    fn route(&self) -> Result<Option<Route>, DispatchError>;

    /// Whether the module has had a file since the cage started, so that what comes is meant for it: it may be compiling,
    /// refused, or removed when `route` finds no version.
    fn has_had_module(&self) -> bool;

    /// Has a `handler` module answer. Once begun it runs to its end, or to the deadline, even when the caller drops the future
    /// because its client left. Fails with any kind of error.
    fn handle(&self, route: Route, request: Request) -> RunToEnd<Result<Reply, DispatchError>>;

    /// Has a `wasi:http` module answer. Resolves when the response's head is there; bodies stream both ways. The time that the
    /// request has begins anew with each part of a body that moves, up to `longest` after it began. A client that leaves before
    /// the head ends the guest.
    ///
    /// # Errors
    /// See the kinds.
    async fn stream(
        &self,
        route: Route,
        context: Arc<RequestContext>,
        request: http::Request<StreamBody>,
        longest: Duration,
    ) -> Result<http::Response<StreamBody>, DispatchError>;

    /// Calls a function of a module of this cage for what came in, such as a message. Its context names no caller.
    ///
    /// # Errors
    /// See the kinds.
    async fn call(
        &self,
        context: Arc<RequestContext>,
        module: &str,
        function: &str,
        arguments: Payload,
    ) -> Result<Payload, DispatchError>;

    /// Does a call that came from a cage elsewhere. Its context says who calls, and the interface has made sure of that.
    ///
    /// # Errors
    /// See the kinds.
    async fn called(&self, call: Call) -> Result<Payload, DispatchError>;

    /// Makes one attempt at a call that the store keeps in the queue called like the interface, or hands it over to the cage
    /// that it is for. The caller holds it in its store.
    ///
    /// # Errors
    /// See the kinds.
    async fn attempt(&self, entry: &CallEntry, message: Vec<u8>, deadline: Deadline) -> Result<(), DispatchError>;

    /// The flock that the cage belongs to.
    fn flock(&self) -> String;

    /// From now on the cage's calls to cages elsewhere go this way.
    fn set_remote(&self, remote: Arc<dyn Remote>);

    /// There is no way to cages elsewhere any more, unless another one was set since.
    fn unset_remote(&self, remote: &Arc<dyn Remote>);
}
