//! An interface's way to its module: which version serves a request, and where the interface listens. One for each running
//! interface, made by `cage.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::DispatchError;
use wasmcage_config::ExportChoice;
use wasmcage_runtime::module::slot::Slot;
use wasmcage_runtime::module::version::Version;
use wasmcage_core::readings::Readings;

/// An interface's way to the module that serves it.
pub struct Endpoint {
    /// Name of the interface.
    pub interface: Arc<str>,
    pub cage: Arc<str>,
    pub protocol: &'static str,
    /// Name of the module.
    pub module: Arc<str>,
    pub readings: Readings,
    pub(super) slot: Arc<Slot>,
    choice: ExportChoice,
    timeout_ms: AtomicU64,
    addresses: watch::Sender<Vec<String>>,
    /// What it says of itself.
    news: Mutex<Option<String>>,
}

/// The module version that will serve one request: chosen when the request begins, kept to its end.
pub struct Route {
    pub(super) version: Arc<Version>,
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
            news: Mutex::default(),
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

    /// Whether the module has had a file since the cage started, so that what comes is meant for it: it may be compiling,
    /// refused, or removed when `route` finds no version.
    pub fn has_had_module(&self) -> bool {
        self.slot.has_had_file()
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

    /// What an operator should see of an interface that has no address, such as what it waits for; none if nothing.
    pub fn tell(&self, news: Option<String>) {
        *self.news.lock() = news;
    }

    /// What it told last.
    pub fn news(&self) -> Option<String> {
        self.news.lock().clone()
    }

    /// Resolves when it listens nowhere, so that another interface may.
    pub async fn silent(&self) {
        // The sender cannot be gone: it is this endpoint's.
        let _ = self.addresses.subscribe().wait_for(Vec::is_empty).await;
    }
}
