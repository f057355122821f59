//! Makes calls from module to module: in the same cage, in another cage of this process, or elsewhere. The same rules apply to
//! all three: depth, grants of the caller, permissions of the callee, admission, deadlines.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{OptionFuture, join, join_all};

use super::in_flight::InFlight;
use super::{Dispatcher, contained, finish, hint, no_such_function};
use crate::host_api::Home;
use crate::module::slot::Slot;
use crate::module::version::Version;
use wasmcage_config::InstanceMode;
use wasmcage_core::admission::EntryKind;
use wasmcage_core::call::{COMMAND_LINE, Call, CallAction, Member, Remote};
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings::Outcome;
use wasmcage_core::request::{CallTarget, Payload, RequestContext};
use wasmcage_protocol::Endpoint;

/// The name, among all copies of a cage, of the copy that runs in this process.
const LOCAL_COPY: &str = "local";
/// The greatest number of copies elsewhere that one call to all copies reaches.
const COPIES_CALLED_MAX: usize = 256;

/// The options of a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    /// The timeout of the call. The request's deadline applies as well.
    pub timeout: Option<Duration>,
    pub idempotent: bool,
    /// Is true if `cage.toml` binds an import to the called module, which grants the call.
    pub bound: bool,
}

impl Dispatcher {
    /// Sets the connection by which calls to cages elsewhere go from now on.
    pub fn set_remote(&self, remote: Arc<dyn Remote>) {
        *self.0.remote.write() = Some(remote);
    }

    /// Removes the connection to cages elsewhere, unless another one was set since.
    pub fn unset_remote(&self, remote: &Arc<dyn Remote>) {
        self.0.remote.write().take_if(|known| Arc::ptr_eq(known, remote));
    }

    /// Removes the connection to cages elsewhere.
    pub fn disconnect(&self) {
        self.0.remote.write().take();
    }

    fn remote(&self) -> Option<Arc<dyn Remote>> {
        self.0.remote.read().clone()
    }

    /// Returns the known copies of cages elsewhere.
    pub fn members(&self) -> Vec<Member> {
        self.remote().map(|remote| remote.members()).unwrap_or_default()
    }

    /// Returns the name of the flock that this cage belongs to.
    pub fn flock(&self) -> String {
        self.0.config.load().flock.clone()
    }

    /// Makes a call for a module of this cage that works on `request`.
    ///
    /// # Errors
    /// See the variants of `DispatchError`.
    pub async fn call_from(
        &self,
        home: &Home,
        request: &RequestContext,
        target: CallTarget,
        arguments: Payload,
        options: CallOptions,
    ) -> Result<Payload, DispatchError> {
        let context = self.nested(home, request, options.timeout)?;
        if target.module.is_empty() {
            return Err(self.no_such_module(""));
        }
        let Some(cage) = target.cage.filter(|cage| **cage != *home.cage) else {
            return self.call(context, &target.module, target.function, arguments).await;
        };
        if !(options.bound && self.is_bound(home, &cage)) {
            self.check_grant(home, &cage)?;
        }
        self.call_cage(self.outgoing(context, cage, target.module, target.function, arguments, options)).await
    }

    /// Makes a call to every known copy of the target's cage at the same time. Returns the result of each with the copy's name.
    ///
    /// # Errors
    /// No copy was called, for the reason that the error tells.
    pub async fn call_all_from(
        &self,
        home: &Home,
        request: &RequestContext,
        target: CallTarget,
        arguments: Payload,
        options: CallOptions,
    ) -> Result<Vec<(String, Result<Payload, DispatchError>)>, DispatchError> {
        let context = self.nested(home, request, options.timeout)?;
        if target.module.is_empty() {
            return Err(self.no_such_module(""));
        }
        let cage = target.cage.unwrap_or_else(|| home.cage.to_string());
        if *cage != *home.cage {
            self.check_grant(home, &cage)?;
        }
        self.call_copies(self.outgoing(context, cage, target.module, target.function, arguments, options)).await
    }

    /// Makes a call to every known copy of its cage at the same time. Returns the result of each with the copy's name.
    pub(super) async fn call_copies(
        &self,
        call: Call,
    ) -> Result<Vec<(String, Result<Payload, DispatchError>)>, DispatchError> {
        let remote = self.remote();
        let copies = remote.as_ref().map(|remote| remote.copies(&call.cage)).unwrap_or_default();
        let here = self.neighbour(&call.cage).map(|callee| {
            let call = call.clone();
            async move { (LOCAL_COPY.to_owned(), callee.called_here(call).await) }
        });
        if here.is_none() && copies.is_empty() {
            return Err(self.no_such_cage(&call.cage));
        }
        let _journey = self.0.cages.abroad.leave(&call.context);
        let elsewhere = join_all(copies.into_iter().take(COPIES_CALLED_MAX).map(|copy| {
            let (call, remote) = (call.clone(), remote.clone());
            async move {
                let remote = remote.expect("it named the copies");
                let result = remote.call(call, Some(&copy)).await;
                (copy, result)
            }
        }));
        let (here, elsewhere) = join(OptionFuture::from(here), elsewhere).await;
        Ok(here.into_iter().chain(elsewhere).collect())
    }

