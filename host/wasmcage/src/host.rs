//! A host: what all its cages share (lanes, engines, compiled files), and the cages themselves.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::builder::HostBuilder;
use crate::cage::{Cage, CageSnapshot};
use wasmcage_config::ConfigError;
use wasmcage_core::body_budget::BodyBudget;
use wasmcage_core::directories::Directories;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::{task, telemetry};
use wasmcage_protocol::Protocols;
use wasmcage_runtime::dispatcher::Cages;
use wasmcage_runtime::module::cache::{self, CACHE_BYTES_MAX, Cache};
use wasmcage_runtime::module::compiler::{CompileIn, Compiler};
use wasmcage_runtime::module::engine::Engines;
use wasmcage_runtime::module::loader::Loader;
use wasmcage_runtime::module::room::Room;
use wasmcage_runtime::module::{COMPILE_VARIABLE, compile_worker};
use wasmcage_store::Store;

/// How often idle instances are dropped.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often each store checks that its file still has its name.
const STORE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Directory of the cages.
    pub root: PathBuf,
    pub cages: Vec<String>,
    /// Name of this machine; none: its host name.
    pub node: Option<String>,
    /// Number of threads that run guests; none: one per core.
    pub lanes: Option<usize>,
    /// Directory of compiled files; none: `WASMCAGE_CACHE_DIR`, or `.cache` in the root, or, if that belongs to another user,
    /// the user's own cache directory.
    pub cache: Option<PathBuf>,
    /// Most bytes of compiled files; none: `WASMCAGE_CACHE_MAX_MB`, or 2 GiB.
    pub cache_bytes_max: Option<u64>,
    /// Directory with a directory for each cage's store; none: `state` in the cage's own directory.
    pub state: Option<PathBuf>,
    /// Directory with a directory for each cage's logs; none: `logs` in the cage's own directory.
    pub logs: Option<PathBuf>,
    /// Where running cages of this user find each other; none: see `runtime_directory`.
    pub runtime_directory: Option<PathBuf>,
    /// Where modules are compiled. It must be set: running an embedder's own program as the compiler could have any effect.
    pub compiler: Option<CompileIn>,
    /// Protocols that `protocol = ".."` in `cage.toml` may name.
    pub protocols: Protocols,
}

impl HostOptions {
    pub fn new(
        root: impl Into<PathBuf>,
        cages: impl IntoIterator<Item = impl Into<String>>,
        protocols: Protocols,
    ) -> Self {
        let cages = cages.into_iter().map(Into::into).collect();
        Self {
            root: root.into(),
            cages,
            node: None,
            lanes: None,
            cache: None,
            cache_bytes_max: None,
            state: None,
            logs: None,
            runtime_directory: None,
            compiler: None,
            protocols,
        }
    }

