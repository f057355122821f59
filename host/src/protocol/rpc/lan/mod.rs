//! The fabric that needs nothing but the network: Unix sockets between cages of one machine, TCP with mutual TLS between
//! machines. Discovery finds copies (`discovery/`), connections are made when calls need them (`dial.rs`), taken in
//! (`listen.rs`), and each call goes to the copy that looks best (`copies.rs`).

mod copies;
mod dial;
mod events;
mod listen;
#[cfg(test)]
mod tests;
mod told;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::copies::{Copies, Copy, Known};
use self::events::Events;
use self::listen::Listening;
use super::config::LanConfig;
use super::discovery::{
    Address, Found, Listener, Multicast, MulticastError, MulticastSettings, News, PeerAddress, Registry, Sighting,
    Watch,
};
use super::envelope::{self, Message};
use super::fabric::{CopyId, Fabric, Limits, Local, Service};
use super::link::frame::{Hello, Refusal};
use super::link::{Answering, Link, LinkError, SessionLimits};
use crate::config::nearest;
use crate::dispatcher::{COMMAND_LINE, Call, DispatchError, Member, Remote};
use crate::drain::Drain;
use crate::keys::{Identity, WatchedKeys};
use crate::lanes::Lanes;
use crate::protocol::InterfaceError;
use crate::request::{Deadline, Payload};
use crate::telemetry::error_chain;
use crate::unix_socket;

/// A copy that multicast or a configured address leads to is known this long after the start at the latest.
const DISCOVERY_PATIENCE: Duration = Duration::from_millis(1_500);
/// Between two attempts at a configured peer: from, and up to twice that.
const PEER_RETRY: Duration = Duration::from_millis(400);
/// How long a cage that stops waits for connections that are greeting.
const GREETING_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at the keys.
const KEYS_INTERVAL: Duration = Duration::from_secs(1);

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
    keys: WatchedKeys,
    registry: Registry,
    /// Of this machine's cages.
    watch: OnceLock<Watch>,
    multicast: OnceLock<Multicast>,
    copies: Copies,
    /// Rings when a copy has become known.
    changed: Notify,
    started: Instant,
    events: Events,
    /// Connections that others made, while the cage is advertised.
    inbound: Mutex<Inbound>,
    /// The connections themselves, from the first byte on.
    taken: TaskTracker,
    addresses: Mutex<Vec<String>>,
    port: Mutex<Option<u16>>,
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
}

