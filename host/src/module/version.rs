//! One linked build of a module: what it exports, and its pool of instances. Immutable once made; a newer one takes its
//! place in the slot, and it goes when the last call on it has ended.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::time::{Instant, timeout_at};
use wasmtime::component::InstancePre;

use super::binding::BoundInterface;
use super::compiler::Compiled;
use super::component_file::ContentHash;
use super::engine::EngineKind;
use super::exports::Exports;
use super::instance::Instance;
use crate::admission::Place;
use crate::config::InstanceMode;
use crate::dispatcher::DispatchError;
use crate::host_api::{GuestState, Home};
use crate::lanes::Lanes;
use crate::request::Deadline;

/// A function that the `service` export listed.
pub struct ServiceFunction {
    pub name: String,
    /// Set by the first call, so that a later version without this function is refused.
    used: AtomicBool,
}

pub struct Version {
    pub hash: ContentHash,
    /// Counts from 1 within the slot.
    pub number: u64,
    pub loaded: SystemTime,
    pub home: Arc<Home>,
    pub exports: Exports,
    /// Imports that other modules answer.
    pub bound: Vec<BoundInterface>,
    service_functions: Vec<ServiceFunction>,
    pre: InstancePre<GuestState>,
    compiled: Arc<Compiled>,
    pool: Pool,
}

/// A component with everything that it imports.
pub struct Linked {
    pub pre: InstancePre<GuestState>,
    pub exports: Exports,
    pub bound: Vec<BoundInterface>,
}

/// Warm instances, a stack for each lane so that lanes do not contend, and a place for each instance that may exist.
struct Pool {
    places: Semaphore,
    idle: Box<[Mutex<Vec<Instance>>]>,
    alive: AtomicUsize,
    /// Set when a newer version has taken over: instances are dropped after use.
    retired: AtomicBool,
}