    /// Returns the context of a call that a guest makes.
    ///
    /// # Errors
    /// `Failed` if calls are nested too deep.
    pub(super) fn nested(
        &self,
        home: &Home,
        request: &RequestContext,
        timeout: Option<Duration>,
    ) -> Result<Arc<RequestContext>, DispatchError> {
        let depth_max = self.0.config.load().call_depth;
        if request.callers.len() >= depth_max {
            return Err(DispatchError::Failed(format!(
                "calls are nested {depth_max} deep: {}",
                request.callers.join(" > ")
            )));
        }
        Ok(Arc::new(request.for_call(&home.cage, &home.module, timeout)))
    }

    /// Returns whether `cage.toml` still binds an import of the module to that cage.
    fn is_bound(&self, home: &Home, cage: &str) -> bool {
        let config = self.0.config.load();
        let module = config.modules.get(&*home.module);
        module.is_some_and(|module| module.imports.iter().any(|binding| binding.target.cage.as_deref() == Some(cage)))
    }

    pub(super) fn check_grant(&self, home: &Home, cage: &str) -> Result<(), DispatchError> {
        if home.granted().permits_cage(cage) {
            return Ok(());
        }
        Err(DispatchError::NotPermitted(format!(
            "module {} may not call cage {cage}: add it to allow = {{ cages = [..] }} of [modules.{}]",
            home.module, home.module
        )))
    }

    pub(super) fn outgoing(
        &self,
        context: Arc<RequestContext>,
        cage: String,
        module: String,
        function: String,
        arguments: Payload,
        options: CallOptions,
    ) -> Call {
        let idempotent = options.idempotent || self.0.config.load().calls.is_idempotent(&cage, &module, &function);
        Call { context, cage, action: CallAction::Run { module, function }, arguments, idempotent }
    }

    /// Calls a cage by its name. If it runs in this process, that copy is called, otherwise one elsewhere.
    ///
    /// # Errors
    /// See the variants of `DispatchError`.
    pub async fn call_cage(&self, call: Call) -> Result<Payload, DispatchError> {
        if let Some(callee) = self.neighbour(&call.cage) {
            return callee.called_here(call).await;
        }
        match self.remote() {
            Some(remote) => {
                let _journey = self.0.cages.abroad.leave(&call.context);
                remote.call(Call { arguments: call.arguments.encoded(), ..call }, None).await
            }
            None => Err(self.no_such_cage(&call.cage)),
        }
    }

    /// Returns the cage of this name if it runs in this process and belongs to the same flock. It may be this cage.
    pub(super) fn neighbour(&self, cage: &str) -> Option<Dispatcher> {
        let callee = self.0.cages.get(cage)?;
        (callee.0.config.load().flock == self.0.config.load().flock).then_some(callee)
    }

    fn no_such_cage(&self, name: &str) -> DispatchError {
        let cages = self.0.cages.by_name.read();
        let hint = hint(name, cages.keys().map(|name| &**name));
        DispatchError::NoSuchCage(format!(
            "cage {name} does not run in this process, and calls to others are turned off{hint}"
        ))
    }

    /// Serves a call by another cage, which is the last of the context's callers. The code that made the context has verified
    /// that caller.
    async fn called_here(&self, call: Call) -> Result<Payload, DispatchError> {
        let Call { context, action, arguments, .. } = call;
        let (module, function) = match action {
            CallAction::Run { module, function } => (module, function),
            CallAction::AcceptRetried => return self.take_over(&context, arguments).await,
        };
        self.check_caller(context.calling_cage(), &module, &function)?;
        // A request that already holds a permit of this cage must not wait for a second one, which could deadlock.
        let back = self.0.cages.abroad.comes_back(&context, &self.0.cage);
        let entry = if back.is_some() || context.holds_permit_of(&self.0.cage) {
            EntryKind::Within
        } else {
            EntryKind::Outside
        };
        self.enter_and_call(entry, context, &module, function, arguments).await
    }

    /// Checks that another cage, or the command line, may call this function here.
    ///
    /// # Errors
    /// `NotPermitted` if it may not.
    pub(super) fn check_caller(&self, caller: &str, module: &str, function: &str) -> Result<(), DispatchError> {
        if *caller == *self.0.cage
            || caller == COMMAND_LINE
            || self.0.config.load().calls.permits(caller, module, function)
        {
            return Ok(());
        }
        Err(DispatchError::NotPermitted(format!(
            "cage {caller} may not call {module}.{function} of cage {}: see [rpc.allow] in its cage.toml",
            self.0.cage
        )))
    }

