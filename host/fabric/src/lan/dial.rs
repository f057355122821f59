//! Connections to copies: one for each copy and lane, made when the first call needs it, or in the background to find out
//! whether the copy is well. A connection lives on the lane whose calls it carries, so that a call and its answer wake no
//! other thread.

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

use super::copy::Copy;
use super::gauge::Gauge;
use super::{Answerer, Inner};
use crate::discovery::{Address, Found};
use crate::fabric::{CopyId, Service};
use crate::keys::{self, Keys};
use crate::link::frame::Hello;
use crate::link::{self, Link};
use wasmcage_core::lanes::Lanes;
use wasmcage_core::telemetry::error_chain;
use wasmcage_core::unix_socket;

/// A copy that takes longer to connect to gets no more calls meanwhile, as long as there are others.
pub(super) const SLOW_TO_CONNECT: Duration = Duration::from_millis(250);

/// A lane's connection to a copy.
#[derive(Default)]
pub(super) struct Place {
    link: ArcSwapOption<Link>,
    /// The attempt on its way: one at a time, whose outcome all share that wait for it. Nobody is at its other end once it
    /// has ended.
    dialling: Mutex<Option<watch::Receiver<Option<Dialled>>>>,
    /// When that began, in milliseconds of the copy's gauge; 0: there is none.
    dialling_since: AtomicU64,
}

/// What an attempt to connect brought.
type Dialled = Result<Arc<Link>, DialError>;

/// A connection that was greeted.
pub(super) struct Connection {
    pub(super) link: Link,
    pub(super) hello: Hello,
    /// None on this machine.
    pub(super) peer: Option<SocketAddr>,
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct DialError {
    text: String,
    /// The copy is surely not there any more.
    pub(super) vacant: bool,
    /// It is this copy itself.
    pub(super) own: bool,
}

impl DialError {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), vacant: false, own: false }
    }

    fn vacant(text: impl Into<String>) -> Self {
        Self { vacant: true, ..Self::new(text) }
    }

    fn io(address: &Address, error: &io::Error) -> Self {
        let vacant = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
        Self { vacant, ..Self::new(format!("cannot connect to {address}: {error}")) }
    }
}

impl Connection {
    /// The address it was made to, without names.
    pub(super) fn peer_address(&self) -> Option<Address> {
        self.peer.map(|peer| Address::Tcp(peer.to_string()))
    }
}

impl Place {
    pub(super) fn usable(&self) -> Option<Arc<Link>> {
        self.link.load_full().filter(|link| link.is_usable())
    }

    pub(super) fn is_usable(&self) -> bool {
        self.link.load().as_ref().is_some_and(|link| link.is_usable())
    }

    /// Also of a connection that was closed for its silence, until its end has been noted.
    pub(super) fn is_suspect(&self) -> bool {
        let link = self.link.load();
        link.as_ref().is_some_and(|link| link.is_suspect() && (link.is_usable() || link.is_closed()))
    }

    /// A connection that has ended tells nothing any more.
    pub(super) fn forget_closed(&self) {
        let link = self.link.load();
        if link.as_ref().is_some_and(|link| link.is_closed()) {
            // Another may be there by now.
            self.link.compare_and_swap(&link, None);
        }
    }

    /// A connection is being made, and takes long.
    pub(super) fn is_slow_to_connect(&self, gauge: &Gauge) -> bool {
        let since = self.dialling_since.load(Ordering::Relaxed);
        since > 0 && u128::from(gauge.now_ms().saturating_sub(since)) > SLOW_TO_CONNECT.as_millis()
    }

    /// The old one, if any, ends when its calls have.
    pub(super) fn set(&self, link: Link) {
        if let Some(old) = self.link.swap(Some(Arc::new(link))) {
            old.close();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(link) = self.link.swap(None) {
            link.close();
        }
    }
}

/// An attempt at a lane's connection, as long as it lives.
struct Dialling(Arc<Copy>, usize);

impl Dialling {
    fn begin(copy: &Arc<Copy>, lane: usize) -> Self {
        copy.places[lane].dialling_since.store(copy.gauge.now_ms().max(1), Ordering::Relaxed);
        Self(copy.clone(), lane)
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.0.places[self.1].dialling_since.store(0, Ordering::Relaxed);
    }
}

/// A proof on its way, as long as it lives.
struct Proving(Arc<Copy>);

impl Drop for Proving {
    fn drop(&mut self) {
        self.0.gauge.end_proof();
    }
}

impl Inner {
    /// The connection of this lane to a copy, made if there is none.
    pub(super) async fn link(self: &Arc<Self>, copy: &Arc<Copy>) -> Dialled {
        let lane = Lanes::current() % copy.places.len();
        if let Some(link) = copy.places[lane].usable() {
            return Ok(link);
        }
        if let Some(link) = copy.reverse() {
            return Ok(Arc::new(link));
        }
        // One of another lane is better than none.
        let of_another = || copy.places.iter().find_map(Place::usable).filter(|link| !link.is_suspect());
        self.connection(copy, lane).await.or_else(|error| of_another().ok_or(error))
    }