/// One attempt that brought no answer.
enum Failure {
    /// It surely did not run there.
    NotRun(String),
    /// It may have run.
    Lost(String),
    /// The attempt's time is over.
    Late,
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
            keys,
            registry,
            watch: OnceLock::new(),
            multicast: OnceLock::new(),
            copies: Copies::default(),
            changed: Notify::new(),
            started: Instant::now(),
            inbound: Mutex::default(),
            taken: TaskTracker::new(),
            addresses: Mutex::default(),
            port: Mutex::default(),
        });
        let lan = Self { inner, tasks: Mutex::default() };
        lan.look_around();
        Ok(lan)
    }

    fn look_around(&self) {
        let inner = &self.inner;
        let weak = Arc::downgrade(inner);
        let listener: Listener = Arc::new(move |news| upgraded(&weak, |inner| inner.news(news)));
        let watch = inner.registry.watch(inner.local.copy, listener.clone());
        inner.watch.set(watch).unwrap_or_else(|_| unreachable!("it is begun once"));
        inner.listen_to_multicast(listener);
        let keys_watch = inner.clone();
        self.tasks.lock().spawn(async move { keys_watch.keys.watch(KEYS_INTERVAL).await });
        for (cage, addresses) in &inner.config.peers {
            addresses.iter().for_each(|address| self.add_peer(cage, address));
        }
    }

    fn add_peer(&self, cage: &str, address: &PeerAddress) {
        self.tasks.lock().spawn(self.inner.clone().keep_peer(cage.into(), address.clone()));
    }

    /// Keeps connections to every copy of `cages` over which these can call `service`; ends when the drain is complete.
    pub async fn serve_in_reverse(&self, cages: &[String], service: Arc<dyn Service>, drain: &Drain) {
        let mut serving = JoinSet::new();
        let mut known: Vec<CopyId> = Vec::new();
        loop {
            let changed = self.inner.changed.notified();
            for cage in cages {
                for copy in
                    self.inner.copies.get(cage).map(|known| known.copies).iter().flat_map(|copies| copies.iter())
                {
                    if !known.contains(&copy.id) {
                        known.push(copy.id);
                        let inner = self.inner.clone();
                        serving.spawn(inner.serve_copy_in_reverse(copy.clone(), service.clone(), drain.clone()));
                    }
                }
            }
            tokio::select! {
                () = changed => {}
                Some(ended) = serving.join_next() => known.retain(|copy| ended.as_ref().ok() != Some(copy)),
                () = drain.stopping() => break,
            }
        }
        while serving.join_next().await.is_some() {}
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
        *inner.port.lock() = listening.tcp_address().map(|address| address.port());
        listening.tcp_address().into_iter().for_each(|address| inner.announce(address));
        listening.accept(inner, &service, &drain).await;
        // The socket's file is gone by now: nobody finds this copy any more.
        inner.addresses.lock().clear();
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
        let _ = tokio::time::timeout(GREETING_PATIENCE, inner.taken.wait()).await;
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
            Some(copy) => self.inner.call_copy(call, &known, copy).await,
        }
    }

    fn copies(&self, cage: &str) -> Vec<String> {
        let known = self.inner.copies.get(cage);
        known.iter().flat_map(|known| known.copies.iter()).map(|copy| copy.id.to_string()).collect()
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

impl Known {
    /// A place among the calls to this cage, so that one that hangs cannot take all of the caller's.
    fn enter(&self, cage: &str, most: usize) -> Result<Entered, DispatchError> {
        if self.in_flight.fetch_add(1, Ordering::Relaxed) < most {
            return Ok(Entered(self.in_flight.clone()));
        }
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        Err(DispatchError::Overloaded(format!("{most} calls to cage {cage} have no answer yet")))
    }
}

struct Entered(Arc<AtomicUsize>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Calls.
impl Inner {
    /// The copies of a cage; a cage not known yet is looked for.
    async fn find(&self, cage: &str, deadline: Deadline) -> Result<Known, DispatchError> {
        if let Some(known) = self.copies.get(cage) {
            return Ok(known);
        }
        self.scan();
        let looking = self.multicast.get().is_some() || self.config.peers.contains_key(cage);
        let until = deadline.instant().min(self.started + DISCOVERY_PATIENCE);
        loop {
            let changed = self.changed.notified();
            if let Some(known) = self.copies.get(cage) {
                return Ok(known);
            }
            if !looking || tokio::time::timeout_at(until, changed).await.is_err() {
                return Err(self.no_such_cage(cage));
            }
        }
    }

    fn no_such_cage(&self, cage: &str) -> DispatchError {
        let known = self.copies.cages();
        let hint = nearest(cage, known.iter().map(|cage| &**cage));
        let hint = hint.map(|hint| format!("; did you mean `{hint}`?")).unwrap_or_default();
        DispatchError::NoSuchCage(format!(
            "no running copy of cage {cage} is known in flock {}{hint}",
            self.local.flock
        ))
    }

    /// Has one copy after the other try, as long as the call surely has not run, or may run twice.
    async fn call(self: &Arc<Self>, call: Call, known: Known) -> Result<Payload, DispatchError> {
        let deadline = call.context.deadline;
        let mut tried: Vec<CopyId> = Vec::new();
        let mut known = Some(known);
        let mut last = None;
        while tried.len() < self.config.attempts_max
            && let Some(copy) = known.as_ref().and_then(|known| known.choose(&tried, self.config.near_first))
        {
            tried.push(copy.id);
            let others = known.as_ref().is_some_and(|known| known.copies.len() > tried.len());
            let until = match call.idempotent && others {
                true => deadline.within(self.config.attempt_timeout),
                false => deadline,
            };
            let error = match self.attempt(&copy, &call, until).await {
                // The callee took it and did nothing with it; another copy may have room.
                Ok(Err(error @ (DispatchError::Overloaded(_) | DispatchError::Draining))) => error,
                Ok(result) => return result,
                Err(Failure::NotRun(text)) => {
                    DispatchError::NoSuchCage(format!("no copy of cage {} can be reached: {text}", call.cage))
                }
                Err(Failure::Lost(text)) => {
                    let error =
                        DispatchError::Lost(format!("{}.{} of cage {}: {text}", call.module, call.function, call.cage));
                    if !call.idempotent {
                        return Err(error);
                    }
                    error
                }
                Err(Failure::Late) if deadline.passed() => return Err(late(&call)),
                Err(Failure::Late) => DispatchError::Lost(format!("cage {} gave no answer in time", call.cage)),
            };
            if deadline.passed() {
                return Err(late(&call));
            }
            // Once it may have run somewhere, no later attempt can say that it surely did not.
            last = last.filter(|last| matches!(last, DispatchError::Lost(_))).or(Some(error));
            // A copy may have come since.
            known = self.copies.get(&call.cage);
        }
        Err(last.unwrap_or_else(|| self.no_such_cage(&call.cage)))
    }

    async fn call_copy(self: &Arc<Self>, call: Call, known: &Known, name: &str) -> Result<Payload, DispatchError> {
        let copy = known.copies.iter().find(|copy| copy.id.to_string() == name);
        let Some(copy) = copy else {
            return Err(DispatchError::NoSuchCage(format!("no copy {name} of cage {} is known", call.cage)));
        };
        match self.attempt(copy, &call, call.context.deadline).await {
            Ok(result) => result,
            Err(Failure::NotRun(text)) => {
                Err(DispatchError::NoSuchCage(format!("copy {name} cannot be reached: {text}")))
            }
            Err(Failure::Lost(text)) => Err(DispatchError::Lost(text)),
            Err(Failure::Late) => Err(late(&call)),
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        copy: &Arc<Copy>,
        call: &Call,
        until: Deadline,
    ) -> Result<Result<Payload, DispatchError>, Failure> {
        let _in_flight = copy.gauge.begin();
        let link = match tokio::time::timeout_at(until.instant(), self.link(copy)).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => {
                copy.gauge.failed();
                self.copies.drop_if_lost(copy);
                return Err(Failure::NotRun(error.to_string()));
            }
            Err(_) => {
                copy.gauge.failed();
                return Err(Failure::NotRun("no connection in time".into()));
            }
        };
        let message = match envelope::encode_call(call) {
            Ok(message) => message,
            Err(error) => return Ok(Err(error)),
        };
        let begun = Instant::now();
        match link.call(message, until).await {
            Ok(answer) => {
                copy.gauge.answered(begun.elapsed());
                envelope::decode_answer(answer).map_err(|error| Failure::Lost(error.to_string()))
            }
            Err(LinkError::Refused(Refusal::TooLarge, text)) => Ok(Err(DispatchError::BadRequest(text))),
            Err(LinkError::Refused(Refusal::TooMany, text)) => Ok(Err(DispatchError::Overloaded(text))),
            Err(LinkError::Refused(Refusal::Draining, _)) => Ok(Err(DispatchError::Draining)),
            Err(LinkError::Refused(Refusal::NotServed | Refusal::Cancelled, text)) => Err(Failure::NotRun(text)),
            Err(LinkError::NotHandedOver(text)) => Err(Failure::NotRun(text)),
            Err(LinkError::Lost(closed)) => {
                copy.gauge.failed();
                copy.failed(closed.to_string());
                Err(Failure::Lost(closed.to_string()))
            }
            Err(LinkError::TimedOut) => {
                // The function may be slow, and the copy well all the same.
                match link.is_suspect() {
                    true => copy.gauge.failed(),
                    false => copy.gauge.slow(begun.elapsed()),
                }
                Err(Failure::Late)
            }
        }
    }
}

fn late(call: &Call) -> DispatchError {
    DispatchError::DeadlineExceeded(format!("{}.{} of cage {} gave no answer", call.module, call.function, call.cage))
}

/// Members.
impl Inner {
    /// Multicast is for those who could be called by, or could call, another machine: those with keys.
    fn listen_to_multicast(&self, listener: Listener) {
        if !self.config.multicast || self.keys.current().is_none() {
            return;
        }
        let settings =
            MulticastSettings { port: self.config.multicast_port, loopback_only: self.config.multicast_loopback };
        match Multicast::start(settings, self.local.clone(), listener) {
            Ok(multicast) => drop(self.multicast.set(multicast)),
            Err(error) => self.events.refused("multicast", &error_chain(&error)),
        }
    }

    /// Tells the network where this copy listens.
    fn announce(&self, listening: SocketAddr) {
        let Some(multicast) = self.multicast.get() else { return };
        match multicast.announce(listening) {
            // Asked for by `listen`; nobody else could reach it.
            Ok(()) | Err(MulticastError::LoopbackAddress { .. }) => {}
            Err(error) => self.events.refused("multicast", &error_chain(&error)),
        }
    }

    /// A connection to a copy has ended: was that its end?
    fn left(&self, copy: &Arc<Copy>) {
        for (address, found) in copy.addresses() {
            match (&address, found) {
                (Address::Unix(path), _) if !matches!(unix_socket::is_listening(path), Ok(true)) => {
                    self.registry.remove_stale(path);
                    self.copies.gone(&copy.cage, copy.id, found, Some(&address));
                }
                (_, Found::Told) => self.copies.gone(&copy.cage, copy.id, found, Some(&address)),
                (_, Found::Multicast) => {
                    copy.gauge.failed();
                    self.multicast.get().into_iter().for_each(|multicast| multicast.verify(copy.id));
                }
                (_, Found::SameMachine | Found::Peer | Found::Reverse) => {}
            }
        }
        self.copies.drop_if_lost(copy);
    }

    fn news(self: &Arc<Self>, news: News) {
        match news {
            News::Seen(sighting) => self.sighted(&sighting),
            News::Gone { cage, copy, found } => self.copies.gone(&cage, copy, found, None),
        }
    }

    /// A hint: who is there is found out when it is called.
    fn sighted(&self, sighting: &Sighting) {
        if sighting.copy != self.local.copy && self.copies.seen(sighting, self.lanes.count()).is_some() {
            self.changed.notify_waiters();
        }
    }

    /// Looks into the directory of this machine's cages now.
    fn scan(&self) {
        self.watch.get().into_iter().for_each(Watch::scan_now);
    }

    /// Keeps a connection to a configured address: it tells which copy is there, and when it is gone.
    async fn keep_peer(self: Arc<Self>, cage: Arc<str>, peer: PeerAddress) {
        let address = Address::Tcp(peer.to_string());
        loop {
            let (inner, at, name) = (self.clone(), address.clone(), cage.clone());
            let connecting = self.lanes.next().spawn(async move { inner.connect(&at, &name, None).await });
            match connecting.await {
                Ok(Ok((link, hello))) => self.kept(&link, &hello, &cage, &address).await,
                Ok(Err(error)) if error.own => return,
                Ok(Err(error)) => self.events.unreachable(&cage, &peer.to_string(), &error.to_string()),
                // The lanes have ended.
                Err(_) => return,
            }
            tokio::time::sleep(PEER_RETRY + PEER_RETRY.mul_f64(fastrand::f64())).await;
        }
    }

    async fn kept(&self, link: &Link, hello: &Hello, cage: &Arc<str>, address: &Address) {
        let id = CopyId(hello.copy);
        let way = (address.clone(), Found::Peer);
        let added = self.copies.update(cage, id, self.lanes.count(), |copy| {
            copy.greeted(&hello.node, &hello.version);
            copy.add(&hello.node, Some(way));
        });
        let Some((copy, _)) = added else { return };
        self.changed.notify_waiters();
        self.events.connected(cage, &address.to_string(), &id.to_string());
        self.tell(link);
        let closed = link.closed().await;
        copy.failed(closed.to_string());
        self.copies.gone(cage, id, Found::Peer, Some(address));
    }

    /// Keeps a connection to a copy over which it can call `service`. Returns the copy when that leads nowhere any more.
    async fn serve_copy_in_reverse(
        self: Arc<Self>,
        copy: Arc<Copy>,
        service: Arc<dyn Service>,
        drain: Drain,
    ) -> CopyId {
        for (address, _) in copy.addresses() {
            let (inner, cage, service) = (self.clone(), copy.cage.clone(), service.clone());
            let at = address.clone();
            let connecting = self.lanes.next().spawn(async move { inner.connect(&at, &cage, Some(service)).await });
            match connecting.await {
                Ok(Ok((link, hello))) => {
                    copy.greeted(&hello.node, &hello.version);
                    self.events.connected(&copy.cage, &address.to_string(), &copy.id.to_string());
                    tokio::select! {
                        _ = link.closed() => {}
                        () = drain.stopping() => {
                            link.close();
                            link.closed().await;
                        }
                    }
                    return copy.id;
                }
                Ok(Err(error)) => self.events.unreachable(&copy.cage, &address.to_string(), &error.to_string()),
                Err(_) => return copy.id,
            }
        }
        tokio::time::sleep(PEER_RETRY).await;
        self.copies.drop_if_lost(&copy);
        self.changed.notify_waiters();
        copy.id
    }

    /// Tells a peer of the members that it could reach over the network.
    fn tell(&self, link: &Link) {
        let mut members = Vec::new();
        for copy in self.copies.all() {
            let firsthand = |way: &&(Address, Found)| !way.0.is_here();
            if let Some((address, found)) = copy.addresses().iter().find(firsthand) {
                let (cage, node) = (copy.cage.to_string(), String::new());
                members.push(Sighting { cage, copy: copy.id, node, address: address.clone(), found: *found });
            }
        }
        if !members.is_empty() {
            link.tell(&told::encode(&members));
        }
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
            listen_port: *self.port.lock(),
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
        if !operator && !crate::config::is_name(&hello.cage) {
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
        Arc::new(Self { inner: Arc::downgrade(inner), cage, peer, service, body_bytes_max })
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
        envelope::encode_answer(self.serve(call).await, self.body_bytes_max)
    }

    fn told(&self, members: &[u8]) {
        upgraded(&self.inner, |inner| inner.was_told(members));
    }
}