    fn directories(&self) -> Directories {
        let Self { root, state, logs, .. } = self.clone();
        Directories { root, state, logs }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start cage {cage}")]
    Config {
        cage: String,
        #[source]
        source: ConfigError,
    },
    #[error("cage {cage} has no directory {directory}")]
    NoDirectory { cage: String, directory: PathBuf },
    #[error("cannot start the lanes that run guests")]
    Lanes(#[source] std::io::Error),
    #[error("no compiler is set: `HostOptions::compiler` must be the path of a wasmcage program, or this process")]
    NoCompiler,
    #[error("cannot create {directory}")]
    Directory {
        directory: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start the thread that watches the stores")]
    Thread(#[source] std::io::Error),
    #[error("cannot set up wasmtime: {0}")]
    Engine(String),
}

impl StartError {
    /// Returns whether the user must correct the arguments or `cage.toml`, so that a retry is useless.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Config { .. } | Self::NoDirectory { .. } => true,
            Self::Lanes(_) | Self::NoCompiler | Self::Directory { .. } | Self::Thread(_) | Self::Engine(_) => false,
        }
    }
}

/// What all cages of a host share.
pub struct HostShared {
    pub lanes: Arc<Lanes>,
    pub loader: Arc<Loader>,
    pub cages: Arc<Cages>,
    /// Memory and other limits that guests of all cages share.
    pub room: Arc<Room>,
    pub node: String,
    pub runtime_directory: Arc<Path>,
    /// The budget for bodies that are held whole.
    pub bodies: Arc<BodyBudget>,
    pub directories: Directories,
    pub protocols: Protocols,
    _engines: Arc<Engines>,
}

impl HostShared {
    /// # Errors
    /// Threads, the compiler or a directory cannot be set up.
    pub fn new(options: &HostOptions) -> Result<Self, StartError> {
        let lanes = options.lanes.unwrap_or_else(Lanes::default_count).max(1);
        let lanes = Arc::new(Lanes::start(lanes).map_err(StartError::Lanes)?);
        let engines = Arc::new(Engines::start().map_err(engine_error)?);
        let cache_bytes_max = options.cache_bytes_max.or_else(cache_bytes_max).unwrap_or(CACHE_BYTES_MAX);
        let cache = Cache::new(cache_directories(options), cache_bytes_max);
        let compile_in = options.compiler.clone().ok_or(StartError::NoCompiler)?;
        let directories = options.directories();
        directories.make_parents().map_err(|(directory, source)| StartError::Directory { directory, source })?;
        let compiler = Arc::new(Compiler::new(engines.clone(), cache, compile_in));
        let loader = Arc::new(Loader::new(&engines, compiler, lanes.clone()).map_err(engine_error)?);
        let node = options.node.clone().unwrap_or_else(host_name);
        let runtime_directory = options.runtime_directory.clone().unwrap_or_else(runtime_directory).into();
        let (room, bodies) = (Room::of_machine(), Arc::new(BodyBudget::of_machine()));
        let cages = Arc::default();
        let protocols = options.protocols.clone();
        Ok(Self {
            lanes,
            loader,
            cages,
            room,
            node,
            runtime_directory,
            bodies,
            directories,
            protocols,
            _engines: engines,
        })
    }
}

/// Compiles a module if this process was started for that, and returns its exit code. Programs that embed the host and name
/// themselves, `/proc/self/exe`, as its compiler must call this first.
pub fn compile_when_asked() -> Option<ExitCode> {
    std::env::var_os(COMPILE_VARIABLE)?;
    (std::env::args_os().nth(1)? == "compile").then(compile_worker)
}

fn engine_error(error: impl std::fmt::Display) -> StartError {
    StartError::Engine(format!("{error:#}"))
}

/// The machine's name up to its first dot.
pub fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    name.split('.').next().unwrap_or("localhost").to_owned()
}

/// Directories in which compiled files may be stored, in the order of preference.
fn cache_directories(options: &HostOptions) -> Vec<PathBuf> {
    if let Some(directory) = &options.cache {
        return vec![directory.clone()];
    }
    let preferred = variable("WASMCAGE_CACHE_DIR").map_or_else(|| options.root.join(".cache"), PathBuf::from);
    std::iter::once(preferred).chain(cache::user_directory()).collect()
}

/// Reads `WASMCAGE_CACHE_MAX_MB`, if that is a number.
fn cache_bytes_max() -> Option<u64> {
    let megabytes: u64 = variable("WASMCAGE_CACHE_MAX_MB")?.to_str()?.parse().ok()?;
    Some(megabytes.saturating_mul(1 << 20))
}

/// Reads an environment variable; none if it is not set or empty.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Where running cages of this user find each other: `WASMCAGE_RUNTIME_DIR`, `wasmcage` in `XDG_RUNTIME_DIR`, or
/// `/tmp/wasmcage-<user id>`.
pub fn runtime_directory() -> PathBuf {
    let variable = |name| variable(name).map(PathBuf::from);
    variable("WASMCAGE_RUNTIME_DIR")
        .or_else(|| Some(variable("XDG_RUNTIME_DIR")?.join("wasmcage")))
        .unwrap_or_else(|| format!("/tmp/wasmcage-{}", rustix::process::geteuid().as_raw()).into())
}

/// Running cages. Dropping it stops them without waiting for requests in flight.
pub struct Host {
    shared: Arc<HostShared>,
    cages: Vec<Cage>,
    started: SystemTime,
    housekeeping: tokio::task::JoinHandle<()>,
}

/// An address at which an interface serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServingLine {
    pub cage: String,
    pub interface: String,
    pub protocol: String,
    pub address: String,
    pub module: String,
}

impl Host {
    /// Builds a host for cages in the directory `root`.
    pub fn builder(root: impl Into<PathBuf>) -> HostBuilder {
        HostBuilder::new(root.into())
    }

    /// Prepares a host and serves.
    ///
    /// # Errors
    /// A cage that cannot be started at all.
    pub async fn start(options: HostOptions) -> Result<Self, StartError> {
        let mut host = Self::prepare(options)?;
        host.serve().await;
        Ok(host)
    }