/// Why there is no instance.
pub enum CheckoutError {
    /// This version's only instance has handed over to a newer version: ask the slot again.
    Superseded,
    Failed(DispatchError),
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
        let (places, shards) = match instances.mode {
            InstanceMode::Single => (1, 1),
            InstanceMode::Reuse | InstanceMode::Fresh => (instances.max, lanes),
        };
        let pool = Pool {
            places: Semaphore::new(places),
            idle: (0..shards).map(|_| Mutex::default()).collect(),
            alive: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
        };
        let service_functions = Vec::new();
        let loaded = SystemTime::now();
        let Linked { pre, exports, bound } = linked;
        Self { hash, number, loaded, home, exports, bound, service_functions, pre, compiled, pool }
    }

    /// Before the version is shared: what its `service` export answers to.
    pub fn set_service_functions(&mut self, names: Vec<String>) {
        let function = |name| ServiceFunction { name, used: AtomicBool::new(false) };
        self.service_functions = names.into_iter().map(function).collect();
    }

    pub fn engine(&self) -> EngineKind {
        self.compiled.kind
    }

    /// Marks the function as used; none when `service` does not list it.
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

    /// Names by which functions of this version can be called, sorted.
    pub fn callable_functions(&self) -> Vec<String> {
        let plain = self.exports.functions.iter().filter(|(_, function)| function.signature.is_ok());
        let names: BTreeSet<_> = self.service_functions().chain(plain.map(|(name, _)| name.as_str())).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// Names of `service` functions that were called since this version began to serve.
    pub fn used_service_functions(&self) -> impl Iterator<Item = &str> {
        let used = self.service_functions.iter().filter(|function| function.used.load(Ordering::Relaxed));
        used.map(|function| function.name.as_str())
    }

    /// Instances that exist now, in use or idle.
    pub fn instances(&self) -> usize {
        self.pool.alive.load(Ordering::Relaxed)
    }

    /// An instance for one call, which waits for a place until the deadline.
    ///
    /// # Errors
    /// `DeadlineExceeded` while waiting, or what starting a new instance gave.
    pub async fn checkout(self: &Arc<Self>, deadline: Deadline) -> Result<Lease, CheckoutError> {
        match self.pool.places.try_acquire() {
            Ok(place) => place.forget(),
            Err(TryAcquireError::Closed) => return Err(CheckoutError::Superseded),
            Err(TryAcquireError::NoPermits) => match timeout_at(deadline.instant(), self.pool.places.acquire()).await {
                Ok(Ok(place)) => place.forget(),
                Ok(Err(_)) => return Err(CheckoutError::Superseded),
                Err(_) => {
                    let text = "all instances of the module were in use".into();
                    return Err(CheckoutError::Failed(DispatchError::DeadlineExceeded(text)));
                }
            },
        }
        let mut lease = Lease { version: self.clone(), instance: None, keep: false, place: None };
        if let Some(instance) = self.take_warm() {
            lease.instance = Some(instance);
        } else {
            lease.instance = Some(self.start(deadline).await.map_err(CheckoutError::Failed)?);
            self.pool.alive.fetch_add(1, Ordering::Relaxed);
        }
        Ok(lease)
    }

    /// One that has no grants which were revoked since it was made.
    fn take_warm(&self) -> Option<Instance> {
        loop {
            let instance = self.pool.take()?;
            if !instance.store.data().has_revoked_grants() {
                return Some(instance);
            }
            drop(instance);
            self.pool.alive.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A new instance, outside the pool.
    ///
    /// # Errors
    /// As `Instance::start`.
    pub async fn start(&self, deadline: Deadline) -> Result<Instance, DispatchError> {
        Instance::start(&self.pre, &self.home, deadline).await
    }

    /// Makes an instance of `start` the first warm one.
    pub fn put_back(&self, instance: Instance) {
        if self.home.settings.instances.mode != InstanceMode::Fresh {
            self.pool.alive.fetch_add(1, Ordering::Relaxed);
            self.pool.idle[0].lock().push(instance);
        }
    }

    /// For the only instance of a `single` module: nobody gets it any more, who waits for it is told to ask again.
    pub fn close(&self) {
        self.pool.places.close();
    }

    /// A newer version serves: idle instances go now, the others after their call.
    pub fn retire(&self) {
        self.pool.retired.store(true, Ordering::Release);
        self.drop_idle(Duration::ZERO);
    }

    /// Frees instances that nobody has used for `idle`.
    pub fn drop_idle(&self, idle: Duration) {
        let now = Instant::now();
        for shard in &self.pool.idle {
            let mut instances = shard.lock();
            let kept = instances.extract_if(.., |instance| now.duration_since(instance.idle_since) >= idle);
            let dropped: Vec<_> = kept.collect();
            drop(instances);
            self.pool.alive.fetch_sub(dropped.len(), Ordering::Relaxed);
        }
    }
}

impl Pool {
    fn shard(&self) -> usize {
        Lanes::current() % self.idle.len()
    }

    /// The lane's own latest instance, or another lane's.
    fn take(&self) -> Option<Instance> {
        let own = self.shard();
        let instance = self.idle[own].lock().pop();
        instance.or_else(|| {
            let others = self.idle.iter().enumerate().filter(|(shard, _)| *shard != own);
            others.into_iter().find_map(|(_, shard)| shard.try_lock()?.pop())
        })
    }
}

/// An instance for one call. Dropped without `keep`, as when the call's future is dropped half-way, the instance ends.
pub struct Lease {
    version: Arc<Version>,
    instance: Option<Instance>,
    keep: bool,
    /// Given up together with the instance.
    place: Option<Place>,
}

impl Lease {
    pub fn version(&self) -> &Arc<Version> {
        &self.version
    }

    /// Keeps the request's place in the cage for as long as the instance is in use.
    pub fn hold(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// The call ended as it should: the instance may serve again.
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
        let settings = &self.version.home.settings.instances;
        if let Some(mut instance) = self.instance.take() {
            let again = self.keep
                && settings.mode != InstanceMode::Fresh
                && instance.uses < settings.max_uses
                && !instance.store.data().has_revoked_grants()
                && !pool.retired.load(Ordering::Acquire);
            if again {
                instance.idle_since = Instant::now();
                pool.idle[pool.shard()].lock().push(instance);
            } else {
                drop(instance);
                pool.alive.fetch_sub(1, Ordering::Relaxed);
            }
        }
        // A closed semaphore has no more takers, and adding to it is harmless.
        pool.places.add_permits(1);
    }
}
