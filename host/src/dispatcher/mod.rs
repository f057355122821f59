//! Between the interfaces and the modules: admission, route, deadline, the one error table, one completion event. Called
//! by interfaces with requests, and by `host_api/call.rs` with calls; the only caller of `module/`.

mod endpoint;
mod error;
mod remote;
mod run_to_end;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::RwLock;
use tokio::time::Instant;

pub use self::endpoint::{Endpoint, Route, RouteKind};
pub use self::error::DispatchError;
pub use self::remote::{Call, Member, Remote};
use self::run_to_end::RunToEnd;
use crate::admission::Admission;
use crate::config::{self, BindingTarget, CageConfig, InstanceMode};
use crate::host_api::Home;
use crate::module::binding::BoundFunction;
use crate::module::slot::Slot;
use crate::module::version::{Lease, Version};
use crate::module::{Modules, web};
use crate::readings::Outcome;
use crate::request::{CallTarget, Payload, Reply, Request, RequestContext};
use crate::telemetry::{Gate, Level, LevelCell};

/// Failures of requests that are logged in one second; the rest are counted only.
const FAILURES_LOGGED_PER_SECOND: u64 = 100;

/// How the copy of a cage that runs in this process is named among all copies.
const LOCAL_COPY: &str = "local";
/// Copies that one call to all of them reaches at most.
const COPIES_CALLED_MAX: usize = 256;

/// A streamed body on its way in or out of a module that speaks `wasi:http`.
pub type StreamBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// The cages of this process, by name.
#[derive(Default)]
pub struct Cages(RwLock<std::collections::HashMap<Arc<str>, WeakDispatcher>>);

impl Cages {
    pub fn add(&self, dispatcher: &Dispatcher) {
        self.0.write().insert(dispatcher.0.cage.clone(), dispatcher.downgrade());
    }

    pub fn remove(&self, cage: &str) {
        self.0.write().remove(cage);
    }

    fn get(&self, cage: &str) -> Option<Dispatcher> {
        self.0.read().get(cage).and_then(WeakDispatcher::upgrade)
    }
}

/// One for a cage.
#[derive(Clone)]
pub struct Dispatcher(Arc<Inner>);

/// What modules hold of it, so that a cage that has stopped is freed.
#[derive(Clone)]
pub struct WeakDispatcher(Weak<Inner>);

impl WeakDispatcher {
    pub fn upgrade(&self) -> Option<Dispatcher> {
        self.0.upgrade().map(Dispatcher)
    }
}

struct Inner {
    cage: Arc<str>,
    modules: Arc<Modules>,
    cages: Arc<Cages>,
    config: Arc<ArcSwap<CageConfig>>,
    admission: Arc<Admission>,
    level: Arc<LevelCell>,
    failures: Gate,
    /// None while no interface carries calls to cages elsewhere.
    remote: RwLock<Option<Arc<dyn Remote>>>,
}

impl Dispatcher {
    pub fn new(
        config: Arc<ArcSwap<CageConfig>>,
        modules: Arc<Modules>,
        cages: Arc<Cages>,
        level: Arc<LevelCell>,
    ) -> Self {
        let loaded = config.load();
        let dispatcher = Self(Arc::new(Inner {
            cage: loaded.cage.as_str().into(),
            modules,
            cages: cages.clone(),
            admission: Admission::new(loaded.concurrency, loaded.queue),
            level,
            failures: Gate::new(FAILURES_LOGGED_PER_SECOND, Duration::from_secs(1)),
            remote: RwLock::default(),
            config,
        }));
        cages.add(&dispatcher);
        dispatcher
    }

    pub fn downgrade(&self) -> WeakDispatcher {
        WeakDispatcher(Arc::downgrade(&self.0))
    }

    /// Takes over the limits of a changed `cage.toml`.
    pub fn reconfigure(&self) {
        let config = self.0.config.load();
        self.0.admission.set_limits(config.concurrency, config.queue);
    }

    /// Requests in work and waiting.
    pub fn load(&self) -> (usize, usize) {
        (self.0.admission.in_work(), self.0.admission.waiting())
    }

