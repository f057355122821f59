//! Accepts connections on the cage's Unix socket, and on its TCP port when it has one. The two have separate limits, so
//! that neither can keep the other from being served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::dial::check_same_user;
use super::handshakes::Handshakes;
use super::links::LanHandler;
use super::{LanInner, gossip_format};
use crate::discovery::CopyAddress;
use crate::fabric::{CallHandler, CopyId};
use crate::keyed_limit::{KeyedLimit, KeyedPermit};
use crate::keys;
use crate::link::frame::Hello;
use crate::link::{self, Link};
use wasmcage_core::call::COMMAND_LINE;
use wasmcage_core::drain::Drain;
use wasmcage_core::telemetry::error_chain;
use wasmcage_core::unix_socket::NamedListener;
use wasmcage_protocol::InterfaceError;

/// Time for a new connection to complete the TLS handshake and the greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept: this machine is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Interval at which the socket's file is checked and restored.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// One cage may have at most this fraction (one half) of the connections from the network.
const CONNECTIONS_SHARE: usize = 2;

/// The sockets at which a cage listens.
pub(super) struct Listeners {
    unix: NamedListener,
    tcp: Option<TcpListener>,
}

/// Limits for connections from the network.
struct NetworkLimits {
    handshakes: Arc<Handshakes>,
    connections: Arc<Semaphore>,
    /// Connections of one cage.
    of_cage: Arc<KeyedLimit<Arc<str>>>,
}

/// Held by a connection from the network as long as it lives.
type ConnectionPermits = (OwnedSemaphorePermit, KeyedPermit<Arc<str>>);

/// Where a connection came from.
#[derive(Clone, Copy)]
enum ConnectionOrigin {
    ThisMachine,
    Network(SocketAddr),
}

impl ConnectionOrigin {
    /// Returns the name for the log: without the port, which is another one for each connection.
    fn host(self) -> String {
        match self {
            Self::ThisMachine => "this machine".to_owned(),
            Self::Network(address) => address.ip().to_string(),
        }
    }
}

impl Listeners {
    /// Opens the sockets.
    ///
    /// # Errors
    /// A socket cannot be bound, or a TCP port is configured and the cage has no keys.
    pub(super) async fn bind(inner: &LanInner) -> Result<Self, InterfaceError> {
        let failed =
            |address: String, source| InterfaceError::Listen { interface: inner.interface.clone(), address, source };
        let tcp = match &inner.config.listen {
            None => None,
            Some(address) => {
                if inner.keys.current().is_none() {
                    return Err(InterfaceError::Setup {
                        interface: inner.interface.clone(),
                        text: format!(
                            "listen = {address:?} needs keys in {}: wasmcage keys init, then wasmcage keys issue {}",
                            inner.keys.directory().display(),
                            inner.local.cage
                        ),
                        source: None,
                    });
                }
                let listener = TcpListener::bind(address).await.map_err(|error| failed(address.clone(), error))?;
                Some(listener)
            }
        };
        let path = inner.registry.registration_path(&inner.local.cage, inner.local.copy);
        let at = path.display().to_string();
        let unix = NamedListener::bind(&path).map_err(|error| failed(at, error))?;
        Ok(Self { unix, tcp })
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        let tcp = self.tcp_address();
        let unix = CopyAddress::Unix(self.unix.path().to_owned()).to_string();
        tcp.map(|address| format!("tls://{address}")).into_iter().chain([unix]).collect()
    }

    pub(super) fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Accepts connections until the drain begins.
    pub(super) async fn accept(self, inner: &Arc<LanInner>, handler: &Arc<dyn CallHandler>, drain: &Drain) {
        let Self { unix, tcp } = self;
        let tcp = async {
            match &tcp {
                Some(tcp) => inner.accept_tcp(tcp, handler).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = inner.accept_unix(unix, handler) => {}
            () = tcp => {}
            () = drain.stopping() => {}
        }
    }
}

impl NetworkLimits {
    fn new(connections_max: usize) -> Self {
        Self {
            handshakes: Arc::default(),
            connections: Arc::new(Semaphore::new(connections_max)),
            of_cage: KeyedLimit::new(connections_max.div_ceil(CONNECTIONS_SHARE)),
        }
    }

