//! The fabric that needs nothing but the network: Unix sockets between cages of one machine, TCP with mutual TLS between
//! machines. Discovery finds copies (`discovery/`, `members.rs`), peers tell each other of them (`tell.rs`), and they are kept
//! in a table (`copies.rs`). Connections are made when calls need them (`dial.rs`) and taken in (`listen.rs`), and each call
//! goes to the copy that looks best (`calls.rs`, `choice.rs`).

mod calls;
mod choice;
mod copies;
mod copy;
mod dial;
mod events;
mod gauge;
mod handshakes;
mod listen;
mod members;
mod reverse;
mod tell;
#[cfg(test)]
mod tests;
mod told;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::calls::late;
use self::copies::Copies;
use self::events::Events;
use self::listen::Listening;
use self::reverse::Reached;
use self::tell::Audience;
use super::config::LanConfig;
use super::discovery::{Listener, Multicast, PeerAddress, Registry, Watch};
use super::envelope::{self, Message};
use super::fabric::{Fabric, Limits, Local, Service};
use super::link::frame::Hello;
use super::link::{Answering, Link, SessionLimits};
use crate::keys::{Identity, WatchedKeys};
use wasmcage_core::call::{COMMAND_LINE, Call, Member, Remote};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::Payload;
use wasmcage_core::task::{Tasks, catch_panic_async};
use wasmcage_core::telemetry::Throttle;
use wasmcage_protocol::InterfaceError;

/// How long a cage that stops waits for connections that are greeting.
const GREETING_TIME: Duration = Duration::from_secs(1);
/// Between two looks at the keys.
const KEYS_INTERVAL: Duration = Duration::from_secs(1);
/// Copies that are proven in the background at the same time.
const PROOFS_MAX: usize = 16;
/// Of one connection: lists of members that are taken in within a time. The others are passed over.
const TOLD_MAX: u64 = 20;
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// One cage's way to others on this machine and its network. Dropping it ends its connections.
pub struct Lan {
    inner: Arc<Inner>,
    tasks: Mutex<JoinSet<()>>,
}

struct Inner {
    local: Local,
    interface: String,
    config: LanConfig,
    limits: Limits,
    lanes: Arc<Lanes>,
    /// Watches everything that is spawned.
    tasks: Tasks,
    keys: WatchedKeys,
    registry: Registry,
    /// Of this machine's cages.
    watch: OnceLock<Watch>,
    multicast: OnceLock<Multicast>,
    copies: Copies,
    proofs: Arc<Semaphore>,
    /// Rings when a copy has become known, was connected to, or has gone.
    changed: Notify,
    audience: Audience,
    /// Cages that are served in reverse.
    reached: Reached,
    started: Instant,
    events: Events,
    /// Connections that others made, while the cage is advertised.
    inbound: Mutex<Inbound>,
    /// The connections themselves, from the first byte on.
    taken: TaskTracker,
    addresses: Mutex<Vec<String>>,
    /// Of TCP, while it is advertised.
    listening: Mutex<Option<SocketAddr>>,
}

#[derive(Default)]
struct Inbound {
    links: Vec<Link>,
    draining: bool,
}

/// Answers what comes over one link.
struct Answerer {
    inner: Weak<Inner>,
    cage: Arc<str>,
    /// Whose certificate, or whose word on this machine, stands for the calls.
    peer: Arc<str>,
    service: Option<Arc<dyn Service>>,
    body_bytes_max: usize,
    told: Throttle,
}

impl Lan {
    /// Looks around from here on; nobody can call before `advertise`.
    ///
    /// # Errors
    /// Keys that are there and cannot be used, or a runtime directory that is not safe.
    pub async fn open(
        local: Local,
        interface: &str,
        config: LanConfig,
        limits: Limits,
        runtime_directory: &std::path::Path,
        lanes: Arc<Lanes>,
        watch: Tasks,
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
        let inner = Arc::new(Inner {
            events: Events::new(local.cage.clone(), interface.to_owned()),
            local,
            interface: interface.to_owned(),
            config,
            limits,
            lanes,
            tasks: watch,
            keys,
            registry,
            watch: OnceLock::new(),
            multicast: OnceLock::new(),
            copies: Copies::default(),
            proofs: Arc::new(Semaphore::new(PROOFS_MAX)),
            changed: Notify::new(),
            audience: Audience::default(),
            reached: Reached::default(),
            started: Instant::now(),
            inbound: Mutex::default(),
            taken: TaskTracker::new(),
            addresses: Mutex::default(),
            listening: Mutex::default(),
        });
        let lan = Self { inner, tasks: Mutex::default() };
        lan.look_around();
        Ok(lan)
    }

    fn look_around(&self) {
        let inner = &self.inner;
        let weak = Arc::downgrade(inner);
        let listener: Listener = Arc::new(move |news| upgraded(&weak, |inner| inner.news(news)));
        let watch = inner.registry.watch(inner.local.copy, listener.clone(), &inner.tasks);
        inner.watch.set(watch).unwrap_or_else(|_| unreachable!("it is begun once"));
        inner.listen_to_multicast(listener);
        self.keep("rpc: keys", |inner| async move { inner.keys.watch(KEYS_INTERVAL).await });
        self.keep("rpc: members are told", Inner::keep_telling);
        for (cage, addresses) in &inner.config.peers {
            addresses.iter().for_each(|address| self.add_peer(cage, address));
        }
    }

    /// Has a part run as long as the fabric does.
    fn keep<W>(&self, part: &str, run: impl Fn(Arc<Inner>) -> W + Send + 'static)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let inner = self.inner.clone();
        self.tasks.lock().spawn(self.inner.tasks.keep_running(part, move || run(inner.clone())));
    }

