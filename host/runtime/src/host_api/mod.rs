//! The host functions that guests import: one file per interface of `wit/`, and the standard WASI interfaces. wasmtime calls
//! them while a guest's call runs. A guest's values are untrusted input and must never make the host panic.

pub mod bindings;
pub mod bound;
mod call;
mod command;
mod config;
mod context;
mod directories;
mod filesystem;
pub mod forward;
mod http;
mod http_texts;
pub mod interfaces;
mod keyvalue;
mod lock;
mod log;
mod per_request;
mod resources;
mod short_records;
mod short_texts;
mod state;
mod stdio;
mod text;
mod transaction;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::dispatcher::WeakDispatcher;
use crate::module::engine::EngineKind;
use crate::module::limits::Limits;
use crate::module::room::ModuleRoom;
use crate::services::Services;
use wasmcage_config::{Grants, ModuleConfig};
use wasmcage_core::request::{Deadline, RequestContext};
use wasmcage_core::telemetry::LevelCell;
use wasmcage_resource::OpenReply;
use wasmcage_resource::transaction::Transaction;
use wasmcage_web_client::Client;

use self::http::OutgoingGrant;
use self::log::GuestLog;
use self::per_request::PerRequest;

/// The largest size of a table of handles, in entries, with which an instance is used again. The table never shrinks, so a
/// larger one would occupy the host's memory for as long as the instance lives.
const HANDLES_KEPT_MAX: usize = 10_000;

/// The cage, settings, grants and services of a version of a module. All instances of the version share it.
pub struct Home {
    pub cage: Arc<str>,
    pub module: Arc<str>,
    /// The settings that the version was loaded with. Use `granted()` for the grants, since some may have been revoked since.
    pub settings: ModuleConfig,
    granted: ArcSwap<Grants>,
    /// The number of times that the grants were changed. An instance that was made at a lower number may have revoked grants.
    narrowed: AtomicU32,
    /// The cage's store, resources and locks.
    pub services: Services,
    /// The dispatcher, for calls to other modules. The reference is weak because the dispatcher owns the modules.
    pub dispatcher: WeakDispatcher,
    /// Counts the shared memory and pools that the version's instances use.
    pub room: Arc<ModuleRoom>,
    /// Limits how many files the version opens at the same time.
    opening: Semaphore,
    log: Arc<GuestLog>,
    variables: WasiConfigVariables,
    /// The client with the connections for outgoing requests. It is made at the first request.
    web_client: OnceLock<Client>,
}

impl Home {
    pub fn new(
        cage: Arc<str>,
        module: Arc<str>,
        settings: ModuleConfig,
        services: Services,
        dispatcher: WeakDispatcher,
        cage_level: Arc<LevelCell>,
    ) -> Self {
        let variables = settings.config.keys().filter_map(|key| Some((key.clone(), config::text(&settings, key)?)));
        let variables = variables.collect();
        let log = Arc::new(GuestLog::new(cage.clone(), module.clone(), cage_level));
        let room = services.room.module(settings.total_memory_bytes);
        Self {
            cage,
            module,
            granted: ArcSwap::from_pointee(settings.allow.clone()),
            narrowed: AtomicU32::new(0),
            settings,
            services,
            dispatcher,
            room,
            opening: Semaphore::new(filesystem::OPENING_MAX),
            log,
            variables,
            web_client: OnceLock::new(),
        }
    }

    /// Limits the grants to those that the version was loaded with and that `allow` contains as well. Returns whether they
    /// changed; if so, idle instances may have directories open that they may no longer use.
    pub fn narrow(&self, allow: &Grants) -> bool {
        let narrowed = self.settings.allow.intersection(allow);
        if narrowed == **self.granted.load() {
            return false;
        }
        self.granted.store(Arc::new(narrowed));
        self.narrowed.fetch_add(1, Ordering::Release);
        true
    }

    /// Returns the present grants.
    pub fn granted(&self) -> arc_swap::Guard<Arc<Grants>> {
        self.granted.load()
    }
}

/// The data of a guest's `wasmtime::Store`.
pub struct GuestState {
    pub home: Arc<Home>,
    /// The value of `Home::narrowed` from when the directories were opened.
    narrowed: u32,
    pub limits: Limits,
    /// None while the module is being loaded.
    request: Option<Arc<RequestContext>>,
    outputs: stdio::Outputs,
    directories: directories::Granted,
    /// The arguments of a command: its own name, then its words. Empty if the guest is not called as a command.
    pub words: Vec<String>,
    /// The time at which the guest's code must stop running. `deadline()` extends it for requests that stream.
    deadline: Deadline,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    grant: OutgoingGrant,
    table: ResourceTable,
    held: lock::HeldLocks,
    open_replies: PerRequest<OpenReply>,
    transactions: PerRequest<Transaction>,
}

