//! The side that others connect to: the cage's Unix socket, and its TCP port when it has one. Neither can keep the other
//! from being served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::dial::own_user;
use super::handshakes::Handshakes;
use super::{Answerer, Inner, told};
use crate::discovery::Address;
use crate::fabric::{CopyId, Service};
use crate::keys;
use crate::link::frame::Hello;
use crate::link::{self, Link};
use crate::places::{Place, Places};
use wasmcage_core::call::COMMAND_LINE;
use wasmcage_core::drain::Drain;
use wasmcage_core::telemetry::error_chain;
use wasmcage_core::unix_socket::NamedListener;
use wasmcage_protocol::InterfaceError;

/// From the connection to the end of the greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure to accept, which is one of this machine: out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks whether the cage's socket is still where others look for it.
const SOCKET_INTERVAL: Duration = Duration::from_secs(1);
/// One cage may have one connection in so many of those from the network.
const CONNECTIONS_SHARE: usize = 2;

/// What a cage is reached by.
pub(super) struct Listening {
    unix: NamedListener,
    tcp: Option<TcpListener>,
}

/// Room for connections from the network.
struct Doors {
    handshakes: Arc<Handshakes>,
    connections: Arc<Semaphore>,
    /// Of one cage.
    of_cage: Arc<Places<Arc<str>>>,
}

/// A connection from the network that may stay.
type Admitted = (OwnedSemaphorePermit, Place<Arc<str>>);

/// Where a connection came from.
#[derive(Clone, Copy)]
enum From {
    Here,
    There(SocketAddr),
}

impl From {
    /// Without the port, which is another one for each connection.
    fn host(self) -> String {
        match self {
            Self::Here => "this machine".to_owned(),
            Self::There(address) => address.ip().to_string(),
        }
    }
}

impl Listening {
    /// # Errors
    /// A socket that cannot be had; a TCP port without keys.
    pub(super) async fn start(inner: &Inner) -> Result<Self, InterfaceError> {
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
        let unix = Address::Unix(self.unix.path().to_owned()).to_string();
        tcp.map(|address| format!("tls://{address}")).into_iter().chain([unix]).collect()
    }

    pub(super) fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Takes connections until the drain begins.
    pub(super) async fn accept(self, inner: &Arc<Inner>, service: &Arc<dyn Service>, drain: &Drain) {
        let Self { unix, tcp } = self;
        let tcp = async {
            match &tcp {
                Some(tcp) => inner.accept_tcp(tcp, service).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = inner.accept_unix(unix, service) => {}
            () = tcp => {}
            () = drain.stopping() => {}
        }
    }
}

impl Doors {
    fn new(connections_max: usize) -> Self {
        Self {
            handshakes: Arc::default(),
            connections: Arc::new(Semaphore::new(connections_max)),
            of_cage: Places::new(connections_max.div_ceil(CONNECTIONS_SHARE)),
        }
    }

    /// # Errors
    /// Why a peer that is who it says cannot stay.
    fn admit(&self, cage: &str) -> Result<Admitted, String> {
        let of_cage = self.of_cage.enter(cage.into());
        let of_cage = of_cage.ok_or_else(|| format!("cage {cage} has {} connections here already", self.of_cage.max()));
        let place = self.connections.clone().try_acquire_owned();
        Ok((place.map_err(|_| "all connections that this cage takes are in use".to_owned())?, of_cage?))
    }
}

impl Inner {
    /// The socket is made anew when it vanishes, with the directory if need be.
    async fn accept_unix(self: &Arc<Self>, mut unix: NamedListener, service: &Arc<dyn Service>) {
        let places = Arc::new(Semaphore::new(self.config.connections_max));
        let mut looks = tokio::time::interval(SOCKET_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let accepted = async {
                let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
                let stream = unix.accept().await?;
                own_user(&stream)?;
                Ok((stream.into_std()?, place))
            };
            tokio::select! {
                accepted = accepted => match accepted {
                    Ok((stream, place)) => self.take_unix(stream, service, place),
                    Err(error) => self.not_taken(&error).await,
                },
                _ = looks.tick() => self.restore(&mut unix),
            }
        }
    }

    /// Others find this copy by its socket, which may have been tidied away.
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

    async fn accept_tcp(self: &Arc<Self>, tcp: &TcpListener, service: &Arc<dyn Service>) {
        let doors = Arc::new(Doors::new(self.config.connections_max));
        loop {
            let accepted = tcp.accept().await.and_then(|(stream, from)| Ok((stream.into_std()?, from)));
            match accepted {
                Ok((stream, from)) => self.take_tcp(stream, from, service, &doors),
                Err(error) => self.not_taken(&error).await,
            }
        }
    }

