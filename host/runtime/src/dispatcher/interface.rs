//! Implements the dispatcher's API for interfaces. The cage makes one such dispatcher for each running interface, with its
//! endpoint and the module that serves it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use wasmcage_config::ExportChoice;
use wasmcage_core::body::StreamBody;
use wasmcage_core::call::{Call, Remote};
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings::Outcome;
use wasmcage_core::request::{Deadline, Payload, Reply, Request, RequestContext};
use wasmcage_core::run_to_end::RunToEnd;
use wasmcage_protocol::{Dispatch, Endpoint, Route, RouteKind};
use wasmcage_store::CallEntry;

use super::in_flight::InFlight;
use super::{Dispatcher, finish};
use crate::module::slot::Slot;
use crate::module::version::Version;
use crate::module::web;

/// The dispatcher of one interface. Clones refer to the same one.
#[derive(Clone)]
pub struct InterfaceDispatch(Arc<Inner>);

struct Inner {
    dispatcher: Dispatcher,
    endpoint: Arc<Endpoint>,
    slot: Arc<Slot>,
    choice: ExportChoice,
}

impl InterfaceDispatch {
    /// `choice` says which export serves when a component has several.
    pub fn new(dispatcher: Dispatcher, endpoint: Arc<Endpoint>, slot: Arc<Slot>, choice: ExportChoice) -> Self {
        Self(Arc::new(Inner { dispatcher, endpoint, slot, choice }))
    }

    /// Returns the version of a route that this dispatcher has made.
    ///
    /// # Errors
    /// `Host` if another dispatcher has made the route.
    fn version_of(&self, route: Route) -> Result<Arc<Version>, DispatchError> {
        let foreign =
            |_| DispatchError::Host(format!("interface {} brought a foreign route", self.0.endpoint.interface));
        route.into_version().downcast::<Version>().map_err(foreign)
    }
}

#[async_trait]
impl Dispatch for InterfaceDispatch {
    fn route(&self) -> Result<Option<Route>, DispatchError> {
        let Inner { endpoint, slot, choice, .. } = &*self.0;
        let Some(version) = slot.current() else { return Ok(None) };
        let exports = &version.exports;
        let kind = match choice {
            ExportChoice::WasiHttp => exports.web.as_ref().map(|_| RouteKind::Streamed),
            ExportChoice::Handler => exports.handler.as_ref().map(|_| RouteKind::Whole),
            ExportChoice::Auto if exports.web.is_some() => Some(RouteKind::Streamed),
            ExportChoice::Auto => exports.handler.as_ref().map(|_| RouteKind::Whole),
        };
        let Some(kind) = kind else {
            let (module, interface) = (&endpoint.module, &endpoint.interface);
            let text = format!("module {module} exports no handler that interface {interface} can use");
            return Err(DispatchError::Host(text));
        };
        Ok(Some(Route::new(kind, version)))
    }

    fn has_had_module(&self) -> bool {
        self.0.slot.has_had_file()
    }

    fn handle(&self, route: Route, request: Request) -> RunToEnd<Result<Reply, DispatchError>> {
        let this = self.clone();
        RunToEnd::new(async move {
            let version = this.version_of(route)?;
            let Inner { dispatcher, endpoint, slot, .. } = &*this.0;
            let context = Dispatcher::tighten(request.context.clone(), &version);
            let request = Request { context: context.clone(), ..request };
            let work = async |in_flight: &mut InFlight<'_>| {
                let mut lease = dispatcher.admit(slot, version, &context, in_flight).await?;
                let result = lease.handle(request).await;
                finish(lease, result)
            };
            dispatcher.observed(endpoint, slot, &context, work).await
        })
    }

    async fn stream(
        &self,
        route: Route,
        context: Arc<RequestContext>,
        request: http::Request<StreamBody>,
        longest: Duration,
    ) -> Result<http::Response<StreamBody>, DispatchError> {
        let version = self.version_of(route)?;
        let Inner { dispatcher, endpoint, slot, .. } = &*self.0;
        let context = Arc::new(Dispatcher::tighten(context, &version).streamed(longest));
        let work = async |in_flight: &mut InFlight<'_>| {
            let lease = dispatcher.admit(slot, version, &context, in_flight).await?;
            let late = {
                let (this, context) = (self.clone(), context.clone());
                move |error: &DispatchError| {
                    let Inner { dispatcher, endpoint, slot, .. } = &*this.0;
                    let outcome = Outcome::of_error(error);
                    endpoint.readings.revise(outcome);
                    slot.readings.revise(outcome);
                    dispatcher.log_failure(endpoint, &context, error);
                }
            };
            web::serve(lease, context.clone(), request, late).await
        };
        dispatcher.observed(endpoint, slot, &context, work).await
    }

    async fn call(
        &self,
        context: Arc<RequestContext>,
        module: &str,
        function: &str,
        arguments: Payload,
    ) -> Result<Payload, DispatchError> {
        self.0.dispatcher.call_for(&self.0.endpoint, context, module, function, arguments).await
    }

    async fn answer_call(&self, call: Call) -> Result<Payload, DispatchError> {
        self.0.dispatcher.answer_call(&self.0.endpoint, call).await
    }

    async fn attempt(&self, entry: &CallEntry, message: Vec<u8>, deadline: Deadline) -> Result<(), DispatchError> {
        let endpoint = &self.0.endpoint;
        self.0.dispatcher.attempt(endpoint, &endpoint.interface, entry, message, deadline).await
    }

    fn flock(&self) -> String {
        self.0.dispatcher.flock()
    }

    fn set_remote(&self, remote: Arc<dyn Remote>) {
        self.0.dispatcher.set_remote(remote);
    }

    fn unset_remote(&self, remote: &Arc<dyn Remote>) {
        self.0.dispatcher.unset_remote(remote);
    }
}
