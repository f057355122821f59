//! Makes the connections to copies: one for each copy and lane, when the first call needs it, or in the background to
//! probe the copy. A connection lives on the lane whose calls it carries, so that a call and its answer wake no other
//! thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::LanInner;
use super::copy::RemoteCopy;
use super::gauge::Gauge;
use super::links::LanHandler;
use crate::discovery::{CopyAddress, FoundBy};
use crate::fabric::{CallHandler, CopyId};
use crate::keys::{self, CageKeys};
use crate::link::frame::Hello;
use crate::link::{self, Link};
use wasmcage_core::lanes::Lanes;
use wasmcage_core::telemetry::error_chain;
use wasmcage_core::unix_socket;

/// While a connection to a copy takes longer than this to make, the copy gets no calls that others can get.
pub(super) const SLOW_TO_CONNECT: Duration = Duration::from_millis(250);

/// A lane's connection to a copy.
#[derive(Default)]
pub(super) struct LaneConnection {
    link: ArcSwapOption<Link>,
    /// Result of the running attempt to connect, shared by all calls that wait for it. Its sender is dropped at the end.
    dial: Mutex<Option<watch::Receiver<Option<DialResult>>>>,
    /// When that attempt began, in milliseconds of the copy's gauge; 0: none is running.
    dial_began_ms: AtomicU64,
}

type DialResult = Result<Arc<Link>, DialError>;

/// A connection on which both sides have greeted.
pub(super) struct NewConnection {
    pub(super) link: Link,
    pub(super) hello: Hello,
    /// Address of the peer; none on this machine.
    pub(super) peer: Option<SocketAddr>,
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct DialError {
    text: String,
    /// The copy is surely not at that address any more.
    pub(super) vacant: bool,
    /// This copy itself listens at that address.
    pub(super) own: bool,
}

impl DialError {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), vacant: false, own: false }
    }

    fn vacant(text: impl Into<String>) -> Self {
        Self { vacant: true, ..Self::new(text) }
    }

    fn io(address: &CopyAddress, error: &io::Error) -> Self {
        let vacant = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
        Self { vacant, ..Self::new(format!("cannot connect to {address}: {error}")) }
    }
}

impl NewConnection {
    /// Returns the numeric address of the peer; none on this machine.
    pub(super) fn peer_address(&self) -> Option<CopyAddress> {
        self.peer.map(|peer| CopyAddress::Tcp(peer.to_string()))
    }
}

impl LaneConnection {
    pub(super) fn usable(&self) -> Option<Arc<Link>> {
        self.link.load_full().filter(|link| link.is_usable())
    }

    pub(super) fn is_usable(&self) -> bool {
        self.link.load().as_ref().is_some_and(|link| link.is_usable())
    }

    /// Returns whether the connection is silent, or was closed for its silence and not yet removed.
    pub(super) fn is_suspect(&self) -> bool {
        let link = self.link.load();
        link.as_ref().is_some_and(|link| link.is_suspect() && (link.is_usable() || link.is_closed()))
    }

    /// Removes a connection that has ended, which would count as suspect for ever.
    pub(super) fn forget_closed(&self) {
        let link = self.link.load();
        if link.as_ref().is_some_and(|link| link.is_closed()) {
            // Another connection may have replaced it.
            self.link.compare_and_swap(&link, None);
        }
    }

    /// Returns whether an attempt to connect has been running for longer than `SLOW_TO_CONNECT`.
    pub(super) fn is_slow_to_connect(&self, gauge: &Gauge) -> bool {
        let since = self.dial_began_ms.load(Ordering::Relaxed);
        since > 0 && u128::from(gauge.now_ms().saturating_sub(since)) > SLOW_TO_CONNECT.as_millis()
    }

    /// Replaces the connection. An old one closes when its calls have ended.
    pub(super) fn set(&self, link: Link) {
        if let Some(old) = self.link.swap(Some(Arc::new(link))) {
            old.close();
        }
    }
}

