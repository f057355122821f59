//! The name, addresses, status and readings of a running interface. The cage makes one for each.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use wasmcage_core::readings::{Outcome, Readings};

/// A running interface, for the cage and its operator.
pub struct Endpoint {
    /// Name of the interface.
    pub interface: Arc<str>,
    pub cage: Arc<str>,
    pub protocol: &'static str,
    /// Name of the module.
    pub module: Arc<str>,
    pub readings: Readings,
    timeout_ms: AtomicU64,
    addresses: watch::Sender<Vec<(u64, Address)>>,
    /// Number that was given to an address last, to distinguish equal addresses.
    last_address: AtomicU64,
    status: Mutex<Option<String>>,
}

/// Where an interface can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// From outside, such as `http://127.0.0.1:8080/`.
    Outside(String),
    /// By cages of this machine only, such as a socket in the file system.
    Machine(String),
    /// By its own cage only, such as a queue.
    Cage(String),
}

impl Address {
    /// The address as shown to operators.
    pub fn text(&self) -> &str {
        match self {
            Self::Outside(text) | Self::Machine(text) | Self::Cage(text) => text,
        }
    }
}

/// Announces an address of an interface as long as it is held. It must be dropped as soon as the intake at the address has
/// ended: a successor that needs the address waits for that.
#[must_use]
pub struct ListenGuard {
    endpoint: Arc<Endpoint>,
    id: u64,
}

impl Drop for ListenGuard {
    fn drop(&mut self) {
        self.endpoint.addresses.send_modify(|addresses| addresses.retain(|(id, _)| *id != self.id));
    }
}

/// The module version that serves a request: it is chosen when the request begins, and does not change. Only the host knows
/// its type.
pub struct Route {
    kind: RouteKind,
    version: Arc<dyn Any + Send + Sync>,
}

/// How the module of a route gets the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// As a whole: `Dispatch::handle`.
    Whole,
    /// As a stream: `Dispatch::stream`.
    Streamed,
}

impl Route {
    /// Makes a route. For the host, and for tests of interfaces.
    pub fn new(kind: RouteKind, version: Arc<dyn Any + Send + Sync>) -> Self {
        Self { kind, version }
    }

    pub fn kind(&self) -> RouteKind {
        self.kind
    }

    /// Returns the version. For the host.
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
            last_address: AtomicU64::new(0),
            status: Mutex::default(),
        };
        endpoint.set_timeout(timeout);
        endpoint
    }

    /// The timeout of requests that have no deadline of their own.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed))
    }

    /// Sets the timeout of requests that begin from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        self.timeout_ms.store(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Announces that the interface can be reached at this address, as long as the guard is held. The address is logged, and
    /// shown at start and by `wasmcage ps`.
    pub fn listen(self: &Arc<Self>, address: Address) -> ListenGuard {
        let (cage, interface, module) = (&*self.cage, &*self.interface, &*self.module);
        tracing::info!(cage, interface, module, address = %address.text(), "started listening");
        let id = self.last_address.fetch_add(1, Ordering::Relaxed);
        self.addresses.send_modify(|addresses| addresses.push((id, address)));
        ListenGuard { endpoint: self.clone(), id }
    }

    /// The addresses at which it can be reached now.
    pub fn addresses(&self) -> Vec<Address> {
        self.addresses.borrow().iter().map(|(_, address)| address.clone()).collect()
    }

    /// Sets a text for operators, such as what the interface waits for; none if there is nothing to say. An interface with
    /// neither an address nor a status counts as still starting.
    pub fn set_status(&self, status: Option<String>) {
        *self.status.lock() = status;
    }

    /// The status that was set last.
    pub fn status(&self) -> Option<String> {
        self.status.lock().clone()
    }

    /// Counts a request for which the module had no version. `Dispatch` does not count these.
    pub fn count_without_module(&self) {
        self.readings.begin();
        self.readings.end(Outcome::NotFound, Duration::ZERO, Duration::ZERO);
    }

    /// Resolves when it listens nowhere any more, so that a successor may listen.
    pub async fn wait_until_closed(&self) {
        // This endpoint owns the sender, so it still exists.
        let _ = self.addresses.subscribe().wait_for(Vec::is_empty).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_known_as_long_as_it_is_listened_at() {
        let endpoint = Endpoint::new("web".into(), "http", "hello".into(), "m".into(), Duration::from_secs(1));
        let endpoint = Arc::new(endpoint);
        let address = Address::Outside("http://127.0.0.1:8080/".into());
        let (first, second) = (endpoint.listen(address.clone()), endpoint.listen(address.clone()));
        drop(first);
        assert_eq!(endpoint.addresses(), [address]);
        let closed = {
            let endpoint = endpoint.clone();
            tokio::spawn(async move { endpoint.wait_until_closed().await })
        };
        drop(second);
        closed.await.unwrap();
        assert_eq!(endpoint.addresses(), []);
    }
}