    /// Reads the configurations and makes the cages; nothing serves yet.
    ///
    /// # Errors
    /// A cage that cannot be started at all.
    pub fn prepare(options: HostOptions) -> Result<Self, StartError> {
        let shared = Arc::new(HostShared::new(&options)?);
        let mut cages = Vec::with_capacity(options.cages.len());
        for name in &options.cages {
            cages.push(Cage::prepare(&options.root, name, shared.clone())?);
        }
        let modules: Vec<_> = cages.iter().map(Cage::modules).collect();
        let bodies = shared.bodies.clone();
        let stores: Vec<_> = cages.iter().map(Cage::store).collect();
        watch_stores(stores).map_err(StartError::Thread)?;
        let housekeeping = tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE_CHECK_INTERVAL).await;
                modules.iter().for_each(|modules| modules.drop_idle());
                bodies.remind_allocator();
            }
        });
        Ok(Self { shared, cages, started: SystemTime::now(), housekeeping })
    }

    /// Starts the cages. Returns when the existing modules are loaded and all interfaces listen, or after the timeouts for both.
    /// A module or interface that fails is logged, and the others serve. If the future is dropped, what serves by then goes on.
    pub async fn serve(&mut self) {
        // All cages are registered before the first interface receives a request that may call into them.
        for cage in &mut self.cages {
            cage.start().await;
        }
    }

    pub fn cage(&self, name: &str) -> Option<&Cage> {
        self.cages.iter().find(|cage| cage.name() == name)
    }

    /// The lanes, for calls that did not come through an interface.
    pub fn lanes(&self) -> &Arc<Lanes> {
        &self.shared.lanes
    }

    /// Writes everything logged so far to the files.
    pub fn flush_logs(&self) {
        self.cages.iter().for_each(Cage::flush_log);
    }

    pub fn serving(&self) -> Vec<ServingLine> {
        self.cages.iter().flat_map(Cage::serving).collect()
    }

    pub fn snapshot(&self) -> HostSnapshot {
        HostSnapshot {
            node: self.shared.node.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            started: telemetry::utc(self.started),
            lanes: self.shared.lanes.count(),
            cages: self.cages.iter().map(Cage::snapshot).collect(),
        }
    }

    /// Stops the intake, finishes what is in flight, up to each cage's request timeout, and ends. Returns false when something
    /// had to be cut off.
    pub async fn stop(mut self) -> bool {
        let drained = futures_util::future::join_all(self.cages.iter().map(Cage::drain)).await;
        let finished = drained.into_iter().all(|finished| finished);
        // The cages end only after all are drained: requests of one may call any other.
        futures_util::future::join_all(self.cages.drain(..).map(Cage::end)).await;
        finished
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.housekeeping.abort();
    }
}

/// Checks every second that each store's file still has its name, as long as there is a store. This has a thread of its own,
/// since a disk may not answer.
fn watch_stores(mut stores: Vec<Weak<Store>>) -> std::io::Result<()> {
    let check_file = |store: &Weak<Store>| {
        let Some(store) = store.upgrade() else { return false };
        if let Err(panic) = task::catch_panic(|| store.check_file()) {
            tracing::error!(error = %panic, "the file of a store could not be checked");
        }
        true
    };
    let watch = move || {
        while !stores.is_empty() {
            std::thread::sleep(STORE_CHECK_INTERVAL);
            stores.retain(check_file);
        }
    };
    std::thread::Builder::new().name("store-watch".into()).spawn(watch).map(|_| ())
}

/// What `wasmcage ps --json` prints.
#[derive(Debug, Serialize)]
pub struct HostSnapshot {
    pub node: String,
    pub pid: u32,
    pub version: &'static str,
    /// Start of the host, in RFC 3339, UTC.
    pub started: String,
    pub lanes: usize,
    pub cages: Vec<CageSnapshot>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedders_program_is_never_run_to_compile_unasked() {
        let root = tempfile::tempdir().unwrap();
        let error = HostShared::new(&HostOptions::new(root.path(), ["a"], Protocols::default())).err().unwrap();
        assert!(
            matches!(error, StartError::NoCompiler) && error.to_string().contains("HostOptions::compiler"),
            "{error}"
        );
        assert!(compile_when_asked().is_none(), "nobody asked");
    }
}
