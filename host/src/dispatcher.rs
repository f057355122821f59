//! Between the interfaces and the modules: admission, route, deadline, the one error table, one completion event. Called
//! by interfaces with requests, and by `host_api/call.rs` with calls; the only caller of `module/`.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admission::{Admission, Refusal};
use crate::config::{self, CageConfig, ExportChoice, InstanceMode};
use crate::host_api::Home;
use crate::module::slot::Slot;
use crate::module::version::{Lease, Version};
use crate::module::{Modules, web};
use crate::readings::{Outcome, Readings};
use crate::request::{CallTarget, Payload, Reply, Request, RequestContext};
use crate::telemetry::{Gate, Level, LevelCell};

/// Failures of requests that are logged in one second; the rest are counted only.
const FAILURES_LOGGED_PER_SECOND: u64 = 100;

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

    fn no_such_cage(&self, name: &str) -> DispatchError {
        let cages = self.0.read();
        let hint = hint(name, cages.keys().map(|name| &**name));
        DispatchError::NoSuchCage(format!("cage {name} does not run in this process{hint}"))
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
}

/// An interface's way to the module that serves it.
pub struct Endpoint {
    /// Name of the interface.
    pub interface: Arc<str>,
    pub cage: Arc<str>,
    pub protocol: &'static str,
    /// Name of the module.
    pub module: Arc<str>,
    pub readings: Readings,
    slot: Arc<Slot>,
    choice: ExportChoice,
    timeout_ms: AtomicU64,
    addresses: watch::Sender<Vec<String>>,
}

/// The module version that will serve one request: chosen when the request begins, kept to its end.
pub struct Route {
    version: Arc<Version>,
    kind: RouteKind,
}

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
        self.kind
    }
}

impl Endpoint {
    /// `choice` says which export serves when a component has several.
    pub fn new(
        interface: Arc<str>,
        protocol: &'static str,
        cage: Arc<str>,
        slot: Arc<Slot>,
        timeout: Duration,
        choice: ExportChoice,
    ) -> Self {
        let (module, readings, addresses) = (slot.name.clone(), Readings::default(), watch::Sender::default());
        let endpoint = Self {
            interface,
            cage,
            protocol,
            module,
            readings,
            slot,
            choice,
            timeout_ms: AtomicU64::new(0),
            addresses,
        };
        endpoint.set_timeout(timeout);
        endpoint
    }

    /// Of a request that brings no deadline of its own.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed))
    }

    /// For requests that begin from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        self.timeout_ms.store(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The current version; none while the interface has no module.
    ///
    /// # Errors
    /// `Host` when the module exists but exports nothing that this interface can use.
    pub fn route(&self) -> Result<Option<Route>, DispatchError> {
        let Some(version) = self.slot.current() else { return Ok(None) };
        let exports = &version.exports;
        let kind = match self.choice {
            ExportChoice::WasiHttp => exports.web.as_ref().map(|_| RouteKind::Streamed),
            ExportChoice::Handler => exports.handler.as_ref().map(|_| RouteKind::Whole),
            ExportChoice::Auto if exports.web.is_some() => Some(RouteKind::Streamed),
            ExportChoice::Auto => exports.handler.as_ref().map(|_| RouteKind::Whole),
        };
        let Some(kind) = kind else {
            let text = format!("module {} exports no handler that interface {} can use", self.module, self.interface);
            return Err(DispatchError::Host(text));
        };
        Ok(Some(Route { version, kind }))
    }

    /// Where the interface can be reached from outside, such as `http://127.0.0.1:8080/`; shown at start and by `ps`.
    pub fn announce(&self, address: String) {
        let (cage, interface, module) = (&*self.cage, &*self.interface, &*self.module);
        tracing::info!(cage, interface, module, %address, "started listening");
        self.addresses.send_modify(|addresses| addresses.push(address));
    }

    /// Where it listens now.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.borrow().clone()
    }

    /// It listens nowhere any more.
    pub fn forget_addresses(&self) {
        self.addresses.send_replace(Vec::new());
    }

    /// Resolves when it listens nowhere, so that another interface may.
    pub async fn silent(&self) {
        // The sender cannot be gone: it is this endpoint's.
        let _ = self.addresses.subscribe().wait_for(Vec::is_empty).await;
    }
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
        timeout: Option<Duration>,
    ) -> Result<Payload, DispatchError> {
        let depth_max = self.0.config.load().call_depth;
        if request.callers.len() >= depth_max {
            return Err(DispatchError::Failed(format!(
                "calls are nested {depth_max} deep: {}",
                request.callers.join(" > ")
            )));
        }
        let context = Arc::new(request.for_call(&home.cage, &home.module, timeout));
        let Some(cage) = target.cage.as_deref().filter(|cage| *cage != &*home.cage) else {
            return self.call(context, &target.module, target.function, arguments).await;
        };
        if !home.settings.allow.cages.iter().any(|allowed| allowed == cage) {
            return Err(DispatchError::NotPermitted(format!(
                "module {} may not call cage {cage}: add it to allow = {{ cages = [..] }} of [modules.{}]",
                home.module, home.module
            )));
        }
        let Some(callee) = self.0.cages.get(cage) else { return Err(self.0.cages.no_such_cage(cage)) };
        // Whoever is on the way through this cage already holds a place in it; waiting for a second could deadlock.
        let prefix = format!("{cage}/");
        let _place = match request.callers.iter().any(|caller| caller.starts_with(&prefix)) {
            true => None,
            false => Some(callee.0.admission.enter(context.deadline).await.map_err(DispatchError::from)?),
        };
        callee.call(context, &target.module, target.function, arguments).await
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
        if !listed && !version.exports.functions.contains_key(&function) {
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
        let result = match (&version.exports.service, version.exports.functions.get(&function)) {
            (Some(service), _) if listed => lease.call_service(&service.call, context, function, arguments).await,
            (_, Some(plain)) => {
                plain.mark_used();
                lease.call_plain(&function, plain, context, &arguments).await
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

impl From<Refusal> for DispatchError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full(waiting) => Self::Overloaded(format!("{waiting} requests are waiting already")),
            Refusal::Expired => Self::DeadlineExceeded("it waited for its turn".into()),
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

/// A future that, once it was polled, is run to its end by a task of its own when it is dropped: work that a guest has
/// begun is not cut in half because a client hung up.
struct RunToEnd<F: Future + Send + 'static>(Option<Pin<Box<F>>>)
where
    F::Output: Send;

impl<F: Future<Output: Send> + Send + 'static> RunToEnd<F> {
    fn new(future: F) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for RunToEnd<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let future = self.0.as_mut().expect("polled again after it was ready");
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for RunToEnd<F> {
    fn drop(&mut self) {
        if let (Some(future), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(future);
        }
    }
}
