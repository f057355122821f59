//! The side that others connect to: the cage's Unix socket, and its TCP port when it has one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;

use super::dial::own_user;
use super::{Answerer, Inner, told};
use crate::drain::Drain;
use crate::keys;
use crate::protocol::InterfaceError;
use crate::protocol::rpc::discovery::{Address, Found, Sighting};
use crate::protocol::rpc::fabric::{CopyId, Service};
use crate::protocol::rpc::link::{self, Link};
use crate::telemetry::error_chain;
use crate::unix_socket::NamedListener;

/// From the connection to the end of the greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure to accept, which is one of this machine: out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks whether the socket is still at its path.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What a cage is reached by.
pub(super) struct Listening {
    unix: NamedListener,
    tcp: Option<TcpListener>,
}

/// Where a connection came from.
#[derive(Clone)]
enum From {
    Here,
    There(SocketAddr),
}

impl std::fmt::Display for From {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => f.write_str("this machine"),
            Self::There(address) => address.fmt(f),
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
    pub(super) async fn accept(mut self, inner: &Arc<Inner>, service: &Arc<dyn Service>, drain: &Drain) {
        let places = Arc::new(Semaphore::new(inner.config.connections_max));
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let place = tokio::select! {
                place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
                () = drain.stopping() => return,
            };
            let tcp = async {
                match &self.tcp {
                    Some(tcp) => tcp.accept().await,
                    None => std::future::pending().await,
                }
            };
            let accepted = tokio::select! {
                accepted = self.unix.accept() => accepted.and_then(|stream| {
                    own_user(&stream)?;
                    inner.take_unix(stream.into_std()?, service, place);
                    Ok(())
                }),
                _ = looks.tick() => {
                    self.restore(inner);
                    continue;
                }
                accepted = tcp => accepted.and_then(|(stream, from)| {
                    inner.take_tcp(stream.into_std()?, from, service, place);
                    Ok(())
                }),
                () = drain.stopping() => return,
            };
            if let Err(error) = accepted {
                inner.events.refused("this machine", &format!("a connection could not be taken: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Listening {
    /// Others find this copy by its socket, which may have been tidied away.
    fn restore(&mut self, inner: &Inner) {
        let restored = inner.registry.restore().map_err(|error| error_chain(&error));
        let restored = restored.and_then(|()| self.unix.restore().map_err(|error| error.to_string()));
        let (cage, interface) = (&inner.local.cage, &inner.interface);
        match restored {
            Ok(false) => {}
            Ok(true) => {
                let socket = self.unix.path().display();
                tracing::warn!(%cage, %interface, %socket, "the socket had been removed and was made again");
            }
            // It is tried again, and told by those who look for cages there.
            Err(error) => tracing::debug!(%cage, %interface, %error, "the socket could not be made again"),
        }
    }
}

impl Inner {
    /// From here on the connection lives on one lane.
    fn take_unix(
        self: &Arc<Self>,
        stream: std::os::unix::net::UnixStream,
        service: &Arc<dyn Service>,
        place: OwnedSemaphorePermit,
    ) {
        let (inner, service) = (self.clone(), service.clone());
        self.lanes.next().spawn(self.taken.track_future(async move {
            let Ok(stream) = UnixStream::from_std(stream) else { return };
            inner.greeted(stream, From::Here, None, service, place).await;
        }));
    }

    fn take_tcp(
        self: &Arc<Self>,
        stream: std::net::TcpStream,
        from: SocketAddr,
        service: &Arc<dyn Service>,
        place: OwnedSemaphorePermit,
    ) {
        let (inner, service) = (self.clone(), service.clone());
        self.lanes.next().spawn(self.taken.track_future(async move {
            let peer = format!("the peer at {from}");
            let handshake = async {
                let keys = inner.keys.current().ok_or_else(|| "this cage has no keys any more".to_owned())?;
                let stream = TcpStream::from_std(stream).map_err(|error| error.to_string())?;
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                let stream = TlsAcceptor::from(keys.server()).accept(stream).await;
                let stream = stream.map_err(|error| keys::handshake_reason(&error, &peer))?;
                let identity = keys.verify_peer(stream.get_ref().1.peer_certificates(), None);
                identity.map(|identity| (stream, identity.cage)).map_err(|error| error_chain(&error))
            };
            match tokio::time::timeout(GREETING_TIMEOUT, handshake).await {
                Ok(Ok((stream, cage))) => {
                    inner.greeted(stream, From::There(from), Some(cage), service, place).await;
                }
                Ok(Err(text)) => inner.events.refused(&from.ip().to_string(), &text),
                Err(_) => inner.events.refused(&from.ip().to_string(), "no handshake in time"),
            }
        }));
    }

    /// Serves a connection to its end. `cage` is whose certificate the peer showed.
    async fn greeted<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: &Arc<Self>,
        mut stream: S,
        from: From,
        cage: Option<String>,
        service: Arc<dyn Service>,
        place: OwnedSemaphorePermit,
    ) {
        let (hello, rest) = match link::greet(&mut stream, &self.hello(false), GREETING_TIMEOUT).await {
            Ok(greeted) => greeted,
            // A look whether somebody is there.
            Err(link::GreetingError::Closed) => return,
            Err(link::GreetingError::Io(_)) if matches!(from, From::Here) => return,
            Err(error) => {
                let text = error_chain(&error);
                link::say_bye(&mut stream, &text).await;
                return self.events.refused(&from.to_string(), &text);
            }
        };
        if let Some(mismatch) = self.mismatch(&hello, cage.as_deref()) {
            link::say_bye(&mut stream, &mismatch).await;
            // A copy that finds itself is no news.
            if hello.copy != self.local.copy.0 {
                self.events.refused(&from.to_string(), &mismatch);
            }
            return;
        }
        let peer: Arc<str> = hello.cage.as_str().into();
        let answerer = Answerer::new(self, peer.clone(), Some(service));
        let (link, life) = Link::new(stream, rest, self.session_limits(), true, answerer, Some(self.lanes.clone()));
        if !self.enlist(&link) {
            link.close();
        }
        let reverse = hello.reverse.then(|| {
            self.copies.update(&peer, CopyId(hello.copy), self.lanes.count(), |copy| {
                copy.greeted(&hello.node, &hello.version);
                copy.add_reverse(link.clone());
            })
        });
        let reverse = reverse.flatten().map(|(copy, _)| copy);
        self.changed.notify_waiters();
        if let (From::There(address), Some(port)) = (&from, hello.listen_port) {
            let address = Address::Tcp(SocketAddr::new(address.ip(), port).to_string());
            let (copy, node) = (CopyId(hello.copy), hello.node.clone());
            self.sighted(&Sighting { cage: hello.cage, copy, node, address, found: Found::Told });
        }
        self.tell(&link);
        life.await;
        drop(place);
        if let link::Closed::Violation(text) = link.closed().await {
            self.events.refused(&format!("cage {peer} at {from}"), &text);
        }
        if let Some(copy) = reverse {
            self.copies.drop_if_lost(&copy);
        }
    }

    /// Members that a peer told of are hints like any other.
    pub(super) fn was_told(&self, members: &[u8]) {
        told::decode(members).iter().for_each(|sighting| self.sighted(sighting));
    }
}
