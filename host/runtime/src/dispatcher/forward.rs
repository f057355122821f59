//! Forwards requests of `wasi:http` from a module to the one that its import `wasi:http/handler` is bound to, for
//! `host_api/forward.rs`. The rules are those of calls. The target must run in this process, since bodies stream, which
//! connections between processes do not support.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::in_flight::InFlight;
use super::{Dispatcher, contained};
use crate::host_api::Home;
use crate::module::slot::Slot;
use crate::module::version::Version;
use crate::module::web;
use wasmcage_config::BindingTarget;
use wasmcage_core::admission::EntryKind;
use wasmcage_core::body::StreamBody;
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings::Outcome;
use wasmcage_core::request::RequestContext;

/// The name of the function in `[rpc.allow]` of the other cage.
const HANDLE: &str = "wasi:http/handler#handle";

type Request = http::Request<StreamBody>;
type Response = http::Response<StreamBody>;

impl Dispatcher {
    /// Lets the target answer a request that a module of this cage forwards while it works on `request`. Returns when the
    /// response's head has arrived.
    ///
    /// # Errors
    /// See the variants of `DispatchError`.
    pub async fn forward_from(
        &self,
        home: &Home,
        request: &RequestContext,
        target: &BindingTarget,
        forwarded: Request,
    ) -> Result<Response, DispatchError> {
        let context = self.nested(home, request, None)?;
        let callee = match target.cage.as_deref().filter(|cage| **cage != *home.cage) {
            Some(cage) => self.neighbour(cage).ok_or_else(|| {
                DispatchError::NoSuchCage(format!(
                    "cage {cage} does not run in this process, within which alone requests of wasi:http are handed on"
                ))
            })?,
            None => self.clone(),
        };
        callee.check_caller(&home.cage, &target.module, HANDLE)?;
        let current = callee.0.modules.get(&target.module).and_then(|slot| Some((slot.clone(), slot.current()?)));
        let (slot, version) = current.ok_or_else(|| callee.no_such_module(&target.module))?;
        let context = Dispatcher::tighten(context, &version);
        let context = match request.stream() {
            Some(outer) => Arc::new(context.streamed_within(outer, version.home.settings.timeout)),
            None => context,
        };
        let mut in_flight = InFlight::module(&slot);
        in_flight.work_begins();
        // This needs its own task: wasmtime cannot poll a guest of the concurrent engine from within the poll of another one.
        let answered = {
            let (callee, slot, context) = (callee.clone(), slot.clone(), context.clone());
            tokio::spawn(async move { contained(callee.forwarded(&slot, version, context, forwarded)).await })
        };
        let result = match AbortOnDropHandle::new(answered).await {
            Ok(result) => result,
            Err(error) => Err(DispatchError::Host(format!("the task that handed a request on has ended: {error}"))),
        };
        in_flight.finish(Outcome::of(&result));
        if let Err(error @ (DispatchError::Trap(_) | DispatchError::Host(_))) = &result {
            callee.log_call_failure(&slot, &context, error);
        }
        result
    }

    async fn forwarded(
        &self,
        slot: &Arc<Slot>,
        version: Arc<Version>,
        context: Arc<RequestContext>,
        request: Request,
    ) -> Result<Response, DispatchError> {
        self.check_cycle(slot, &version, &context)?;
        // As with calls, a request that already holds a permit of this cage needs no second one.
        let back = self.0.cages.abroad.comes_back(&context, &self.0.cage);
        let entry = if back.is_some() || context.holds_permit_of(&self.0.cage) {
            EntryKind::Within
        } else {
            EntryKind::Outside
        };
        let (version, place) = slot.enter(version, entry, context.deadline).await?;
        let lease = version.lease(place, context.deadline).await?;
        let late = {
            let (this, slot, context) = (self.clone(), slot.clone(), context.clone());
            move |error: &DispatchError| this.log_call_failure(&slot, &context, error)
        };
        web::serve(lease, context, request, late).await
    }
}