    /// Takes the permits for a connection of cage `cage`, whose certificate has been checked.
    ///
    /// # Errors
    /// The limit that is reached, as a text for the peer and the log.
    fn admit(&self, cage: &str) -> Result<ConnectionPermits, String> {
        let of_cage = self.of_cage.try_acquire(cage.into());
        let of_cage = of_cage.ok_or_else(|| format!("cage {cage} has {} connections here already", self.of_cage.max()));
        let permit = self.connections.clone().try_acquire_owned();
        Ok((permit.map_err(|_| "all connections that this cage takes are in use".to_owned())?, of_cage?))
    }
}

impl LanInner {
    /// Accepts local connections, and restores the socket when its file was removed.
    async fn accept_unix(self: &Arc<Self>, mut unix: NamedListener, handler: &Arc<dyn CallHandler>) {
        let permits = Arc::new(Semaphore::new(self.config.connections_max));
        let mut checks = tokio::time::interval(SOCKET_CHECK_INTERVAL);
        checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let accepted = async {
                let permit = permits.clone().acquire_owned().await.map_err(std::io::Error::other)?;
                let stream = unix.accept().await?;
                check_same_user(&stream)?;
                Ok((stream.into_std()?, permit))
            };
            tokio::select! {
                accepted = accepted => match accepted {
                    Ok((stream, permit)) => self.spawn_unix(stream, handler, permit),
                    Err(error) => self.accept_failed(&error).await,
                },
                _ = checks.tick() => self.restore(&mut unix),
            }
        }
    }

    /// Makes the socket and its directory again if somebody removed them: other cages find this copy by that file.
    fn restore(&self, unix: &mut NamedListener) {
        let restored = self.registry.restore().map_err(|error| error_chain(&error));
        let restored = restored.and_then(|()| unix.restore().map_err(|error| error.to_string()));
        match restored {
            Ok(false) => {}
            Ok(true) => self.events.listening_again(unix.path()),
            Err(error) => {
                self.events.refused("this machine", &format!("the vanished socket cannot be made again: {error}"));
            }
        }
    }

    async fn accept_tcp(self: &Arc<Self>, tcp: &TcpListener, handler: &Arc<dyn CallHandler>) {
        let network_limits = Arc::new(NetworkLimits::new(self.config.connections_max));
        loop {
            let accepted = tcp.accept().await.and_then(|(stream, from)| Ok((stream.into_std()?, from)));
            match accepted {
                Ok((stream, from)) => self.spawn_tcp(stream, from, handler, &network_limits),
                Err(error) => self.accept_failed(&error).await,
            }
        }
    }

    async fn accept_failed(&self, error: &std::io::Error) {
        self.events.refused("this machine", &format!("a connection could not be taken: {error}"));
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    /// Serves a connection in a task on the next lane, where it stays.
    fn spawn_unix(
        self: &Arc<Self>,
        stream: std::os::unix::net::UnixStream,
        handler: &Arc<dyn CallHandler>,
        permit: OwnedSemaphorePermit,
    ) {
        let (inner, handler) = (self.clone(), handler.clone());
        let serving = self.inbound_tasks.track_future(async move {
            let Ok(mut stream) = UnixStream::from_std(stream) else { return };
            if let Some((hello, rest)) =
                inner.exchange_greetings(&mut stream, ConnectionOrigin::ThisMachine, None).await
            {
                inner.serve_connection(stream, ConnectionOrigin::ThisMachine, hello, rest, handler).await;
            }
            drop(permit);
        });
        self.lanes.next().spawn(self.tasks.run_once("rpc: a connection from this machine", serving));
    }

    fn spawn_tcp(
        self: &Arc<Self>,
        stream: std::net::TcpStream,
        from: SocketAddr,
        handler: &Arc<dyn CallHandler>,
        network_limits: &Arc<NetworkLimits>,
    ) {
        let (inner, handler, network_limits) = (self.clone(), handler.clone(), network_limits.clone());
        let mut handshake = network_limits.handshakes.begin(from.ip());
        let serving = self.inbound_tasks.track_future(async move {
            let refused = |text: &str| inner.events.refused(&from.ip().to_string(), text);
            let greeting = async {
                let (mut stream, cage) = inner.accept_tls(stream, from).await.inspect_err(|text| refused(text)).ok()?;
                let (hello, rest) =
                    inner.exchange_greetings(&mut stream, ConnectionOrigin::Network(from), Some(&cage)).await?;
                Some((stream, hello, rest))
            };
            let greeted = tokio::select! {
                greeted = tokio::time::timeout(GREETING_TIMEOUT, greeting) => greeted,
                () = handshake.cut() => return refused("no handshake before a newer one needed its place"),
            };
            drop(handshake);
            let Ok(greeted) = greeted else { return refused("no handshake in time") };
            let Some((mut stream, hello, rest)) = greeted else { return };
            match network_limits.admit(&hello.cage) {
                Ok(permits) => {
                    inner.serve_connection(stream, ConnectionOrigin::Network(from), hello, rest, handler).await;
                    drop(permits);
                }
                Err(text) => {
                    refused(&text);
                    link::say_bye(&mut stream, &text).await;
                }
            }
        });
        self.lanes.next().spawn(self.tasks.run_once("rpc: a connection from the network", serving));
    }

    /// Does the TLS handshake. Returns the stream, and the cage named by the peer's certificate.
    async fn accept_tls(
        &self,
        stream: std::net::TcpStream,
        from: SocketAddr,
    ) -> Result<(impl AsyncRead + AsyncWrite + Unpin + Send + 'static + use<>, String), String> {
        let keys = self.keys.current().ok_or_else(|| "this cage has no keys any more".to_owned())?;
        let stream = TcpStream::from_std(stream).map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let stream = TlsAcceptor::from(keys.server()).accept(stream).await;
        let stream = stream.map_err(|error| keys::handshake_reason(&error, &format!("the peer at {from}")))?;
        let identity = keys.verify_peer(stream.get_ref().1.peer_certificates(), None);
        identity.map(|identity| (stream, identity.cage)).map_err(|error| error_chain(&error))
    }

    /// Exchanges greetings. Returns the peer's, and the bytes that followed it; none if the peer was refused. `cage` is
    /// the name in the peer's certificate.
    async fn exchange_greetings<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        from: ConnectionOrigin,
        cage: Option<&str>,
    ) -> Option<(Hello, BytesMut)> {
        let (hello, rest) = match link::greet(stream, &self.hello(false), GREETING_TIMEOUT).await {
            Ok(greeted) => greeted,
            // Somebody only checked whether this copy listens.
            Err(link::GreetingError::Closed) => return None,
            Err(link::GreetingError::Io(_)) if matches!(from, ConnectionOrigin::ThisMachine) => return None,
            Err(error) => {
                let text = error_chain(&error);
                self.events.refused(&from.host(), &text);
                link::say_bye(stream, &text).await;
                return None;
            }
        };
        let Some(mismatch) = self.greeting_mismatch(&hello, cage) else { return Some((hello, rest)) };
        // A copy that connects to itself is not logged.
        if hello.copy != self.local.copy.0 {
            self.events.refused(&from.host(), &mismatch);
        }
        link::say_bye(stream, &mismatch).await;
        None
    }

