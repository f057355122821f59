//! A version is one linked build of a module, with its exports and its pool of instances. It does not change once it is made. A
//! newer version replaces it in the slot, and it is dropped when its last call has ended.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;
use wasmtime::component::InstancePre;

use super::binding::BoundInterface;
use super::compiler::Compiled;
use super::component_file::ContentHash;
use super::engine::{EngineKind, POOL_UNITS, pool_units};
use super::exports::Exports;
use super::instance::Instance;
use crate::host_api::{GuestState, Home};
use wasmcage_config::InstanceMode;
use wasmcage_core::admission::{AdmissionError, Bulkhead, EntryKind, Permit};
use wasmcage_core::error::DispatchError;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::{Deadline, Reply, Request};

/// A function that the `service` export listed.
pub struct ServiceFunction {
    pub name: String,
    /// Is set by the first call, so that a later version without this function is refused.
    used: AtomicBool,
}

pub struct Version {
    pub hash: ContentHash,
    /// The version's number, which counts from 1 within the slot.
    pub number: u64,
    pub loaded: SystemTime,
    pub home: Arc<Home>,
    pub exports: Exports,
    /// The imports that are bound to other modules.
    pub bound: Vec<BoundInterface>,
    /// The mode set in `cage.toml`, or else the one that suits the exports.
    pub mode: InstanceMode,
    service_functions: Vec<ServiceFunction>,
    pre: InstancePre<GuestState>,
    compiled: Arc<Compiled>,
    pool: Pool,
    /// The units of its engine's pool that an instance takes.
    units: usize,
}

/// A component that is linked with everything that it imports.
pub struct Linked {
    pub pre: InstancePre<GuestState>,
    pub exports: Exports,
    pub bound: Vec<BoundInterface>,
}

/// The idle instances, in one stack per lane so that lanes do not contend, and the places that limit their number.
struct Pool {
    bulkhead: Arc<Bulkhead>,
    idle: Box<[Mutex<Vec<Instance>>]>,
    alive: AtomicUsize,
    /// Is set when a newer version has taken over; instances are then dropped after use.
    retired: AtomicBool,
}

impl Version {
    pub fn new(
        hash: ContentHash,
        number: u64,
        home: Arc<Home>,
        linked: Linked,
        compiled: Arc<Compiled>,
        lanes: usize,
    ) -> Self {
        let instances = &home.settings.instances;
        let mode = instances.mode.unwrap_or_else(|| linked.exports.instance_mode());
        let (places, shards) = match mode {
            InstanceMode::Single => (1, 1),
            InstanceMode::Reuse | InstanceMode::Fresh => (instances.max, lanes),
        };
        let pool = Pool {
            bulkhead: Bulkhead::new(home.services.admission.clone(), places),
            idle: (0..shards).map(|_| Mutex::default()).collect(),
            alive: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
        };
        let service_functions = Vec::new();
        let loaded = SystemTime::now();
        let Linked { pre, exports, bound } = linked;
        // `resources_required` is `None` only for a component that imports core modules, and no linker here provides any.
        let units = compiled.component.resources_required().map_or(POOL_UNITS, |required| pool_units(&required));
        Self { hash, number, loaded, home, exports, bound, mode, service_functions, pre, compiled, pool, units }
    }

    /// Sets the names of the functions that the `service` export lists. This happens before the version is shared.
    pub fn set_service_functions(&mut self, names: Vec<String>) {
        let function = |name| ServiceFunction { name, used: AtomicBool::new(false) };
        self.service_functions = names.into_iter().map(function).collect();
    }

    pub fn engine(&self) -> EngineKind {
        self.compiled.kind
    }

    /// Marks the function as used, or returns `None` when `service` does not list it.
    pub fn use_service_function(&self, name: &str) -> Option<()> {
        let function = self.service_functions.iter().find(|function| function.name == name)?;
        if !function.used.load(Ordering::Relaxed) {
            function.used.store(true, Ordering::Relaxed);
        }
        Some(())
    }

    pub fn service_functions(&self) -> impl Iterator<Item = &str> {
        self.service_functions.iter().map(|function| function.name.as_str())
    }