    fn add_peer(&self, cage: &str, address: &PeerAddress) {
        let (cage, address): (Arc<str>, _) = (cage.into(), address.clone());
        self.keep("rpc: a configured peer", move |inner| inner.keep_peer(cage.clone(), address.clone()));
    }
}

fn upgraded(inner: &Weak<Inner>, then: impl FnOnce(&Arc<Inner>)) {
    if let Some(inner) = inner.upgrade() {
        then(&inner);
    }
}

#[async_trait]
impl Fabric for Lan {
    async fn advertise(&self, service: Arc<dyn Service>, drain: Drain) -> Result<(), InterfaceError> {
        let inner = &self.inner;
        let listening = Listening::start(inner).await?;
        *inner.addresses.lock() = listening.addresses();
        *inner.listening.lock() = listening.tcp_address();
        inner.announce();
        inner.changed.notify_waiters();
        listening.accept(inner, &service, &drain).await;
        // The socket's file is gone by now: nobody finds this copy any more.
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
        // Each ends when its calls have been answered and the answers are on their way.
        links.iter().for_each(Link::close);
        futures_util::future::join_all(links.iter().map(Link::closed)).await;
        // One that was greeting meanwhile has to be told that nothing it sends is taken.
        inner.taken.close();
        // A peer that does not greet is not waited for: it has handed nothing over.
        let _ = tokio::time::timeout(GREETING_TIME, inner.taken.wait()).await;
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
        let most = self.inner.limits.body_bytes_max;
        if bytes > most {
            return Err(DispatchError::BadRequest(format!("arguments of {bytes} bytes, more than {most}")));
        }
        if call.context.deadline.passed() {
            return Err(late(&call));
        }
        let known = self.inner.find(&call.cage, call.context.deadline).await?;
        let _place = known.enter(&call.cage, self.inner.limits.calls_per_cage_max)?;
        match copy {
            None => self.inner.call(call, known).await,
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

/// Connections.
impl Inner {
    fn hello(&self, reverse: bool) -> Hello {
        Hello {
            copy: self.local.copy.0,
            flock: self.local.flock.to_string(),
            cage: self.local.cage.to_string(),
            node: self.local.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen_port: self.listening.lock().map(|listening| listening.port()),
            reverse,
        }
    }

    /// Why this is not whom we want to talk to. `cage`: who it must be, or whose certificate it showed.
    fn mismatch(&self, hello: &Hello, cage: Option<&str>) -> Option<String> {
        if hello.flock != *self.local.flock {
            return Some(format!(
                "this is cage {} of flock {}, not of flock {}",
                self.local.cage, self.local.flock, hello.flock
            ));
        }
        if let Some(cage) = cage.filter(|cage| *cage != hello.cage) {
            return Some(format!("cage {cage} was expected, cage {} greeted", hello.cage));
        }
        // Without a certificate the peer is a process of this machine and user, such as the command line.
        let operator = cage.is_none() && hello.cage == COMMAND_LINE && !hello.reverse;
        if !operator && !wasmcage_config::is_name(&hello.cage) {
            return Some(format!("{:?} cannot name a cage", hello.cage));
        }
        (hello.copy == self.local.copy.0).then(|| "this is the same copy".to_owned())
    }

    fn session_limits(&self) -> SessionLimits {
        SessionLimits {
            body_bytes_max: self.limits.body_bytes_max,
            calls_max: self.limits.calls_per_peer_max,
            assembly_bytes_max: 2 * self.limits.body_bytes_max,
        }
    }

    /// Counts an inbound connection in; false when the drain has begun.
    fn enlist(&self, link: &Link) -> bool {
        let mut inbound = self.inbound.lock();
        inbound.links.retain(|link| !link.is_closed());
        inbound.links.push(link.clone());
        !inbound.draining
    }
}

impl Answerer {
    fn new(inner: &Arc<Inner>, peer: Arc<str>, service: Option<Arc<dyn Service>>) -> Arc<Self> {
        let (cage, body_bytes_max) = (inner.local.cage.clone(), inner.limits.body_bytes_max);
        let told = Throttle::new(TOLD_MAX, TOLD_WITHIN);
        Arc::new(Self { inner: Arc::downgrade(inner), cage, peer, service, body_bytes_max, told })
    }

    async fn serve(&self, message: Message) -> Result<Payload, DispatchError> {
        let service = self.service.as_ref().ok_or(DispatchError::Draining)?;
        let call = envelope::decode_call(message, &self.peer);
        let call = call.map_err(|error| DispatchError::BadRequest(error.to_string()))?;
        if *call.cage != *self.cage {
            return Err(DispatchError::NoSuchCage(format!("this is cage {}, not {}", self.cage, call.cage)));
        }
        service.serve(call).await
    }
}

impl Answering for Answerer {
    async fn answer(&self, call: Message) -> Message {
        // Whatever happens: a caller that waits for an answer that nobody makes would wait to its deadline.
        let served = catch_panic_async(self.serve(call)).await.unwrap_or_else(|panic| {
            upgraded(&self.inner, |inner| inner.tasks.report("rpc: a call from elsewhere", &panic));
            Err(DispatchError::Host("panicked".into()))
        });
        envelope::encode_answer(served, self.body_bytes_max)
    }

    fn told(&self, members: &[u8]) {
        if self.told.pass().is_some() {
            upgraded(&self.inner, |inner| inner.was_told(&self.peer, members));
        }
    }
}