    /// Serves a connection on which both sides have greeted, until it ends.
    async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: &Arc<Self>,
        stream: S,
        from: ConnectionOrigin,
        hello: Hello,
        rest: BytesMut,
        handler: Arc<dyn CallHandler>,
    ) {
        let (peer, id): (Arc<str>, _) = (hello.cage.as_str().into(), CopyId(hello.copy));
        let link_handler = LanHandler::new(self, peer.clone(), Some(handler));
        let (link, driver) =
            Link::new(stream, rest, self.session_limits(), true, link_handler, Some(self.lanes.clone()));
        if !self.add_inbound(&link) {
            link.close();
        }
        let (host, address) = match from {
            ConnectionOrigin::ThisMachine => (None, None),
            ConnectionOrigin::Network(from) => {
                let listens =
                    hello.listen_port.map(|port| CopyAddress::Tcp(SocketAddr::new(from.ip(), port).to_string()));
                (Some(from.ip()), listens)
            }
        };
        let reverse = hello.reverse.then(|| link.clone());
        let copy = match reverse.is_some() || address.is_some() {
            true => self.copies.record_inbound(&peer, id, self.lanes.count(), address.as_ref(), reverse),
            false => None,
        };
        if let Some(copy) = &copy {
            copy.describe(&hello.node, &hello.version);
            self.changed.notify_waiters();
        }
        if *peer != *COMMAND_LINE {
            self.add_gossip_peer(&link, id, host);
        }
        driver.await;
        let closed = link.closed().await;
        if let Some(copy) = copy {
            copy.connection_ended(&closed);
            self.copies.record_inbound_end(&copy, address.as_ref());
            self.changed.notify_waiters();
        }
        if let link::CloseReason::Violation(text) = closed {
            self.events.refused(&format!("cage {peer} at {}", from.host()), &text);
        }
    }

    /// Adds the members that a peer of cage `reporter` sent to the table.
    pub(super) fn add_gossip(&self, reporter: &Arc<str>, members: &[u8]) {
        let now = tokio::time::Instant::now();
        let mut any = false;
        for hint in gossip_format::decode(members).iter().filter(|hint| hint.copy != self.local.copy) {
            any |= self.copies.add_gossip(hint, reporter, self.lanes.count(), now);
        }
        if any {
            self.changed.notify_waiters();
        }
    }
}