    /// Finds out in the background whether a copy is well.
    pub(super) fn prove(self: &Arc<Self>, copy: Arc<Copy>) {
        let Ok(place) = self.proofs.clone().try_acquire_owned() else { return };
        if !copy.gauge.begin_proof() {
            return;
        }
        let (inner, proving, lane) = (self.clone(), Proving(copy.clone()), Lanes::current() % copy.places.len());
        let proof = async move {
            let connected = copy.is_heard() || inner.connection(&copy, lane).await.is_ok();
            if connected && copy.is_heard() {
                copy.gauge.prove();
            } else {
                copy.gauge.fail();
                inner.copies.drop_if_lost(&copy);
            }
            drop((proving, place));
        };
        self.lanes.handle(lane).spawn(self.tasks.run_once("rpc: proof of a copy", proof));
    }

    /// Makes the connection of a lane, or waits for the attempt that is on its way.
    async fn connection(self: &Arc<Self>, copy: &Arc<Copy>, lane: usize) -> Dialled {
        let mut outcome = {
            let mut dialling = copy.places[lane].dialling.lock();
            if let Some(link) = copy.places[lane].usable() {
                return Ok(link);
            }
            // One whose task ended without an outcome is over.
            match dialling.as_ref().filter(|outcome| outcome.has_changed().is_ok()) {
                Some(outcome) => outcome.clone(),
                None => dialling.insert(self.begin_dial(copy, lane)).clone(),
            }
        };
        let dialled = outcome.wait_for(Option::is_some).await.ok().and_then(|dialled| dialled.clone());
        dialled.unwrap_or_else(|| Err(DialError::new("this cage is shutting down")))
    }

    /// In a task of its own: a caller that gives up does not undo what others wait for.
    fn begin_dial(self: &Arc<Self>, copy: &Arc<Copy>, lane: usize) -> watch::Receiver<Option<Dialled>> {
        let (sender, outcome) = watch::channel(None);
        let (inner, copy, dialling) = (self.clone(), copy.clone(), Dialling::begin(copy, lane));
        let dial = async move {
            let dialled = inner.dial(&copy, lane).await;
            if let Err(error) = &dialled {
                copy.failed(error.to_string());
            }
            drop(dialling);
            sender.send_replace(Some(dialled));
        };
        self.lanes.handle(lane).spawn(self.tasks.run_once("rpc: a connection that is made", dial));
        outcome
    }