    /// Serves a call that came through an interface from a cage elsewhere.
    ///
    /// # Errors
    /// See the variants of `DispatchError`.
    pub async fn answer_call(&self, endpoint: &Endpoint, call: Call) -> Result<Payload, DispatchError> {
        let in_flight = InFlight::call(self, endpoint, &call.context, || call.action.clone());
        let result = contained(self.called_here(call)).await;
        in_flight.finish(Outcome::of(&result));
        result.map(Payload::encoded)
    }

    /// Makes a call for an interface that has received something, such as a message. Its context names no caller.
    ///
    /// # Errors
    /// See the variants of `DispatchError`.
    pub async fn call_for(
        &self,
        endpoint: &Endpoint,
        context: Arc<RequestContext>,
        module: &str,
        function: &str,
        arguments: Payload,
    ) -> Result<Payload, DispatchError> {
        let in_flight = InFlight::call(self, endpoint, &context, || CallAction::Run {
            module: module.to_owned(),
            function: function.to_owned(),
        });
        let work = self.enter_and_call(EntryKind::Outside, context.clone(), module, function.to_owned(), arguments);
        let result = contained(work).await;
        in_flight.finish(Outcome::of(&result));
        if let Err(error) = &result {
            self.log_failure(endpoint, &context, error);
        }
        result
    }

    /// Calls a function of a module of this cage: one that its `service` lists, or a plain typed export. The caller must hold
    /// a permit of the cage.
    ///
    /// # Errors
    /// See the variants of `DispatchError`.
    pub async fn call(
        &self,
        context: Arc<RequestContext>,
        module: &str,
        function: String,
        arguments: Payload,
    ) -> Result<Payload, DispatchError> {
        self.enter_and_call(EntryKind::Within, context, module, function, arguments).await
    }

    /// Calls a function as `call` does. `entry` says whether the call needs a permit of the cage.
    pub(super) async fn enter_and_call(
        &self,
        entry: EntryKind,
        context: Arc<RequestContext>,
        module: &str,
        function: String,
        arguments: Payload,
    ) -> Result<Payload, DispatchError> {
        let slot = self.0.modules.get(module);
        let Some((slot, version)) = slot.and_then(|slot| Some((slot.clone(), slot.current()?))) else {
            return Err(self.no_such_module(module));
        };
        let context = Self::tighten(context, &version);
        let mut in_flight = InFlight::module(&slot);
        let call = CallHere { slot: &slot, context: context.clone(), function, arguments, entry };
        let result = self.call_version(version, call, &mut in_flight).await;
        in_flight.finish(Outcome::of(&result));
        if let Err(error @ (DispatchError::Trap(_) | DispatchError::Host(_))) = &result {
            self.log_call_failure(&slot, &context, error);
        }
        result
    }

    async fn call_version(
        &self,
        version: Arc<Version>,
        call: CallHere<'_>,
        in_flight: &mut InFlight<'_>,
    ) -> Result<Payload, DispatchError> {
        let CallHere { slot, context, function, arguments, entry } = call;
        let listed = version.use_service_function(&function).is_some();
        if !listed && version.exports.function(&function).is_none() {
            return Err(no_such_function(slot, &version, &function));
        }
        self.check_cycle(slot, &version, &context)?;
        let (version, place) = slot.enter(version, entry, context.deadline).await?;
        in_flight.work_begins();
        let mut lease = version.lease(place, context.deadline).await?;
        let version = lease.version().clone();
        let result = match (&version.exports.service, version.exports.function(&function)) {
            (Some(service), _) if listed => lease.call_service(&service.call, context, function, arguments).await,
            (_, Some(plain)) => {
                plain.mark_used();
                lease.call_plain(&function, plain, context, arguments).await
            }
            _ => Err(no_such_function(slot, &version, &function)),
        };
        finish(lease, result)
    }

    /// Checks that a call does not lead back to a `single` module that waits for it, which would be a deadlock.
    ///
    /// # Errors
    /// `Failed` if it does.
    pub(super) fn check_cycle(
        &self,
        slot: &Slot,
        version: &Version,
        context: &RequestContext,
    ) -> Result<(), DispatchError> {
        let name = format!("{}/{}", self.0.cage, slot.name);
        if version.mode == InstanceMode::Single && context.callers.iter().any(|caller| **caller == *name) {
            let chain = context.callers.join(" > ");
            let text = format!("{chain} > {name} is a cycle, and {name} runs one call at a time");
            return Err(DispatchError::Failed(text));
        }
        Ok(())
    }
}

/// A call of a function of a module of this cage.
struct CallHere<'a> {
    slot: &'a Slot,
    context: Arc<RequestContext>,
    function: String,
    arguments: Payload,
    entry: EntryKind,
}
