//! Calls from module to module: in the same cage, in another one of this process, or elsewhere. The same rules hold on
//! all three ways: depth, grants of the caller, permissions of the callee, admission, deadlines.

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

/// How the copy of a cage that runs in this process is named among all copies.
const LOCAL_COPY: &str = "local";
/// Copies that one call to all of them reaches at most.
const COPIES_CALLED_MAX: usize = 256;

/// How a call is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    /// At most this long, and never longer than the request's deadline.
    pub timeout: Option<Duration>,
    pub idempotent: bool,
    /// `cage.toml` binds an import to this module, which grants the call.
    pub bound: bool,
}

impl Dispatcher {
    /// From now on calls to cages elsewhere go this way.
    pub fn set_remote(&self, remote: Arc<dyn Remote>) {
        *self.0.remote.write() = Some(remote);
    }

    /// There is no way to cages elsewhere any more, unless another one was set since.
    pub fn unset_remote(&self, remote: &Arc<dyn Remote>) {
        self.0.remote.write().take_if(|known| Arc::ptr_eq(known, remote));
    }

    /// Ends the ways to cages elsewhere.
    pub fn disconnect(&self) {
        self.0.remote.write().take();
    }

    fn remote(&self) -> Option<Arc<dyn Remote>> {
        self.0.remote.read().clone()
    }

    /// Copies of cages that are known elsewhere.
    pub fn members(&self) -> Vec<Member> {
        self.remote().map(|remote| remote.members()).unwrap_or_default()
    }

    /// The flock this cage belongs to.
    pub fn flock(&self) -> String {
        self.0.config.load().flock.clone()
    }

    /// A call that a module of this cage makes while it works on `request`.
    ///
    /// # Errors
    /// See the kinds.
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

    /// The same call to every copy of the target's cage that is known now, at once; each with its copy's name.
    ///
    /// # Errors
    /// Why none was called.
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

    /// The call to every copy of its cage that is known now, at once.
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

    /// The context of a call that a guest makes, unless calls are nested too deep.
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

    /// Whether `cage.toml` still binds an import of the module to that cage.
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

    /// Calls a cage by its name, wherever it runs: here if it does.
    ///
    /// # Errors
    /// See the kinds.
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

    /// A cage of this process and of this cage's flock; it may be this one.
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

    /// A call that another cage makes, the last of the context's callers. Whoever made the context knows that for sure.
    async fn called_here(&self, call: Call) -> Result<Payload, DispatchError> {
        let Call { context, action, arguments, .. } = call;
        let (module, function) = match action {
            CallAction::Run { module, function } => (module, function),
            CallAction::AcceptRetried => return self.take_over(&context, arguments).await,
        };
        self.check_caller(context.calling_cage(), &module, &function)?;
        // Whoever is on the way through this cage already holds a place in it; waiting for a second could deadlock.
        let back = self.0.cages.abroad.comes_back(&context, &self.0.cage);
        let entry = if back.is_some() || context.holds_permit_of(&self.0.cage) {
            EntryKind::Within
        } else {
            EntryKind::Outside
        };
        self.enter_and_call(entry, context, &module, function, arguments).await
    }

    /// Whether another cage, or the command line, may call this function here.
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

    /// A call that came through an interface, from a cage elsewhere.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn answer_call(&self, endpoint: &Endpoint, call: Call) -> Result<Payload, DispatchError> {
        let in_flight = InFlight::call(self, endpoint, &call.context, || call.action.clone());
        let result = contained(self.called_here(call)).await;
        in_flight.finish(Outcome::of(&result));
        result.map(Payload::encoded)
    }

    /// A call that an interface makes for what came in, such as a message. Its context names no caller.
    ///
    /// # Errors
    /// See the kinds.
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

    /// Calls a function of a module of this cage: one that its `service` lists, or a plain typed export. The caller holds
    /// a place in the cage.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn call(
        &self,
        context: Arc<RequestContext>,
        module: &str,
        function: String,
        arguments: Payload,
    ) -> Result<Payload, DispatchError> {
        self.enter_and_call(EntryKind::Within, context, module, function, arguments).await
    }

    /// The same by a caller who may need a place, too.
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

    /// A `single` module that is called on behalf of its own call would wait for itself.
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

/// A call of a function of one of this cage's modules.
struct CallHere<'a> {
    slot: &'a Slot,
    context: Arc<RequestContext>,
    function: String,
    arguments: Payload,
    entry: EntryKind,
}
