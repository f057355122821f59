//! Takes requests from interfaces and calls from guests to the modules: admits and routes them, sets their deadlines, contains
//! their panics, and logs their failures and completions.

mod abroad;
mod attempt;
mod bindings;
mod calls;
mod forward;
mod in_flight;
mod interface;
mod operator;
mod retried;

use std::sync::{Arc, Weak};
use std::time::Duration;

use self::abroad::Abroad;
pub use self::calls::CallOptions;
use self::in_flight::InFlight;
pub use self::interface::InterfaceDispatch;
pub use self::operator::OperatorCall;
pub use self::retried::{RETRIED_ARGUMENTS_BYTES_MAX, retried_arguments};
use crate::module::Modules;
use crate::module::slot::Slot;
use crate::module::version::{Lease, Version};
use crate::services::Services;
use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use wasmcage_config as config;
use wasmcage_config::CageConfig;
use wasmcage_core::admission::EntryKind;
use wasmcage_core::call::Remote;
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings::Outcome;
use wasmcage_core::request::RequestContext;
use wasmcage_core::task;
use wasmcage_core::telemetry::{LevelCell, Throttle};
use wasmcage_protocol::Endpoint;

/// The number of failed requests and calls of a cage that are logged in one second. Further ones are only counted.
const FAILURES_LOGGED_PER_SECOND: u64 = 100;

/// The cages of this process, and their calls in flight to cages elsewhere.
#[derive(Default)]
pub struct Cages {
    by_name: RwLock<std::collections::HashMap<Arc<str>, WeakDispatcher>>,
    abroad: Abroad,
    /// The lock that is held while idle instances are freed.
    reclaim: Mutex<()>,
}

impl Cages {
    pub fn add(&self, dispatcher: &Dispatcher) {
        self.by_name.write().insert(dispatcher.0.cage.clone(), dispatcher.downgrade());
    }

    pub fn remove(&self, cage: &str) {
        self.by_name.write().remove(cage);
    }

    fn get(&self, cage: &str) -> Option<Dispatcher> {
        self.by_name.read().get(cage).and_then(WeakDispatcher::upgrade)
    }
}

/// The dispatcher of a cage. Clones refer to the same one.
#[derive(Clone)]
pub struct Dispatcher(Arc<Inner>);

/// A weak reference to a dispatcher. Modules hold this one, so that a cage that has stopped is freed.
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
    services: Services,
    cages: Arc<Cages>,
    config: Arc<ArcSwap<CageConfig>>,
    level: Arc<LevelCell>,
    failures: Throttle,
    /// The connection to cages elsewhere. None while no interface provides one.
    remote: RwLock<Option<Arc<dyn Remote>>>,
}

impl Dispatcher {
    pub fn new(
        config: Arc<ArcSwap<CageConfig>>,
        modules: Arc<Modules>,
        services: Services,
        cages: Arc<Cages>,
        level: Arc<LevelCell>,
    ) -> Self {
        let dispatcher = Self(Arc::new(Inner {
            cage: config.load().cage.as_str().into(),
            modules,
            services,
            cages: cages.clone(),
            level,
            failures: Throttle::new(FAILURES_LOGGED_PER_SECOND, Duration::from_secs(1)),
            remote: RwLock::default(),
            config,
        }));
        cages.add(&dispatcher);
        dispatcher
    }

    /// Returns the cage's store, resources and locks.
    pub fn services(&self) -> &Services {
        &self.0.services
    }

    pub fn downgrade(&self) -> WeakDispatcher {
        WeakDispatcher(Arc::downgrade(&self.0))
    }

    /// Applies the limits of a changed `cage.toml`.
    pub fn reconfigure(&self) {
        let config = self.0.config.load();
        self.0.services.admission.set_limits(config.concurrency, config.queue);
        self.0.services.room.set_memory_max(config.guest_memory_bytes);
    }

    /// Frees idle instances of this cage or, if none can be freed, of all cages of the process. Concurrent calls wait for each
    /// other, so that each sees what the one before has freed.
    pub(crate) fn make_room(&self) {
        let _one_at_a_time = self.0.cages.reclaim.lock();
        if self.0.modules.make_room() > 0 {
            return;
        }
        let cages: Vec<_> = self.0.cages.by_name.read().values().filter_map(WeakDispatcher::upgrade).collect();
        cages.iter().for_each(|cage| _ = cage.0.modules.make_room());
    }

    /// Returns the number of requests that are worked on, and of those that wait.
    pub fn load(&self) -> (usize, usize) {
        (self.0.services.admission.in_work(), self.0.services.admission.waiting())
    }