impl Drop for LaneConnection {
    fn drop(&mut self) {
        if let Some(link) = self.link.swap(None) {
            link.close();
        }
    }
}

/// Marks an attempt to make a lane's connection as running until it is dropped.
struct DialGuard(Arc<RemoteCopy>, usize);

impl DialGuard {
    fn begin(copy: &Arc<RemoteCopy>, lane: usize) -> Self {
        copy.connections[lane].dial_began_ms.store(copy.gauge.now_ms().max(1), Ordering::Relaxed);
        Self(copy.clone(), lane)
    }
}

impl Drop for DialGuard {
    fn drop(&mut self) {
        self.0.connections[self.1].dial_began_ms.store(0, Ordering::Relaxed);
    }
}

/// Marks a probe of a copy as running until it is dropped.
struct ProbeGuard(Arc<RemoteCopy>);

impl Drop for ProbeGuard {
    fn drop(&mut self) {
        self.0.gauge.end_probe();
    }
}

impl LanInner {
    /// Returns this lane's connection to a copy, made if there is none.
    pub(super) async fn link(self: &Arc<Self>, copy: &Arc<RemoteCopy>) -> DialResult {
        let lane = Lanes::current() % copy.connections.len();
        if let Some(link) = copy.connections[lane].usable() {
            return Ok(link);
        }
        if let Some(link) = copy.reverse() {
            return Ok(Arc::new(link));
        }
        // On failure, another lane's connection is used.
        let of_another = || copy.connections.iter().find_map(LaneConnection::usable).filter(|link| !link.is_suspect());
        self.connection(copy, lane).await.or_else(|error| of_another().ok_or(error))
    }

    /// Probes a copy in the background: connects to it unless a connection is there, and updates its health.
    pub(super) fn probe(self: &Arc<Self>, copy: Arc<RemoteCopy>) {
        let Ok(permit) = self.probes.clone().try_acquire_owned() else { return };
        if !copy.gauge.begin_probe() {
            return;
        }
        let (inner, guard, lane) = (self.clone(), ProbeGuard(copy.clone()), Lanes::current() % copy.connections.len());
        let probe = async move {
            let connected = copy.is_responsive() || inner.connection(&copy, lane).await.is_ok();
            if connected && copy.is_responsive() {
                copy.gauge.set_good();
            } else {
                copy.gauge.fail();
                inner.copies.drop_if_unreachable(&copy);
            }
            drop((guard, permit));
        };
        self.lanes.handle(lane).spawn(self.tasks.run_once("rpc: probe of a copy", probe));
    }

    /// Makes the connection of a lane, or waits for the attempt that is running.
    async fn connection(self: &Arc<Self>, copy: &Arc<RemoteCopy>, lane: usize) -> DialResult {
        let mut outcome = {
            let mut dial = copy.connections[lane].dial.lock();
            if let Some(link) = copy.connections[lane].usable() {
                return Ok(link);
            }
            // A dropped sender shows that the attempt has ended.
            match dial.as_ref().filter(|outcome| outcome.has_changed().is_ok()) {
                Some(outcome) => outcome.clone(),
                None => dial.insert(self.begin_dial(copy, lane)).clone(),
            }
        };
        let dialled = outcome.wait_for(Option::is_some).await.ok().and_then(|dialled| dialled.clone());
        dialled.unwrap_or_else(|| Err(DialError::new("this cage is shutting down")))
    }

    /// Starts an attempt to connect in a task of its own, so that a caller that gives up does not cancel it for others.
    fn begin_dial(self: &Arc<Self>, copy: &Arc<RemoteCopy>, lane: usize) -> watch::Receiver<Option<DialResult>> {
        let (sender, outcome) = watch::channel(None);
        let (inner, copy, guard) = (self.clone(), copy.clone(), DialGuard::begin(copy, lane));
        let dial = async move {
            let result = inner.dial(&copy, lane).await;
            if let Err(error) = &result {
                copy.failed(error.to_string());
            }
            drop(guard);
            sender.send_replace(Some(result));
        };
        self.lanes.handle(lane).spawn(self.tasks.run_once("rpc: a connection that is made", dial));
        outcome
    }

