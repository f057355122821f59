//! A cage: makes its parts, keeps its interfaces as `cage.toml` says while that changes, and stops in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::host::{HostShared, ServingLine, StartError};
use crate::interface::{InterfaceSnapshot, RunningInterface, build, run_until_drained, wait_until_all_closed};
use crate::reload::Reload;
use wasmcage_config as config;
use wasmcage_config::{CageConfig, ConfigError, ConfigSignal, FileStamps, InterfaceConfig, RequestTarget};
use wasmcage_core::admission::Admission;
use wasmcage_core::call::Member;
use wasmcage_core::drain::Drain;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::Deadline;
use wasmcage_core::task::{PanicSnapshot, Tasks};
use wasmcage_core::telemetry::{self, CageLog, LevelCell};
use wasmcage_protocol::{Address, Endpoint, InterfaceContext, Protocols};
use wasmcage_resource as resource;
use wasmcage_resource::{MakeResource, ResourceSnapshot, Resources};
use wasmcage_runtime::dispatcher::{Dispatcher, InterfaceDispatch};
use wasmcage_runtime::module::Modules;
use wasmcage_runtime::module::slot::{ModuleSnapshot, Slot};
use wasmcage_runtime::module::watcher::{Watched, Watcher};
use wasmcage_runtime::services::Services;
use wasmcage_store::{Quota, Store};

/// How long the start waits for the existing modules; a module that takes longer serves when it is ready.
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the start waits for the interfaces to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the requests in work are counted at the end of a drain.
const WORK_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// A running cage.
pub struct Cage {
    inner: Arc<CageInner>,
    watched: Arc<Watched>,
    tasks: Vec<JoinHandle<()>>,
}

struct CageInner {
    root: PathBuf,
    name: String,
    shared: Arc<HostShared>,
    config: Arc<ArcSwap<CageConfig>>,
    level: Arc<LevelCell>,
    log: CageLog,
    modules: Arc<Modules>,
    services: Services,
    dispatcher: Dispatcher,
    drain: Drain,
    interfaces: Mutex<BTreeMap<String, RunningInterface>>,
    config_error: Mutex<Option<String>>,
    settings_changed: Arc<Notify>,
}

impl Cage {
    /// Reads the configuration and makes the cage; nothing serves yet.
    ///
    /// # Errors
    /// A missing directory, or mistakes in `cage.toml`.
    pub fn prepare(root: &Path, name: &str, shared: Arc<HostShared>) -> Result<Self, StartError> {
        let directory = root.join(name);
        if !directory.is_dir() {
            return Err(StartError::NoDirectory { cage: name.to_owned(), directory });
        }
        let config_error = |source| StartError::Config { cage: name.to_owned(), source };
        let read = FileStamps::of(&config::files(root, name));
        let loaded = load_config(root, name, &shared.node, &shared.protocols).map_err(config_error)?;
        let level = Arc::new(LevelCell::new(loaded.log_level));
        let log = CageLog::open(name, &shared.directories.logs(name), loaded.log_settings());
        let services = Services {
            admission: Admission::new(loaded.concurrency, loaded.queue),
            store: Arc::new(Store::new(name, &shared.directories.state(name), loaded.store)),
            resources: Arc::new(Resources::new(name, level.clone(), make_resource(&shared.protocols))),
            locks: Arc::default(),
            room: shared.room.cage(),
            background: TaskTracker::new(),
            tasks: Tasks::new(name),
        };
        services.resources.apply(&loaded);
        services.room.set_memory_max(loaded.guest_memory_bytes);
        let config = Arc::new(ArcSwap::from_pointee(loaded));
        let modules = Arc::<Modules>::default();
        let dispatcher =
            Dispatcher::new(config.clone(), modules.clone(), services.clone(), shared.cages.clone(), level.clone());
        let config_signal = Arc::<ConfigSignal>::default();
        let settings_changed = Arc::new(Notify::new());
        let watched = Arc::new(Watched {
            directory,
            shared: root.join(config::SHARED_DIRECTORY),
            config: config.clone(),
            modules: modules.clone(),
            loader: shared.loader.clone(),
            services: services.clone(),
            dispatcher: dispatcher.downgrade(),
            level: level.clone(),
            config_signal: config_signal.clone(),
            settings_changed: settings_changed.clone(),
            cache_problem: Mutex::default(),
        });
        let inner = Arc::new(CageInner {
            root: root.to_owned(),
            name: name.to_owned(),
            shared,
            config,
            level,
            log,
            modules,
            services,
            dispatcher,
            drain: Drain::new(),
            interfaces: Mutex::default(),
            config_error: Mutex::default(),
            settings_changed,
        });
        let (tasks, reloaded) = (&inner.services.tasks, inner.clone());
        let follow = move || reloaded.clone().follow(read.clone(), config_signal.clone());
        let reload = tokio::spawn(tasks.keep_running("reload", follow));
        Ok(Self { inner, watched, tasks: vec![reload] })
    }

