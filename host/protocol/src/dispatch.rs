//! What the host does for an interface. The methods:
//!
//! | what was received | method |
//! |---|---|
//! | a request for the module that serves the interface | `route`, then by its kind `handle` or `stream` |
//! | something for a function, such as a message | `call` |
//! | a call by a module of another cage | `answer_call` |
//! | an attempt at a retried call of this cage | `attempt` |
//!
//! Each method counts the request in the interface's readings, waits for permits of the cage and of the module, keeps the
//! deadline, catches panics, and logs failures. It must run on a lane: see `InterfaceContext::lanes`.

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

/// Passes what one interface receives to the modules of its cage.
#[async_trait]
pub trait Dispatch: Send + Sync {
    /// Returns the current version of the interface's module; none while there is none.
    ///
    /// # Errors
    /// `Host` when the module exports nothing that this interface can use.
    fn route(&self) -> Result<Option<Route>, DispatchError>;

    /// Returns whether the module has had a file since the cage started. If `route` finds no version then, the module is being
    /// compiled, was refused, or was removed.
    fn has_had_module(&self) -> bool;

    /// Passes a whole request to a module with `handler`. Once begun, it runs to its end or to the deadline, even if the caller
    /// drops the future because its client left. It may fail with any kind of error.
    fn handle(&self, route: Route, request: Request) -> RunToEnd<Result<Reply, DispatchError>>;

    /// Passes a request to a module with `wasi:http`. Resolves with the head of the response; bodies stream both ways. Each part
    /// of a body that moves postpones the request's deadline, up to `longest` after its start. If the client leaves before the
    /// head, the guest is ended.
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

    /// Calls a function of a module of this cage for what was received, such as a message. Its context has no caller.
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

    /// Answers a call from another cage. The interface has verified the caller that the context names.
    ///
    /// # Errors
    /// See the kinds.
    async fn answer_call(&self, call: Call) -> Result<Payload, DispatchError>;

    /// Makes one attempt at a retried call of the queue with the interface's name, or hands the call over to the cage that it is
    /// for.
    ///
    /// # Errors
    /// See the kinds.
    async fn attempt(&self, entry: &CallEntry, message: Vec<u8>, deadline: Deadline) -> Result<(), DispatchError>;

    /// The flock that the cage belongs to.
    fn flock(&self) -> String;

    /// Sets the carrier of the cage's calls to cages in other processes.
    fn set_remote(&self, remote: Arc<dyn Remote>);

    /// Removes this carrier, unless another one was set since.
    fn unset_remote(&self, remote: &Arc<dyn Remote>);
}