    /// Tries the ways to a copy, the nearest first. Ways that lead nowhere are forgotten.
    async fn dial(self: &Arc<Self>, copy: &Arc<Copy>, lane: usize) -> Dialled {
        let mut last = DialError::vacant("no address is known");
        for (address, found) in copy.addresses() {
            match self.connect(&address, &copy.cage, None).await {
                Ok(connection) => {
                    let id = CopyId(connection.hello.copy);
                    let link = self.adopt(connection, copy, &address, lane);
                    if id == copy.id {
                        return Ok(link);
                    }
                    self.copies.bury(copy, &address, Instant::now());
                    last = DialError::vacant(format!("{address} belongs to another copy by now"));
                }
                Err(error) => {
                    if error.vacant || error.own {
                        self.vacant(copy, &address, found, error.own);
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Gives a connection to the copy that greeted on it: the one that was looked for, or one that is there instead, and is
    /// known from now on.
    fn adopt(
        self: &Arc<Self>,
        connection: Connection,
        wanted: &Arc<Copy>,
        address: &Address,
        lane: usize,
    ) -> Arc<Link> {
        let (id, peer_address) = (CopyId(connection.hello.copy), connection.peer_address());
        let Connection { link, hello, peer } = connection;
        let mut met = (id == wanted.id).then(|| wanted.clone());
        if !address.is_here() {
            for address in [Some(address), peer_address.as_ref()].into_iter().flatten() {
                met = self.copies.met(&wanted.cage, id, self.lanes.count(), address, Found::Met).or(met);
            }
        }
        let Some(copy) = met else {
            // There are too many.
            link.close();
            return Arc::new(link);
        };
        copy.greeted(&hello.node, &hello.version);
        if let Some(known) = copy.places[lane].usable() {
            link.close();
            return known;
        }
        copy.places[lane].set(link.clone());
        self.tell(&link, copy.id, peer.map(|peer| peer.ip()));
        self.watch_end(&link, &copy);
        self.changed.notify_waiters();
        Arc::new(link)
    }

    /// Looks after the copy when the connection has ended. Keeps neither of them, so that both can go.
    fn watch_end(self: &Arc<Self>, link: &Link, copy: &Arc<Copy>) {
        let (ended, inner, copy) = (link.ended(), Arc::downgrade(self), Arc::downgrade(copy));
        let looking = async move {
            let closed = ended.await;
            if let (Some(inner), Some(copy)) = (inner.upgrade(), copy.upgrade()) {
                inner.left(&copy, &closed);
            }
        };
        tokio::spawn(self.tasks.run_once("rpc: end of a connection", looking));
    }

    /// The copy does not answer at an address. What is configured, and what a copy that connected has named, is looked after
    /// by others.
    fn vacant(&self, copy: &Arc<Copy>, address: &Address, found: Found, own: bool) {
        match (address, found) {
            (Address::Unix(path), _) => {
                self.registry.remove_stale(path);
                self.copies.gone(&copy.cage, copy.id, found, Some(address));
            }
            (Address::Tcp(_), Found::Multicast) if !own => {
                self.multicast.get().into_iter().for_each(|multicast| multicast.verify(copy.id));
            }
            (Address::Tcp(_), _) => self.copies.bury(copy, address, Instant::now()),
        }
    }

    /// Makes a connection, on the runtime it is called on. With a service, the peer may call this cage over it.
    pub(super) async fn connect(
        self: &Arc<Self>,
        address: &Address,
        cage: &str,
        service: Option<Arc<dyn Service>>,
    ) -> Result<Connection, DialError> {
        let connecting = async {
            match address {
                Address::Unix(path) => {
                    let stream = unix_socket::connect(path).await.map_err(|error| DialError::io(address, &error))?;
                    own_user(&stream).map_err(|error| DialError::io(address, &error))?;
                    let (link, hello) = self.greet(stream, address, cage, service).await?;
                    Ok(Connection { link, hello, peer: None })
                }
                Address::Tcp(host) => {
                    let keys = self.keys.current().ok_or_else(|| {
                        DialError::new(format!(
                            "{address} is on another machine, and this cage has no keys: wasmcage keys issue {}",
                            self.local.cage
                        ))
                    })?;
                    let stream = TcpStream::connect(host).await.map_err(|error| DialError::io(address, &error))?;
                    let peer = stream.peer_addr().ok();
                    let stream = secure(&keys, stream, cage, address).await?;
                    let (link, hello) = self.greet(stream, address, cage, service).await?;
                    Ok(Connection { link, hello, peer })
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
        address: &Address,
        cage: &str,
        service: Option<Arc<dyn Service>>,
    ) -> Result<(Link, Hello), DialError> {
        let greeted = link::greet(&mut stream, &self.hello(service.is_some()), self.config.connect_timeout).await;
        let (hello, rest) =
            greeted.map_err(|error| DialError::new(format!("no greeting from {address}: {}", error_chain(&error))))?;
        if let Some(mismatch) = self.mismatch(&hello, Some(cage)) {
            link::say_bye(&mut stream, &mismatch).await;
            let own = hello.copy == self.local.copy.0;
            return Err(DialError { own, ..DialError::vacant(format!("{address}: {mismatch}")) });
        }
        let serves = service.is_some();
        let answerer = Answerer::new(self, cage.into(), service);
        let (link, life) = Link::new(stream, rest, self.session_limits(), serves, answerer, Some(self.lanes.clone()));
        tokio::spawn(self.tasks.run_once("rpc: a connection", life));
        Ok((link, hello))
    }
}

/// The other side runs as the same user, or as root.
pub(super) fn own_user(stream: &UnixStream) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    if user == 0 || user == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the other side runs as another user, {user}")))
}

async fn secure(
    keys: &Keys,
    stream: TcpStream,
    cage: &str,
    address: &Address,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static + use<>, DialError> {
    stream.set_nodelay(true).map_err(|error| DialError::io(address, &error))?;
    let peer = format!("cage {cage} at {address}");
    let connector = TlsConnector::from(keys.client());
    let stream = connector.connect(keys.server_name(), stream).await;
    let stream = stream.map_err(|error| DialError::new(keys::handshake_reason(&error, &peer)))?;
    let certificates: Option<&[CertificateDer<'_>]> = stream.get_ref().1.peer_certificates();
    // Somebody else is there.
    keys.verify_peer(certificates, Some(cage))
        .map_err(|error| DialError::vacant(format!("{address}: {}", error_chain(&error))))?;
    Ok(stream)
}