    /// Loads the modules, then starts the interfaces.
    pub async fn start(&mut self) {
        tracing::info!(cage = %self.inner.name, "cage is starting up");
        // This opens the store, which may take long after a crash, before the first request needs it. Failures are logged.
        let dispatcher = self.inner.dispatcher.clone();
        let stranded =
            self.inner.services.tasks.run_once("stranded calls", async move { dispatcher.warn_of_stranded().await });
        self.tasks.push(tokio::spawn(async move { stranded.await.unwrap_or_default() }));
        let mut watcher = Watcher::new(self.watched.clone());
        watcher.load_all(LOAD_TIMEOUT).await;
        // After a panic a new watcher scans everything anew.
        let (mut first, watched) = (Some(watcher), self.watched.clone());
        let watch = move || first.take().unwrap_or_else(|| Watcher::new(watched.clone())).run();
        self.tasks.push(tokio::spawn(self.inner.services.tasks.keep_running("watcher", watch)));
        self.inner.reconcile();
        let settled = async {
            while !self.inner.interfaces.lock().values().all(RunningInterface::has_settled) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        // An interface that takes longer does not delay the start.
        let _ = tokio::time::timeout(LISTEN_TIMEOUT, settled).await;
        tracing::info!(cage = %self.inner.name, "cage has started");
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub(crate) fn flush_log(&self) {
        self.inner.log.flush();
    }

    pub(crate) fn store(&self) -> Weak<Store> {
        Arc::downgrade(&self.inner.services.store)
    }

    pub fn dispatcher(&self) -> &Dispatcher {
        &self.inner.dispatcher
    }

    pub(crate) fn lanes(&self) -> &Arc<Lanes> {
        &self.inner.shared.lanes
    }

    pub fn modules(&self) -> Arc<Modules> {
        self.inner.modules.clone()
    }

    /// Returns a function for the quota of each module in the present configuration.
    pub fn state_quota(&self) -> impl Fn(&str) -> Quota + Send + use<> {
        let config = self.inner.config.load_full();
        move |module| config.module(module).state
    }

    /// Returns the addresses that can be reached from outside, without sockets in the file system and queues.
    pub fn serving(&self) -> Vec<ServingLine> {
        let interfaces = self.inner.interfaces.lock();
        let lines = interfaces.iter().flat_map(|(name, running)| {
            let outside = |address| match address {
                Address::Outside(address) => Some(address),
                Address::Machine(_) | Address::Cage(_) => None,
            };
            running.endpoint.addresses().into_iter().filter_map(outside).map(|address| ServingLine {
                cage: self.inner.name.clone(),
                interface: name.clone(),
                protocol: running.config.protocol.clone(),
                address,
                module: running.endpoint.module.to_string(),
            })
        });
        lines.collect()
    }

    pub fn snapshot(&self) -> CageSnapshot {
        let inner = &self.inner;
        let (in_work, waiting) = inner.dispatcher.load();
        let interfaces = inner.interfaces.lock();
        CageSnapshot {
            cage: inner.name.clone(),
            in_work,
            waiting,
            config_error: inner.config_error.lock().clone(),
            flock: inner.config.load().flock.clone(),
            members: inner.dispatcher.members(),
            interfaces: interfaces.iter().map(|(name, running)| running.snapshot(name)).collect(),
            modules: inner.modules.snapshot(),
            resources: inner.services.resources.snapshot(),
            panics: inner.services.tasks.snapshot(),
        }
    }

    /// Stops the intake and waits for what is in flight, up to the request timeout. Modules can still be called, by this cage's
    /// requests and by those of other cages. Returns false when something had to be cut off.
    pub async fn drain(&self) -> bool {
        let inner = &self.inner;
        tracing::info!(cage = %inner.name, "cage is shutting down");
        // From here on, neither new versions nor a new configuration are loaded.
        self.tasks.iter().for_each(JoinHandle::abort);
        let timeout = inner.config.load().request_timeout;
        let deadline = Deadline::after(timeout);
        let mut finished = inner.drain.complete(timeout).await;
        // A request whose client has left belongs to no connection any more, but is finished, too.
        while finished && inner.dispatcher.load() != (0, 0) {
            tokio::time::sleep(WORK_CHECK_INTERVAL).await;
            finished = !deadline.passed();
        }
        // Commits that were decided are finished, too.
        let background = &inner.services.background;
        background.close();
        finished &= tokio::time::timeout_at(deadline.instant(), background.wait()).await.is_ok();
        if !finished {
            tracing::warn!(cage = %inner.name, "requests in flight were cut off at the shutdown's deadline");
        }
        finished
    }

    /// Frees everything. Whatever is still in flight is dropped.
    pub async fn end(self) {
        let inner = &self.inner;
        inner.shared.cages.remove(&inner.name);
        inner.dispatcher.disconnect();
        inner.interfaces.lock().clear();
        inner.modules.clear();
        inner.services.resources.close();
        let store = inner.services.store.clone();
        // The store waits for its last writes. Its thread has caught and logged any panic.
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
        tracing::info!(cage = %inner.name, "cage has been properly shut down");
        inner.log.flush();
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.inner.drain.force();
        self.inner.shared.cages.remove(&self.inner.name);
        self.inner.dispatcher.disconnect();
        self.inner.interfaces.lock().clear();
        self.inner.modules.clear();
        self.inner.services.resources.close();
    }
}

/// Loads the configuration. Each protocol checks the sections of its interfaces and resources.
pub fn load_config(root: &Path, cage: &str, node: &str, protocols: &Protocols) -> Result<CageConfig, ConfigError> {
    let config = config::load(root, cage, node, &protocols.infos(), protocols.left_out())?;
    let mut problems = ConfigError::default();
    for interface in config.interfaces.values().filter(|interface| interface.enabled) {
        if let Err(error) = build(interface, protocols) {
            problems = problems.merge(error);
        }
    }
    let make = make_resource(protocols);
    for resource in config.resources.values().filter(|resource| resource.enabled) {
        if let Err(error) = resource::build(resource, &*make) {
            problems = problems.merge(error);
        }
    }
    problems.into_result(config)
}

fn make_resource(protocols: &Protocols) -> Arc<MakeResource> {
    let protocols = protocols.clone();
    Arc::new(move |protocol, section| protocols.resource(protocol, section))
}

impl CageInner {
    /// Follows `cage.toml` until the future is dropped. `read` are the stamps of the files when the configuration was read.
    async fn follow(self: Arc<Self>, read: FileStamps, signal: Arc<ConfigSignal>) {
        let (root, name, node) = (self.root.clone(), self.name.clone(), self.shared.node.clone());
        let files = config::files(&root, &name);
        let protocols = self.shared.protocols.clone();
        let reload = Reload::new(files, read, signal, move || load_config(&root, &name, &node, &protocols));
        reload.run(|loaded| self.take(loaded)).await;
    }

    fn take(self: &Arc<Self>, loaded: Result<CageConfig, ConfigError>) {
        match loaded {
            Ok(config) => self.apply(config),
            Err(error) => {
                let text = telemetry::error_chain(&error);
                let mut known = self.config_error.lock();
                if known.as_ref() != Some(&text) {
                    tracing::error!(cage = %self.name, error = %text, "cage.toml refused, the old settings stay");
                    *known = Some(text);
                }
            }
        }
    }

    /// Revokes grants that the new configuration does not have any more, also from versions that were loaded with them.
    fn revoke(&self) {
        let config = self.config.load();
        for version in self.modules.all().iter().filter_map(|slot| slot.current()) {
            if version.home.narrow(&config.module(&version.home.module).allow) {
                version.drop_idle(Duration::ZERO);
            }
        }
    }

    fn apply(self: &Arc<Self>, config: CageConfig) {
        *self.config_error.lock() = None;
        if config == **self.config.load() {
            return;
        }
        self.level.set(config.log_level);
        self.log.set(config.log_settings());
        self.config.store(Arc::new(config));
        self.revoke();
        self.dispatcher.reconfigure();
        self.services.store.set(self.config.load().store);
        self.services.resources.apply(&self.config.load());
        self.settings_changed.notify_one();
        self.reconcile();
        let dispatcher = self.dispatcher.clone();
        let stranded = async move { dispatcher.warn_of_stranded().await };
        tokio::spawn(self.services.tasks.run_once("stranded calls", stranded));
        tracing::info!(cage = %self.name, "cage.toml applied");
    }

    /// Adjusts the running interfaces to the configuration: removed and changed ones are drained, new and changed ones are
    /// started as soon as the drained ones have closed their ports, while those still finish what is in flight.
    fn reconcile(self: &Arc<Self>) {
        let config = self.config.load_full();
        let mut running = self.interfaces.lock();
        let wanted = |name: &String| config.interfaces.get(name).filter(|interface| interface.enabled);
        let stale: Vec<_> = running.extract_if(.., |name, running| wanted(name) != Some(&running.config)).collect();
        let mut leaving = Vec::with_capacity(stale.len());
        for (name, old) in stale {
            tracing::info!(cage = %self.name, interface = %name, "interface is stopping");
            leaving.push(old.endpoint);
            let timeout = config.request_timeout;
            let draining = async move { old.drain.complete(timeout).await };
            tokio::spawn(self.services.tasks.run_once("drain of an interface", draining));
        }
        for (name, interface) in config.interfaces.iter().filter(|(_, interface)| interface.enabled) {
            match running.get(name) {
                Some(running) => running.endpoint.set_timeout(interface.timeout.unwrap_or(config.request_timeout)),
                None => {
                    running.insert(name.clone(), self.start_interface(&config, interface, leaving.clone()));
                }
            }
        }
    }

    fn start_interface(
        self: &Arc<Self>,
        config: &CageConfig,
        interface: &InterfaceConfig,
        leaving: Vec<Arc<Endpoint>>,
    ) -> RunningInterface {
        let protocols = &self.shared.protocols;
        let protocol =
            protocols.find(&interface.protocol).expect("the configuration names known protocols only").info();
        let slot = match protocol.target {
            RequestTarget::Handler | RequestTarget::HandlerOrWasiHttp => self.modules.get_or_create(&interface.module),
            RequestTarget::NamedModule => Arc::new(Slot::new("".into())),
        };
        let endpoint = Arc::new(Endpoint::new(
            interface.name.as_str().into(),
            protocol.name,
            self.name.as_str().into(),
            slot.name.clone(),
            interface.timeout.unwrap_or(config.request_timeout),
        ));
        let drain = self.drain.child();
        let choice = protocol.export(interface.export);
        let cx = InterfaceContext {
            dispatch: Arc::new(InterfaceDispatch::new(self.dispatcher.clone(), endpoint.clone(), slot, choice)),
            endpoint: endpoint.clone(),
            drain: drain.clone(),
            lanes: self.shared.lanes.clone(),
            store: self.services.store.clone(),
            tasks: self.services.tasks.clone(),
            node: self.shared.node.as_str().into(),
            runtime_directory: self.shared.runtime_directory.clone(),
            bodies: self.shared.bodies.clone(),
        };
        let error = Arc::default();
        // The cage's drain waits for every interface, also for replaced ones.
        let (kept, token) =
            (run_until_drained(interface.clone(), protocols.clone(), cx, Arc::clone(&error)), self.drain.token());
        tokio::spawn(self.services.tasks.run_once("interface", async move {
            let _token = token;
            wait_until_all_closed(leaving).await;
            kept.await;
        }));
        RunningInterface { config: interface.clone(), drain, endpoint, error }
    }
}

/// State of a cage, for operators.
#[derive(Debug, Serialize)]
pub struct CageSnapshot {
    pub cage: String,
    pub in_work: usize,
    pub waiting: usize,
    /// Why the present `cage.toml` is refused.
    pub config_error: Option<String>,
    pub flock: String,
    pub interfaces: Vec<InterfaceSnapshot>,
    /// Known copies of this and other cages in other processes.
    pub members: Vec<Member>,
    pub modules: Vec<ModuleSnapshot>,
    pub resources: Vec<ResourceSnapshot>,
    /// Panics of its tasks since it started; each is logged.
    pub panics: PanicSnapshot,
}
