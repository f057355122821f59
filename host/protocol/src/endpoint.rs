//! An interface's way to its module: which version serves a request, and where the interface listens. One for each running
//! interface, made by `cage.rs`.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

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
    timeout_ms: AtomicU64,
    addresses: watch::Sender<Vec<String>>,
    /// What it says of itself.
    news: Mutex<Option<String>>,
}

/// The module version that will serve one request: chosen when the request begins, kept to its end. What it is, is known to
/// the host alone.
pub struct Route {
    kind: RouteKind,
    version: Arc<dyn Any + Send + Sync>,
}

/// How a route's module wants the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Collected: `Dispatch::handle`.
    Whole,
    /// As it comes: `Dispatch::stream`.
    Streamed,
}

impl Route {
    /// For the host, and for tests of interfaces.
    pub fn new(kind: RouteKind, version: Arc<dyn Any + Send + Sync>) -> Self {
        Self { kind, version }
    }

    pub fn kind(&self) -> RouteKind {
        self.kind
    }

    /// For the host.
    pub fn into_version(self) -> Arc<dyn Any + Send + Sync> {
        self.version
    }
}

impl Endpoint {
    pub fn new(
        interface: Arc<str>,
        protocol: &'static str,
        cage: Arc<str>,
        module: Arc<str>,
        timeout: Duration,
    ) -> Self {
        let endpoint = Self {
            interface,
            cage,
            protocol,
            module,
            readings: Readings::default(),
            timeout_ms: AtomicU64::new(0),
            addresses: watch::Sender::default(),
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