    /// Has a `handler` module answer. Once begun it runs to its end, or to the deadline, even when the caller drops
    /// this future because its client left.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn handle(
        &self,
        endpoint: &Arc<Endpoint>,
        route: Route,
        request: Request,
    ) -> Result<Reply, DispatchError> {
        let (this, endpoint) = (self.clone(), endpoint.clone());
        RunToEnd::new(async move {
            let context = this.tighten(request.context.clone(), &route.version);
            let request = Request { context: context.clone(), ..request };
            this.observed(&endpoint, &context, async |this: &Self, begun: &mut Option<Instant>| {
                let mut lease = this.admit(&endpoint.slot, route.version, &context, begun).await?;
                let index = lease.version().exports.handler;
                let index =
                    index.ok_or_else(|| DispatchError::Host(format!("module {} lost its handler", endpoint.module)))?;
                let result = lease.handle(&index, request).await;
                finish(lease, result)
            })
            .await
        })
        .await
    }

    /// Has a `wasi:http` module answer. Resolves when the response's head is there; bodies stream both ways, up to the
    /// deadline. A client that leaves before the head ends the guest.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn stream(
        &self,
        endpoint: &Arc<Endpoint>,
        route: Route,
        context: Arc<RequestContext>,
        request: http::Request<StreamBody>,
    ) -> Result<http::Response<StreamBody>, DispatchError> {
        let context = self.tighten(context, &route.version);
        self.observed(endpoint, &context, async |this: &Self, begun: &mut Option<Instant>| {
            let lease = this.admit(&endpoint.slot, route.version, &context, begun).await?;
            let (this, endpoint, context) = (this.clone(), endpoint.clone(), context.clone());
            let late = {
                let context = context.clone();
                move |error: &DispatchError| this.log_failure(&endpoint, &context, error)
            };
            web::serve(lease, context, request, late).await
        })
        .await
    }

    /// From now on calls to cages elsewhere go this way; with none, there is no way. Returns the one before.
    pub fn set_remote(&self, remote: Option<Arc<dyn Remote>>) -> Option<Arc<dyn Remote>> {
        std::mem::replace(&mut *self.0.remote.write(), remote)
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
        let Some(cage) = target.cage.filter(|cage| **cage != *home.cage) else {
            return self.call(context, &target.module, target.function, arguments).await;
        };
        if !options.bound {
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
        let cage = target.cage.unwrap_or_else(|| home.cage.to_string());
        if *cage != *home.cage {
            self.check_grant(home, &cage)?;
        }
        let call = self.outgoing(context, cage, target.module, target.function, arguments, options);
        let remote = self.remote();
        let copies = remote.as_ref().map(|remote| remote.copies(&call.cage)).unwrap_or_default();
        let here = self.neighbour(&call.cage).map(|callee| {
            let call = call.clone();
            async move { (LOCAL_COPY.to_owned(), callee.called_here(call).await) }
        });
        if here.is_none() && copies.is_empty() {
            return Err(self.no_such_cage(&call.cage));
        }
        let elsewhere = futures_util::future::join_all(copies.into_iter().take(COPIES_CALLED_MAX).map(|copy| {
            let (call, remote) = (call.clone(), remote.clone());
            async move {
                let remote = remote.expect("it named the copies");
                let call = Call { arguments: call.arguments.encoded(), ..call };
                let result = remote.call(call, Some(&copy)).await;
                (copy, result)
            }
        }));
        let (here, elsewhere) =
            futures_util::future::join(futures_util::future::OptionFuture::from(here), elsewhere).await;
        Ok(here.into_iter().chain(elsewhere).collect())
    }

    /// The context of a call that a guest makes, unless calls are nested too deep.
    fn nested(
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

    fn check_grant(&self, home: &Home, cage: &str) -> Result<(), DispatchError> {
        if home.settings.allow.cages.iter().any(|allowed| allowed == cage) {
            return Ok(());
        }
        Err(DispatchError::NotPermitted(format!(
            "module {} may not call cage {cage}: add it to allow = {{ cages = [..] }} of [modules.{}]",
            home.module, home.module
        )))
    }

    fn outgoing(
        &self,
        context: Arc<RequestContext>,
        cage: String,
        module: String,
        function: String,
        arguments: Payload,
        options: CallOptions,
    ) -> Call {
        let idempotent = options.idempotent || self.0.config.load().calls.is_idempotent(&cage, &module, &function);
        Call { context, cage, module, function, arguments, idempotent }
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
            Some(remote) => remote.call(Call { arguments: call.arguments.encoded(), ..call }, None).await,
            None => Err(self.no_such_cage(&call.cage)),
        }
    }

    /// The version that serves a module of this cage, or of another one of this process; none while none is known here.
    pub fn serving(&self, target: &BindingTarget) -> Option<Arc<Version>> {
        let cage = match &target.cage {
            Some(cage) => self.neighbour(cage)?,
            None => self.clone(),
        };
        cage.0.modules.get(&target.module)?.current()
    }

    /// What modules of this process are bound to of a module of this cage, each with the name of who is.
    pub fn bound_to(&self, module: &str) -> Vec<(String, Arc<BoundFunction>)> {
        let cages: Vec<_> = self.0.cages.0.read().values().filter_map(WeakDispatcher::upgrade).collect();
        let flock = &self.0.config.load().flock;
        let neighbours = cages.iter().filter(|cage| cage.0.config.load().flock == *flock);
        let mut bound = Vec::new();
        for version in neighbours.flat_map(|cage| cage.0.modules.all()).filter_map(|slot| slot.current()) {
            let home = &version.home;
            let caller = format!("{}/{}", home.cage, home.module);
            let mine = version.bound.iter().filter(|interface| {
                let target = &interface.target;
                target.module == module && *target.cage.as_deref().unwrap_or(&home.cage) == *self.0.cage
            });
            bound.extend(mine.flat_map(|interface| interface.functions.iter().map(|f| (caller.clone(), f.clone()))));
        }
        bound
    }

    /// A cage of this process and of this cage's flock; it may be this one.
    fn neighbour(&self, cage: &str) -> Option<Dispatcher> {
        let callee = self.0.cages.get(cage)?;
        (callee.0.config.load().flock == self.0.config.load().flock).then_some(callee)
    }

    fn no_such_cage(&self, name: &str) -> DispatchError {
        let cages = self.0.cages.0.read();
        let hint = hint(name, cages.keys().map(|name| &**name));
        DispatchError::NoSuchCage(format!(
            "cage {name} does not run in this process, and calls to others are turned off{hint}"
        ))
    }

    /// A call that another cage makes, the last of the context's callers. Whoever made the context knows that for sure.
    async fn called_here(&self, call: Call) -> Result<Payload, DispatchError> {
        let Call { context, module, function, arguments, .. } = call;
        self.check_caller(&context, &module, &function)?;
        // Whoever is on the way through this cage already holds a place in it; waiting for a second could deadlock.
        let prefix = format!("{}/", self.0.cage);
        let _place = match context.callers.iter().any(|caller| caller.starts_with(&prefix)) {
            true => None,
            false => Some(self.0.admission.enter(context.deadline).await.map_err(DispatchError::from)?),
        };
        self.call(context, &module, function, arguments).await
    }

    fn check_caller(&self, context: &RequestContext, module: &str, function: &str) -> Result<(), DispatchError> {
        let last = context.callers.last().map(|caller| &**caller).unwrap_or_default();
        let caller = last.split_once('/').map_or(last, |(cage, _)| cage);
        if *caller == *self.0.cage || self.0.config.load().calls.permits(caller, module, function) {
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
    pub async fn called(&self, endpoint: &Endpoint, call: Call) -> Result<Payload, DispatchError> {
        let mut served = Served::begin(self, endpoint, &call);
        let result = AssertUnwindSafe(self.called_here(call)).catch_unwind().await;
        let result =
            result.unwrap_or_else(|panic| Err(DispatchError::Host(format!("panicked: {}", panic_text(&*panic)))));
        served.outcome = Outcome::of(&result);
        result.map(Payload::encoded)
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
        let slot = self.0.modules.get(module);
        let Some((slot, version)) = slot.and_then(|slot| Some((slot.clone(), slot.current()?))) else {
            return Err(self.no_such_module(module));
        };
        let context = self.tighten(context, &version);
        slot.readings.begin();
        let begun = Instant::now();
        let result = self.call_version(&slot, version, context.clone(), function, arguments).await;
        slot.readings.end(Outcome::of(&result), Duration::ZERO, begun.elapsed());
        if let Err(error @ (DispatchError::Trap(_) | DispatchError::Host(_))) = &result {
            self.log_call_failure(&slot, &context, error);
        }
        result
    }

    async fn call_version(
        &self,
        slot: &Slot,
        version: Arc<Version>,
        context: Arc<RequestContext>,
        function: String,
        arguments: Payload,
    ) -> Result<Payload, DispatchError> {
        let listed = version.use_service_function(&function).is_some();
        if !listed && version.exports.function(&function).is_none() {
            return Err(no_such_function(slot, &version, &function));
        }
        let name = format!("{}/{}", self.0.cage, slot.name);
        if version.home.settings.instances.mode == InstanceMode::Single && context.callers.iter().any(|c| **c == *name)
        {
            let chain = context.callers.join(" > ");
            let text = format!("{chain} > {name} is a cycle, and {name} runs one call at a time");
            return Err(DispatchError::Failed(text));
        }
        let mut lease = slot.checkout(version, context.deadline).await?;
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

    /// A module's own timeout can only shorten the deadline.
    fn tighten(&self, context: Arc<RequestContext>, version: &Version) -> Arc<RequestContext> {
        match version.home.settings.timeout.map(|timeout| context.deadline.within(timeout)) {
            Some(deadline) if deadline < context.deadline => Arc::new(context.with_deadline(deadline)),
            Some(_) | None => context,
        }
    }

    /// A place in the cage, then an instance. The place is given up when the lease's call is over.
    async fn admit(
        &self,
        slot: &Slot,
        version: Arc<Version>,
        context: &RequestContext,
        begun: &mut Option<Instant>,
    ) -> Result<Lease, DispatchError> {
        let place = self.0.admission.enter(context.deadline).await?;
        *begun = Some(Instant::now());
        let mut lease = slot.checkout(version, context.deadline).await?;
        lease.hold(place);
        Ok(lease)
    }

    /// Around every request from outside: readings, a panic's containment, the failure's log line, the completion event.
    async fn observed<T>(
        &self,
        endpoint: &Endpoint,
        context: &RequestContext,
        work: impl AsyncFnOnce(&Self, &mut Option<Instant>) -> Result<T, DispatchError>,
    ) -> Result<T, DispatchError> {
        let mut completion =
            Completion { dispatcher: self, endpoint, context, begun: None, outcome: Outcome::Abandoned };
        endpoint.readings.begin();
        endpoint.slot.readings.begin();
        let result = AssertUnwindSafe(work(self, &mut completion.begun)).catch_unwind().await;
        let result =
            result.unwrap_or_else(|panic| Err(DispatchError::Host(format!("panicked: {}", panic_text(&*panic)))));
        completion.outcome = Outcome::of(&result);
        if let Err(error) = &result {
            self.log_failure(endpoint, context, error);
        }
        result
    }

    fn log_failure(&self, endpoint: &Endpoint, context: &RequestContext, error: &DispatchError) {
        let Some(suppressed) = self.0.failures.pass() else { return };
        let (cage, interface, module) = (&*self.0.cage, &*endpoint.interface, &*endpoint.module);
        let request = tracing::field::display(context.tail());
        let suppressed = (suppressed > 0).then_some(suppressed);
        macro_rules! event {
            ($level:ident) => {
                tracing::event!(
                    tracing::Level::$level, cage, interface, module, %error, suppressed, request, "request failed"
                )
            };
        }
        match error {
            DispatchError::Trap(_) | DispatchError::Host(_) => event!(ERROR),
            DispatchError::Failed(_)
            | DispatchError::Lost(_)
            | DispatchError::DeadlineExceeded(_)
            | DispatchError::Overloaded(_)
            | DispatchError::NoSuchCage(_)
            | DispatchError::NoSuchModule(_)
            | DispatchError::NoSuchFunction(_)
            | DispatchError::NotPermitted(_) => event!(WARN),
            DispatchError::BadRequest(_) | DispatchError::Refused(_) | DispatchError::Draining => event!(INFO),
        }
    }

    /// What a caller may handle in silence and the callee's operator must know.
    fn log_call_failure(&self, slot: &Slot, context: &RequestContext, error: &DispatchError) {
        let Some(suppressed) = self.0.failures.pass() else { return };
        let suppressed = (suppressed > 0).then_some(suppressed);
        let caller = context.callers.last().map(|caller| &**caller);
        let (cage, module, request) = (&*self.0.cage, &*slot.name, tracing::field::display(context.tail()));
        tracing::error!(cage, module, caller, %error, suppressed, request, "call failed");
    }

    fn no_such_module(&self, name: &str) -> DispatchError {
        let hint = hint(name, self.0.modules.names().iter().map(|name| &**name));
        DispatchError::NoSuchModule(format!("file {name}.wasm was not found in cage {}{hint}", self.0.cage))
    }
}

/// The instance may serve again when the guest itself gave the result, good or bad.
fn finish<T>(lease: Lease, result: Result<T, DispatchError>) -> Result<T, DispatchError> {
    match &result {
        Ok(_)
        | Err(DispatchError::BadRequest(_) | DispatchError::Refused(_) | DispatchError::Failed(_))
        | Err(DispatchError::NoSuchCage(_) | DispatchError::NoSuchModule(_) | DispatchError::NoSuchFunction(_)) => {
            lease.keep();
        }
        Err(
            DispatchError::NotPermitted(_)
            | DispatchError::Trap(_)
            | DispatchError::DeadlineExceeded(_)
            | DispatchError::Lost(_)
            | DispatchError::Overloaded(_)
            | DispatchError::Draining
            | DispatchError::Host(_),
        ) => drop(lease),
    }
    result
}

fn no_such_function(slot: &Slot, version: &Version, function: &str) -> DispatchError {
    let known = version.service_functions().chain(version.exports.functions.keys().map(String::as_str));
    DispatchError::NoSuchFunction(format!("module {} has no function `{function}`{}", slot.name, hint(function, known)))
}

/// `; did you mean ..?` when there is a name much like it.
fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    config::nearest(name, known).map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// How a call is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    /// At most this long, and never longer than the request's deadline.
    pub timeout: Option<Duration>,
    pub idempotent: bool,
    /// `cage.toml` binds an import to this module, which grants the call.
    pub bound: bool,
}

/// Counts and tells the end of a call from elsewhere, also when its future is dropped because the caller gave up.
struct Served<'a> {
    endpoint: &'a Endpoint,
    /// Module and function, for the event; none while nobody reads it.
    told: Option<(Arc<RequestContext>, String, String)>,
    begun: Instant,
    outcome: Outcome,
}

impl<'a> Served<'a> {
    fn begin(dispatcher: &Dispatcher, endpoint: &'a Endpoint, call: &Call) -> Self {
        endpoint.readings.begin();
        let level = call.context.level().unwrap_or_else(|| dispatcher.0.level.get());
        let told = (level >= Level::Debug).then(|| (call.context.clone(), call.module.clone(), call.function.clone()));
        Self { endpoint, told, begun: Instant::now(), outcome: Outcome::Abandoned }
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        let (outcome, elapsed) = (self.outcome, self.begun.elapsed());
        self.endpoint.readings.end(outcome, Duration::ZERO, elapsed);
        if let Some((context, module, function)) = &self.told {
            tracing::debug!(
                target: "access",
                cage = %self.endpoint.cage,
                interface = %self.endpoint.interface,
                module = %module,
                function = %function,
                caller = context.callers.last().map(|caller| &**caller),
                outcome = outcome.name(),
                elapsed_us = elapsed.as_micros() as u64,
                request = %context.tail(),
                "call completed"
            );
        }
    }
}

/// Counts and tells the end of a request, also when its future is dropped because the client left.
struct Completion<'a> {
    dispatcher: &'a Dispatcher,
    endpoint: &'a Endpoint,
    context: &'a RequestContext,
    /// When work on it began; none while it waits.
    begun: Option<Instant>,
    outcome: Outcome,
}

impl Drop for Completion<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let begun = self.begun.unwrap_or(now);
        let (pending, processing) = (begun - self.context.started, now - begun);
        self.endpoint.readings.end(self.outcome, pending, processing);
        self.endpoint.slot.readings.end(self.outcome, pending, processing);
        let level = self.context.level().unwrap_or_else(|| self.dispatcher.0.level.get());
        if level >= Level::Debug {
            tracing::debug!(
                target: "access",
                cage = %self.endpoint.cage,
                interface = %self.endpoint.interface,
                module = %self.endpoint.module,
                outcome = self.outcome.name(),
                pending_us = pending.as_micros() as u64,
                elapsed_us = processing.as_micros() as u64,
                request = %self.context.tail(),
                "request completed"
            );
        }
    }
}