impl GuestState {
    /// Makes the state of a new instance, and opens its granted directories.
    ///
    /// # Errors
    /// A granted directory cannot be opened.
    pub fn new(home: Arc<Home>, deadline: Deadline) -> wasmtime::Result<Self> {
        let settings = &home.settings;
        let narrowed = home.narrowed.load(Ordering::Acquire);
        let mut wasi = WasiCtx::builder();
        let outputs = stdio::Outputs::new(&home.log);
        wasi.stdout(outputs.stdout());
        wasi.stderr(outputs.stderr());
        wasi.envs(&settings.env);
        // They are identified before they are opened, so that a directory that is replaced in between is noticed later.
        let directories = directories::Granted::of(&home.granted().files);
        for grant in &home.granted().files {
            let permission = if grant.writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
            wasi.preopened_dir(&grant.host, &grant.guest, permission)
                .map_err(|error| error.context(format!("granted directory {}", grant.host.display())))?;
        }
        let mut table = ResourceTable::new();
        table.set_max_capacity(settings.handles);
        Ok(Self {
            limits: Limits::new(settings.memory_bytes, settings.table_elements, home.room.clone()),
            request: None,
            outputs,
            directories,
            words: Vec::new(),
            deadline,
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            grant: OutgoingGrant::new(home.clone(), deadline),
            table,
            held: lock::HeldLocks::default(),
            open_replies: PerRequest::default(),
            transactions: PerRequest::default(),
            narrowed,
            home,
        })
    }

    /// Returns whether the grants were changed since the instance was made.
    pub fn has_revoked_grants(&self) -> bool {
        self.narrowed != self.home.narrowed.load(Ordering::Acquire)
    }

    /// Prepares the state for a call into the guest. Must be called before each call. `request` is None while the module is
    /// being loaded.
    pub fn begin(&mut self, request: Option<Arc<RequestContext>>, deadline: Deadline) {
        self.outputs.begin(request.as_ref());
        self.grant.begin(request.as_ref().and_then(|request| request.stream().cloned()), deadline);
        self.request = request;
        self.deadline = deadline;
    }

    /// Drops everything that belongs to the request. Must be called after each call and after the start, so that the next
    /// request neither sees nor holds anything of this one.
    pub fn end(&mut self) {
        self.held.release();
        self.open_replies.clear();
        self.transactions.clear();
        self.outputs.end();
        self.request = None;
        self.words = Vec::new();
    }

    /// Returns whether the table of handles has grown so much that the instance must not be used after this request.
    pub fn is_worn(&mut self) -> bool {
        // The iterator's upper bound is the length of the table, free entries included.
        let entries = self.table.iter_mut();
        entries.size_hint().1.unwrap_or_else(|| entries.count()) > HANDLES_KEPT_MAX
    }

    /// Returns whether the paths of the granted directories still lead to the directories that were opened.
    pub fn has_its_directories(&self) -> bool {
        self.directories.are_in_place()
    }

    /// Returns the present deadline. That of a request whose bodies stream is extended while bytes move.
    pub fn deadline(&self) -> Deadline {
        let stream = self.request.as_ref().and_then(|request| request.stream());
        stream.map_or(self.deadline, |stream| stream.now())
    }
}

impl WasiView for GuestState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for GuestState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.grant, table: &mut self.table, ctx: &mut self.http }
    }
}

/// Makes the linker with everything that a module may import, for one engine.
///
/// # Errors
/// wasmtime returns an error when an interface is defined twice, which is a bug of the host.
pub fn linker(engine: &Engine, kind: EngineKind) -> wasmtime::Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    bindings::Imports::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi_config::add_to_linker(&mut linker, |state: &mut GuestState| WasiConfig::from(&state.home.variables))?;
    config::add_drafts(&mut linker)?;
    log::add_wasi_logging(&mut linker)?;
    keyvalue::add_to_linker(&mut linker)?;
    if kind == EngineKind::Concurrent {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    filesystem::add_to_linker(&mut linker, kind)?;
    http_texts::add_to_linker(&mut linker, kind)?;
    short_texts::add_to_linker(&mut linker)?;
    command::add_to_linker(&mut linker, kind)?;
    Ok(linker)
}
