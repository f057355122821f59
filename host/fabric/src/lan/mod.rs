//! The fabric that needs no server: Unix sockets between cages of one machine, TCP with mutual TLS between machines.
//! Discovery finds copies (`discovery/`, `members.rs`), peers tell each other of them (`gossip.rs`), and a table holds
//! them (`copies.rs`). Connections are made when calls need them (`dial.rs`) and accepted (`listen.rs`); `links.rs` has
//! what both kinds share. Each call goes to the copy that seems best (`calls.rs`, `choice.rs`).

mod calls;
mod choice;
mod copies;
mod copy;
mod dial;
mod events;
mod gauge;
mod gossip;
mod gossip_format;
mod handshakes;
mod links;
mod listen;
mod members;
mod reverse;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::calls::deadline_exceeded;
use self::copies::CopyTable;
use self::events::Events;
use self::gossip::GossipPeers;
use self::listen::Listeners;
use self::reverse::ReverseStatus;
use super::config::LanConfig;
use super::discovery::{Listener, Multicast, PeerAddress, Registry, RegistryWatch};
use super::envelope;
use super::fabric::{CallHandler, CallLimits, Fabric, LocalCopy};
use super::link::Link;
use crate::keys::{Identity, WatchedKeys};
use wasmcage_core::call::{Call, Member, Remote};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::Payload;
use wasmcage_core::task::Tasks;
use wasmcage_protocol::InterfaceError;

/// How long a cage that stops waits for connections that have not greeted yet.
const GREETING_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval at which the files of keys are checked for changes.
const KEYS_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Copies that are probed in the background at the same time.
const PROBES_MAX: usize = 16;
/// One cage's fabric to others on this machine and its network. Dropping it closes its connections.
pub struct Lan {
    inner: Arc<LanInner>,
    tasks: Mutex<JoinSet<()>>,
}

struct LanInner {
    local: LocalCopy,
    interface: String,
    config: LanConfig,
    limits: CallLimits,
    lanes: Arc<Lanes>,
    /// Counts the panics of everything that is spawned.
    tasks: Tasks,
    keys: WatchedKeys,
    registry: Registry,
    /// Watches the registry of this machine's cages.
    watch: OnceLock<RegistryWatch>,
    multicast: OnceLock<Multicast>,
    copies: CopyTable,
    probes: Arc<Semaphore>,
    /// Notified when a copy becomes known, is connected to, or is forgotten.
    changed: Notify,
    gossip_peers: GossipPeers,
    /// State of the cages that are served over connections made from here.
    reverse_status: ReverseStatus,
    started: Instant,
    events: Events,
    /// Connections that others made and on which they have greeted.
    inbound: Mutex<InboundLinks>,
    /// Tasks of connections that others made, from the first byte on.
    inbound_tasks: TaskTracker,
    /// Where the cage can be reached, while it is advertised.
    addresses: Mutex<Vec<String>>,
    /// The TCP address at which the cage listens, while it is advertised.
    listening: Mutex<Option<SocketAddr>>,
}

#[derive(Default)]
struct InboundLinks {
    links: Vec<Link>,
    draining: bool,
}

impl Lan {
    /// Starts discovery, after which the cage can call others. Others can call it after `advertise`.
    ///
    /// # Errors
    /// The keys exist and cannot be used, or the runtime directory is not safe.
    pub async fn open(
        local: LocalCopy,
        interface: &str,
        config: LanConfig,
        limits: CallLimits,
        runtime_directory: &std::path::Path,
        lanes: Arc<Lanes>,
        tasks: Tasks,
    ) -> Result<Self, InterfaceError> {
        let setup = |text: &str, source: Box<dyn std::error::Error + Send + Sync>| InterfaceError::Setup {
            interface: interface.to_owned(),
            text: text.to_owned(),
            source: Some(source),
        };
        let identity = Identity::new(&*local.flock, &*local.cage);
        let keys = WatchedKeys::open(&config.keys, &identity)
            .map_err(|error| setup("the cage's keys cannot be used", error.into()))?;
        let registry = Registry::open(runtime_directory, &local.flock)
            .map_err(|error| setup("cages of this machine cannot meet", error.into()))?;
        let inner = Arc::new(LanInner {
            events: Events::new(local.cage.clone(), interface.to_owned()),
            local,
            interface: interface.to_owned(),
            config,
            limits,
            lanes,
            tasks,
            keys,
            registry,
            watch: OnceLock::new(),
            multicast: OnceLock::new(),
            copies: CopyTable::default(),
            probes: Arc::new(Semaphore::new(PROBES_MAX)),
            changed: Notify::new(),
            gossip_peers: GossipPeers::default(),
            reverse_status: ReverseStatus::default(),
            started: Instant::now(),
            inbound: Mutex::default(),
            inbound_tasks: TaskTracker::new(),
            addresses: Mutex::default(),
            listening: Mutex::default(),
        });
        let lan = Self { inner, tasks: Mutex::default() };
        lan.start_discovery();
        Ok(lan)
    }