    /// Returns the names by which functions of this version can be called, sorted.
    pub fn callable_functions(&self) -> Vec<String> {
        let plain = self.exports.functions.iter().filter(|(_, function)| function.signature.is_ok());
        let names: BTreeSet<_> = self.service_functions().chain(plain.map(|(name, _)| name.as_str())).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// Returns the names of the `service` functions that were called since this version began to serve.
    pub fn used_service_functions(&self) -> impl Iterator<Item = &str> {
        let used = self.service_functions.iter().filter(|function| function.used.load(Ordering::Relaxed));
        used.map(|function| function.name.as_str())
    }

    /// Returns the number of instances that exist now, in use or idle.
    pub fn instances(&self) -> usize {
        self.pool.alive.load(Ordering::Relaxed)
    }

    /// Waits until the deadline for a place for one call. A place permits the call to lease an instance; for a call from
    /// outside it includes a permit of the cage.
    ///
    /// # Errors
    /// Returns `Closed` when this version's only instance has handed over to a newer version, or the reason why there was no
    /// place.
    pub async fn enter(&self, entry: EntryKind, deadline: Deadline) -> Result<Permit, AdmissionError> {
        self.pool.bulkhead.enter(entry, deadline).await
    }

    /// Returns an instance for one call that has a place with this version: an idle one, or else a new one.
    ///
    /// # Errors
    /// Returns the error of starting a new instance.
    pub async fn lease(self: Arc<Self>, place: Permit, deadline: Deadline) -> Result<Lease, DispatchError> {
        let mut lease = Lease { version: self, instance: None, keep: false, _place: place };
        let version = &lease.version;
        if let Some(instance) = version.warm() {
            lease.instance = Some(instance);
        } else {
            let instance = version.start(deadline).await?;
            version.pool.alive.fetch_add(1, Ordering::Relaxed);
            lease.instance = Some(instance);
        }
        Ok(lease)
    }

    /// Starts a new instance outside the pool. When there is no room for it, idle instances are freed and it is tried again.
    ///
    /// # Errors
    /// Returns the errors of `Instance::start`, and `Overloaded` when the engine's pool has no room.
    pub async fn start(&self, deadline: Deadline) -> Result<Instance, DispatchError> {
        match self.try_start(deadline).await {
            Err(DispatchError::Overloaded(_)) => {
                self.make_room();
                self.try_start(deadline).await
            }
            started => started,
        }
    }

    async fn try_start(&self, deadline: Deadline) -> Result<Instance, DispatchError> {
        let part = self.home.room.take_units(self.engine(), self.units);
        let part = part.map_err(|shortage| DispatchError::Overloaded(shortage.to_string()))?;
        Instance::start(&self.pre, &self.home, part, deadline).await
    }

    fn make_room(&self) {
        if let Some(dispatcher) = self.home.dispatcher.upgrade() {
            dispatcher.make_room();
        }
    }

    /// Puts an instance of `start` into the pool, unless instances serve only once.
    pub fn put_back(&self, instance: Instance) {
        if self.mode != InstanceMode::Fresh {
            self.pool.alive.fetch_add(1, Ordering::Relaxed);
            self.pool.idle[0].lock().push(instance);
        }
    }

    /// Closes the pool of a `single` module: its only instance is given to no more calls, and those that wait get `Closed`.
    pub fn close(&self) {
        self.pool.bulkhead.close();
    }

    /// Retires the version because it serves no more. Idle instances are dropped now, the others after their call.
    pub fn retire(&self) {
        self.pool.retired.store(true, Ordering::Release);
        self.drop_idle(Duration::ZERO);
    }

    /// Frees the instances that were idle for at least `idle`, and returns their number.
    pub fn drop_idle(&self, idle: Duration) -> usize {
        let now = Instant::now();
        let mut freed = 0;
        for shard in &self.pool.idle {
            let mut instances = shard.lock();
            let kept = instances.extract_if(.., |instance| now.duration_since(instance.idle_since) >= idle);
            let dropped: Vec<_> = kept.collect();
            drop(instances);
            self.pool.alive.fetch_sub(dropped.len(), Ordering::Relaxed);
            freed += dropped.len();
        }
        freed
    }

    /// Takes an idle instance that may serve, if there is one, and drops those with revoked grants or moved directories. The
    /// only instance of a `single` module serves even if its directories have moved, since its memory would be lost with it.
    fn warm(&self) -> Option<Instance> {
        loop {
            let instance = self.pool.take()?;
            let single = self.mode == InstanceMode::Single;
            if !instance.store.data().has_revoked_grants() && (single || instance.has_its_directories()) {
                return Some(instance);
            }
            drop(instance);
            self.pool.alive.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns true if an instance may serve again after a call that ended normally.
    fn may_serve_again(&self, instance: &mut Instance) -> bool {
        let settings = &self.home.settings.instances;
        // The only instance of a `single` module is kept however large it is, since its memory would be lost with it.
        let single = self.mode == InstanceMode::Single;
        let grown = !single && (instance.grown_bytes() > settings.keep_bytes || instance.store.data_mut().is_worn());
        self.mode != InstanceMode::Fresh
            && instance.uses < settings.max_uses
            && !instance.spent
            && !grown
            && !instance.store.data().has_revoked_grants()
            && !self.pool.retired.load(Ordering::Acquire)
    }
}

impl Pool {
    fn shard(&self) -> usize {
        Lanes::current() % self.idle.len()
    }

    /// Takes the instance that the current lane used last, or else one of another lane.
    fn take(&self) -> Option<Instance> {
        let own = self.shard();
        let instance = self.idle[own].lock().pop();
        instance.or_else(|| {
            let others = self.idle.iter().enumerate().filter(|(shard, _)| *shard != own);
            others.into_iter().find_map(|(_, shard)| shard.try_lock()?.pop())
        })
    }
}

/// An instance for one call. If the lease is dropped without `keep`, as when the call is cancelled, the instance is dropped.
pub struct Lease {
    version: Arc<Version>,
    instance: Option<Instance>,
    keep: bool,
    /// The place, which is given up after the instance.
    _place: Permit,
}

impl Lease {
    pub fn version(&self) -> &Arc<Version> {
        &self.version
    }

    /// Calls the version's `handler` with the request.
    ///
    /// # Errors
    /// Returns `Host` when the version exports no handler, or the error of the call.
    pub async fn handle(&mut self, request: Request) -> Result<Reply, DispatchError> {
        let Some(index) = self.version.exports.handler else {
            return Err(DispatchError::Host(format!("module {} has no handler any more", self.version.home.module)));
        };
        self.call_handler(&index, request).await
    }

    /// Ends the lease after a call that ended normally, so that the instance may serve again.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Deref for Lease {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        self.instance.as_ref().expect("a lease that was given out holds an instance until it is dropped")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Instance {
        self.instance.as_mut().expect("a lease that was given out holds an instance until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let pool = &self.version.pool;
        if let Some(mut instance) = self.instance.take() {
            if self.keep && self.version.may_serve_again(&mut instance) {
                instance.idle_since = Instant::now();
                pool.idle[pool.shard()].lock().push(instance);
            } else {
                drop(instance);
                pool.alive.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}