    async fn not_taken(&self, error: &std::io::Error) {
        self.events.refused("this machine", &format!("a connection could not be taken: {error}"));
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    /// From here on the connection lives on one lane.
    fn take_unix(
        self: &Arc<Self>,
        stream: std::os::unix::net::UnixStream,
        service: &Arc<dyn Service>,
        place: OwnedSemaphorePermit,
    ) {
        let (inner, service) = (self.clone(), service.clone());
        let taken = self.taken.track_future(async move {
            let Ok(mut stream) = UnixStream::from_std(stream) else { return };
            if let Some((hello, rest)) = inner.greeting(&mut stream, From::Here, None).await {
                inner.greeted(stream, From::Here, hello, rest, service).await;
            }
            drop(place);
        });
        self.lanes.next().spawn(self.tasks.run_once("rpc: a connection from this machine", taken));
    }

    fn take_tcp(
        self: &Arc<Self>,
        stream: std::net::TcpStream,
        from: SocketAddr,
        service: &Arc<dyn Service>,
        doors: &Arc<Doors>,
    ) {
        let (inner, service, doors) = (self.clone(), service.clone(), doors.clone());
        let mut handshake = doors.handshakes.begin(from.ip());
        let taken = self.taken.track_future(async move {
            let refused = |text: &str| inner.events.refused(&from.ip().to_string(), text);
            let greeting = async {
                let (mut stream, cage) = inner.secured(stream, from).await.inspect_err(|text| refused(text)).ok()?;
                let (hello, rest) = inner.greeting(&mut stream, From::There(from), Some(&cage)).await?;
                Some((stream, hello, rest))
            };
            let greeted = tokio::select! {
                greeted = tokio::time::timeout(GREETING_TIMEOUT, greeting) => greeted,
                () = handshake.cut() => return refused("no handshake before others needed its place"),
            };
            drop(handshake);
            let Ok(greeted) = greeted else { return refused("no handshake in time") };
            let Some((mut stream, hello, rest)) = greeted else { return };
            match doors.admit(&hello.cage) {
                Ok(admitted) => {
                    inner.greeted(stream, From::There(from), hello, rest, service).await;
                    drop(admitted);
                }
                Err(text) => {
                    refused(&text);
                    link::say_bye(&mut stream, &text).await;
                }
            }
        });
        self.lanes.next().spawn(self.tasks.run_once("rpc: a connection from the network", taken));
    }

    /// The stream, and whose certificate the peer showed.
    async fn secured(
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

    /// What the peer says of itself, and what came after it; none of one that is sent away. `cage` is whose certificate it
    /// showed.
    async fn greeting<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        from: From,
        cage: Option<&str>,
    ) -> Option<(Hello, BytesMut)> {
        let (hello, rest) = match link::greet(stream, &self.hello(false), GREETING_TIMEOUT).await {
            Ok(greeted) => greeted,
            // A look whether somebody is there.
            Err(link::GreetingError::Closed) => return None,
            Err(link::GreetingError::Io(_)) if matches!(from, From::Here) => return None,
            Err(error) => {
                let text = error_chain(&error);
                self.events.refused(&from.host(), &text);
                link::say_bye(stream, &text).await;
                return None;
            }
        };
        let Some(mismatch) = self.mismatch(&hello, cage) else { return Some((hello, rest)) };
        // A copy that finds itself is no news.
        if hello.copy != self.local.copy.0 {
            self.events.refused(&from.host(), &mismatch);
        }
        link::say_bye(stream, &mismatch).await;
        None
    }

    /// Serves a connection to its end.
    async fn greeted<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: &Arc<Self>,
        stream: S,
        from: From,
        hello: Hello,
        rest: BytesMut,
        service: Arc<dyn Service>,
    ) {
        let (peer, id): (Arc<str>, _) = (hello.cage.as_str().into(), CopyId(hello.copy));
        let answerer = Answerer::new(self, peer.clone(), Some(service));
        let (link, life) = Link::new(stream, rest, self.session_limits(), true, answerer, Some(self.lanes.clone()));
        if !self.enlist(&link) {
            link.close();
        }
        let (host, address) = match from {
            From::Here => (None, None),
            From::There(from) => {
                let listens = hello.listen_port.map(|port| Address::Tcp(SocketAddr::new(from.ip(), port).to_string()));
                (Some(from.ip()), listens)
            }
        };
        let reverse = hello.reverse.then(|| link.clone());
        let copy = match reverse.is_some() || address.is_some() {
            true => self.copies.came(&peer, id, self.lanes.count(), address.as_ref(), reverse),
            false => None,
        };
        if let Some(copy) = &copy {
            copy.describe(&hello.node, &hello.version);
            self.changed.notify_waiters();
        }
        if *peer != *COMMAND_LINE {
            self.tell(&link, id, host);
        }
        life.await;
        let closed = link.closed().await;
        if let Some(copy) = copy {
            copy.connection_ended(&closed);
            self.copies.went(&copy, address.as_ref());
            self.changed.notify_waiters();
        }
        if let link::Closed::Violation(text) = closed {
            self.events.refused(&format!("cage {peer} at {}", from.host()), &text);
        }
    }

    /// Members that cage `teller` told of are hints like any other.
    pub(super) fn was_told(&self, teller: &Arc<str>, members: &[u8]) {
        let now = tokio::time::Instant::now();
        let mut any = false;
        for sighting in told::decode(members).iter().filter(|sighting| sighting.copy != self.local.copy) {
            any |= self.copies.told(sighting, teller, self.lanes.count(), now);
        }
        if any {
            self.changed.notify_waiters();
        }
    }
}