    /// Applies the module's own timeout, which can only shorten the deadline.
    fn tighten(context: Arc<RequestContext>, version: &Version) -> Arc<RequestContext> {
        match version.home.settings.timeout.map(|timeout| context.deadline.within(timeout)) {
            Some(deadline) if deadline < context.deadline => Arc::new(context.with_deadline(deadline)),
            Some(_) | None => context,
        }
    }

    /// Gets a permit of the cage and one of the module, then an instance. They are given back when the lease's call is over.
    async fn admit(
        &self,
        slot: &Slot,
        version: Arc<Version>,
        context: &RequestContext,
        in_flight: &mut InFlight<'_>,
    ) -> Result<Lease, DispatchError> {
        let (version, place) = slot.enter(version, EntryKind::Outside, context.deadline).await?;
        in_flight.work_begins();
        version.lease(place, context.deadline).await
    }

    /// Runs a request from outside: counts it, turns a panic into an error, and logs its failure and completion.
    async fn observed<T>(
        &self,
        endpoint: &Endpoint,
        slot: &Slot,
        context: &RequestContext,
        work: impl AsyncFnOnce(&mut InFlight<'_>) -> Result<T, DispatchError>,
    ) -> Result<T, DispatchError> {
        let mut in_flight = InFlight::request(self, endpoint, slot, context);
        let result = contained(work(&mut in_flight)).await;
        in_flight.finish(Outcome::of(&result));
        if let Err(error) = &result {
            self.log_failure(endpoint, context, error);
        }
        result
    }

    fn log_failure(&self, endpoint: &Endpoint, context: &RequestContext, error: &DispatchError) {
        self.0.failures.log(|suppressed| {
            let (cage, interface, module) = (&*self.0.cage, &*endpoint.interface, &*endpoint.module);
            let request = tracing::field::display(context.tail());
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
                | DispatchError::Unreachable(_)
                | DispatchError::NoSuchModule(_)
                | DispatchError::NoSuchFunction(_)
                | DispatchError::NotPermitted(_) => event!(WARN),
                DispatchError::BadRequest(_) | DispatchError::Refused(_) | DispatchError::Draining => event!(INFO),
            }
        });
    }

    /// Logs a failed call for the callee's operator, since the caller may handle the error without logging it.
    fn log_call_failure(&self, slot: &Slot, context: &RequestContext, error: &DispatchError) {
        let caller = context.callers.last().map(|caller| &**caller);
        self.0.failures.log(|suppressed| {
            let (cage, module, request) = (&*self.0.cage, &*slot.name, tracing::field::display(context.tail()));
            tracing::error!(cage, module, caller, %error, suppressed, request, "call failed");
        });
    }

    fn no_such_module(&self, name: &str) -> DispatchError {
        let slot = self.0.modules.get(name);
        if let Some(reason) = slot.as_ref().and_then(|slot| slot.refusal()) {
            return DispatchError::NoSuchModule(format!("module {name} of cage {} was refused: {reason}", self.0.cage));
        }
        if slot.is_some_and(|slot| slot.is_loading()) {
            return DispatchError::NoSuchModule(format!("module {name} of cage {} is being loaded", self.0.cage));
        }
        let hint = hint(name, self.0.modules.names().iter().map(|name| &**name));
        DispatchError::NoSuchModule(format!("file {name}.wasm was not found in cage {}{hint}", self.0.cage))
    }
}

/// Ends the use of an instance. It is kept for further calls if the guest itself gave the result or the error; after any
/// other error it is dropped.
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
            | DispatchError::Unreachable(_)
            | DispatchError::Overloaded(_)
            | DispatchError::Draining
            | DispatchError::Host(_),
        ) => drop(lease),
    }
    result
}

fn no_such_function(slot: &Slot, version: &Version, function: &str) -> DispatchError {
    if let Some(candidates) = version.exports.candidates(function) {
        return DispatchError::NoSuchFunction(format!(
            "module {} has several functions `{function}`; call one by its full name: {}",
            slot.name,
            names(candidates)
        ));
    }
    let known = version.service_functions().chain(version.exports.functions.keys().map(String::as_str));
    DispatchError::NoSuchFunction(format!("module {} has no function `{function}`{}", slot.name, hint(function, known)))
}

/// Returns `; did you mean ..?` if there is a similar name, otherwise an empty text.
fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    config::nearest(name, known).map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

/// Returns a text with the first names, and the number of the others.
fn names(names: &[String]) -> String {
    const NAMES_MAX: usize = 10;
    let shown = names.iter().take(NAMES_MAX).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(NAMES_MAX);
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// Turns a panic into an error, so that it ends only this request.
async fn contained<T>(work: impl Future<Output = Result<T, DispatchError>>) -> Result<T, DispatchError> {
    task::catch_panic_async(work).await.unwrap_or_else(|panic| Err(DispatchError::Host(panic.to_string())))
}