    /// Tries the addresses of a copy, the nearest first. Addresses where the copy is not are forgotten.
    async fn dial(self: &Arc<Self>, copy: &Arc<RemoteCopy>, lane: usize) -> DialResult {
        let mut last = DialError::vacant("no address is known");
        for (address, found_by) in copy.addresses() {
            match self.connect(&address, &copy.cage, None).await {
                Ok(connection) => {
                    let id = CopyId(connection.hello.copy);
                    let link = self.adopt(connection, copy, &address, lane);
                    if id == copy.id {
                        return Ok(link);
                    }
                    self.copies.mark_absent(copy, &address, Instant::now());
                    last = DialError::vacant(format!("{address} belongs to another copy by now"));
                }
                Err(error) => {
                    if error.vacant || error.own {
                        self.address_is_vacant(copy, &address, found_by, error.own);
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Stores a connection with the copy that greeted on it: the wanted one, or the one that is at that address now,
    /// which is added to the table.
    fn adopt(
        self: &Arc<Self>,
        connection: NewConnection,
        wanted: &Arc<RemoteCopy>,
        address: &CopyAddress,
        lane: usize,
    ) -> Arc<Link> {
        let (id, peer_address) = (CopyId(connection.hello.copy), connection.peer_address());
        let NewConnection { link, hello, peer } = connection;
        let mut met = (id == wanted.id).then(|| wanted.clone());
        if !address.is_here() {
            for address in [Some(address), peer_address.as_ref()].into_iter().flatten() {
                met = self
                    .copies
                    .record_connection(&wanted.cage, id, self.lanes.count(), address, FoundBy::Connection)
                    .or(met);
            }
        }
        let Some(copy) = met else {
            // The table is full.
            link.close();
            return Arc::new(link);
        };
        copy.greeted(&hello.node, &hello.version);
        if let Some(known) = copy.connections[lane].usable() {
            link.close();
            return known;
        }
        copy.connections[lane].set(link.clone());
        self.add_gossip_peer(&link, copy.id, peer.map(|peer| peer.ip()));
        self.watch_end(&link, &copy);
        self.changed.notify_waiters();
        Arc::new(link)
    }

    /// Handles the end of the connection in a task that keeps neither the connection nor the copy alive.
    fn watch_end(self: &Arc<Self>, link: &Link, copy: &Arc<RemoteCopy>) {
        let (ended, inner, copy) = (link.ended(), Arc::downgrade(self), Arc::downgrade(copy));
        let looking = async move {
            let closed = ended.await;
            if let (Some(inner), Some(copy)) = (inner.upgrade(), copy.upgrade()) {
                inner.connection_ended(&copy, &closed);
            }
        };
        tokio::spawn(self.tasks.run_once("rpc: end of a connection", looking));
    }

    /// Handles an address where the copy is not. Configured addresses, and those of copies that connected, stay: other
    /// code keeps them up to date.
    fn address_is_vacant(&self, copy: &Arc<RemoteCopy>, address: &CopyAddress, found_by: FoundBy, own: bool) {
        match (address, found_by) {
            (CopyAddress::Unix(path), _) => {
                self.registry.remove_stale(path);
                self.copies.remove_addresses(&copy.cage, copy.id, found_by, Some(address));
            }
            (CopyAddress::Tcp(_), FoundBy::Multicast) if !own => {
                self.multicast.get().into_iter().for_each(|multicast| multicast.verify(copy.id));
            }
            (CopyAddress::Tcp(_), _) => self.copies.mark_absent(copy, address, Instant::now()),
        }
    }

    /// Makes a connection that runs on the current runtime. With a handler, the peer may call this cage over it.
    pub(super) async fn connect(
        self: &Arc<Self>,
        address: &CopyAddress,
        cage: &str,
        handler: Option<Arc<dyn CallHandler>>,
    ) -> Result<NewConnection, DialError> {
        let connecting = async {
            match address {
                CopyAddress::Unix(path) => {
                    let stream = unix_socket::connect(path).await.map_err(|error| DialError::io(address, &error))?;
                    check_same_user(&stream).map_err(|error| DialError::io(address, &error))?;
                    let (link, hello) = self.greet(stream, address, cage, handler).await?;
                    Ok(NewConnection { link, hello, peer: None })
                }
                CopyAddress::Tcp(host) => {
                    let keys = self.keys.current().ok_or_else(|| {
                        DialError::new(format!(
                            "{address} is on another machine, and this cage has no keys: wasmcage keys issue {}",
                            self.local.cage
                        ))
                    })?;
                    let stream = TcpStream::connect(host).await.map_err(|error| DialError::io(address, &error))?;
                    let peer = stream.peer_addr().ok();
                    let stream = start_tls(&keys, stream, cage, address).await?;
                    let (link, hello) = self.greet(stream, address, cage, handler).await?;
                    Ok(NewConnection { link, hello, peer })
                }
            }
        };
        let timeout = self.config.connect_timeout;
        let late = || DialError::new(format!("no connection to {address} within {} ms", timeout.as_millis()));
        tokio::time::timeout(timeout, connecting).await.unwrap_or_else(|_| Err(late()))
    }

    async fn greet<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: &Arc<Self>,
        mut stream: S,
        address: &CopyAddress,
        cage: &str,
        handler: Option<Arc<dyn CallHandler>>,
    ) -> Result<(Link, Hello), DialError> {
        let greeted = link::greet(&mut stream, &self.hello(handler.is_some()), self.config.connect_timeout).await;
        let (hello, rest) =
            greeted.map_err(|error| DialError::new(format!("no greeting from {address}: {}", error_chain(&error))))?;
        if let Some(mismatch) = self.greeting_mismatch(&hello, Some(cage)) {
            link::say_bye(&mut stream, &mismatch).await;
            let own = hello.copy == self.local.copy.0;
            return Err(DialError { own, ..DialError::vacant(format!("{address}: {mismatch}")) });
        }
        let serves = handler.is_some();
        let link_handler = LanHandler::new(self, cage.into(), handler);
        let (link, driver) =
            Link::new(stream, rest, self.session_limits(), serves, link_handler, Some(self.lanes.clone()));
        tokio::spawn(self.tasks.run_once("rpc: a connection", driver));
        Ok((link, hello))
    }
}

/// Checks that the other side of a Unix socket runs as the same user, or as root.
///
/// # Errors
/// `PermissionDenied` when it runs as another user.
pub(super) fn check_same_user(stream: &UnixStream) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    if user == 0 || user == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the other side runs as another user, {user}")))
}

async fn start_tls(
    keys: &CageKeys,
    stream: TcpStream,
    cage: &str,
    address: &CopyAddress,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static + use<>, DialError> {
    stream.set_nodelay(true).map_err(|error| DialError::io(address, &error))?;
    let peer = format!("cage {cage} at {address}");
    let connector = TlsConnector::from(keys.client());
    let stream = connector.connect(keys.server_name(), stream).await;
    let stream = stream.map_err(|error| DialError::new(keys::handshake_reason(&error, &peer)))?;
    let certificates: Option<&[CertificateDer<'_>]> = stream.get_ref().1.peer_certificates();
    // Another cage is at that address.
    keys.verify_peer(certificates, Some(cage))
        .map_err(|error| DialError::vacant(format!("{address}: {}", error_chain(&error))))?;
    Ok(stream)
}