    fn start_discovery(&self) {
        let inner = &self.inner;
        let weak = Arc::downgrade(inner);
        let listener: Listener = Arc::new(move |event| with_inner(&weak, |inner| inner.discovered(event)));
        let watch = inner.registry.watch(inner.local.copy, listener.clone(), &inner.tasks);
        inner.watch.set(watch).unwrap_or_else(|_| unreachable!("discovery is started once"));
        inner.listen_to_multicast(listener);
        self.spawn_kept("rpc: keys", |inner| async move { inner.keys.watch(KEYS_CHECK_INTERVAL).await });
        self.spawn_kept("rpc: gossip", LanInner::send_members_repeatedly);
        for (cage, addresses) in &inner.config.peers {
            addresses.iter().for_each(|address| self.add_peer(cage, address));
        }
    }

    /// Runs a part of the fabric until the fabric is dropped; it is restarted when it panics.
    fn spawn_kept<W>(&self, part: &str, run: impl Fn(Arc<LanInner>) -> W + Send + 'static)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let inner = self.inner.clone();
        self.tasks.lock().spawn(self.inner.tasks.keep_running(part, move || run(inner.clone())));
    }

    fn add_peer(&self, cage: &str, address: &PeerAddress) {
        let (cage, address): (Arc<str>, _) = (cage.into(), address.clone());
        self.spawn_kept("rpc: a configured peer", move |inner| inner.maintain_peer(cage.clone(), address.clone()));
    }
}

fn with_inner(inner: &Weak<LanInner>, then: impl FnOnce(&Arc<LanInner>)) {
    if let Some(inner) = inner.upgrade() {
        then(&inner);
    }
}

#[async_trait]
impl Fabric for Lan {
    async fn advertise(&self, handler: Arc<dyn CallHandler>, drain: Drain) -> Result<(), InterfaceError> {
        let inner = &self.inner;
        let listening = Listeners::bind(inner).await?;
        *inner.addresses.lock() = listening.addresses();
        *inner.listening.lock() = listening.tcp_address();
        inner.announce();
        inner.changed.notify_waiters();
        listening.accept(inner, &handler, &drain).await;
        // The socket's file has been removed, so no cage finds this copy any more.
        inner.addresses.lock().clear();
        *inner.listening.lock() = None;
        if let Some(multicast) = inner.multicast.get() {
            multicast.withdraw().await;
        }
        let links = {
            let mut inbound = inner.inbound.lock();
            inbound.draining = true;
            inbound.links.clone()
        };
        // Each closes when its calls have been answered and the answers are sent.
        links.iter().for_each(Link::close);
        futures_util::future::join_all(links.iter().map(Link::closed)).await;
        // A peer that greets meanwhile must be told that its calls are refused. One that does not greet within the
        // timeout has sent no call, so nothing is lost.
        inner.inbound_tasks.close();
        let _ = tokio::time::timeout(GREETING_DRAIN_TIMEOUT, inner.inbound_tasks.wait()).await;
        Ok(())
    }

    fn addresses(&self) -> Vec<String> {
        self.inner.addresses.lock().clone()
    }
}

#[async_trait]
impl Remote for Lan {
    async fn call(&self, call: Call, copy: Option<&str>) -> Result<Payload, DispatchError> {
        let bytes = envelope::body_bytes(&call.arguments);
        let max = self.inner.limits.body_bytes_max;
        if bytes > max {
            return Err(DispatchError::BadRequest(format!("arguments of {bytes} bytes, more than {max}")));
        }
        if call.context.deadline.passed() {
            return Err(deadline_exceeded(&call));
        }
        let cage = self.inner.find_cage(&call.cage, call.context.deadline).await?;
        let _permit = cage.begin_call(&call.cage, self.inner.limits.calls_per_cage_max)?;
        match copy {
            None => self.inner.call(call, cage).await,
            Some(copy) => self.inner.call_copy(call, copy).await,
        }
    }

    fn copies(&self, cage: &str) -> Vec<String> {
        let known = self.inner.copies.get(cage);
        known.iter().flat_map(|known| known.copies().to_vec()).map(|copy| copy.id.to_string()).collect()
    }

    fn members(&self) -> Vec<Member> {
        let mut members: Vec<_> = self.inner.copies.all().iter().map(|copy| copy.member()).collect();
        members.sort_by(|a, b| (&a.cage, &a.node, &a.copy).cmp(&(&b.cage, &b.node, &b.copy)));
        members
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.inner.inbound.lock().links.drain(..).for_each(|link| link.close());
    }
}
