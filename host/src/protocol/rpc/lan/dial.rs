//! Connections to copies: one for each copy and lane, made when the first call needs it. A connection lives on the lane
//! whose calls it carries, so that a call and its answer wake no other thread.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::copies::Copy;
use super::{Answerer, Inner};
use crate::keys::{self, Keys};
use crate::lanes::Lanes;
use crate::protocol::rpc::discovery::{Address, Found};
use crate::protocol::rpc::fabric::Service;
use crate::protocol::rpc::link::frame::Hello;
use crate::protocol::rpc::link::{self, Link};
use crate::telemetry::error_chain;
use crate::unix_socket;

/// A lane's connection to a copy.
#[derive(Default)]
pub(super) struct Place {
    link: ArcSwapOption<Link>,
    /// Held while a connection is made: one attempt at a time.
    dialing: Arc<tokio::sync::Mutex<()>>,
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct DialError {
    text: String,
    /// Nobody is there any more.
    pub(super) vacant: bool,
    /// It is this copy itself.
    pub(super) own: bool,
}

impl DialError {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), vacant: false, own: false }
    }

    fn io(address: &Address, error: &io::Error) -> Self {
        let vacant = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
        Self { text: format!("cannot connect to {address}: {error}"), vacant, own: false }
    }
}

impl Place {
    pub(super) fn usable(&self) -> Option<Arc<Link>> {
        self.link.load_full().filter(|link| link.is_usable())
    }

    pub(super) fn is_usable(&self) -> bool {
        self.link.load().as_ref().is_some_and(|link| link.is_usable())
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.link.load().as_ref().is_some_and(|link| link.is_usable() && link.is_suspect())
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

impl Inner {
    /// The connection of this lane to a copy, made if there is none.
    pub(super) async fn link(self: &Arc<Self>, copy: &Arc<Copy>) -> Result<Arc<Link>, DialError> {
        let lane = Lanes::current() % copy.places.len();
        if let Some(link) = copy.places[lane].usable() {
            return Ok(link);
        }
        if let Some(link) = copy.reverse() {
            return Ok(Arc::new(link));
        }
        let dialing = copy.places[lane].dialing.clone().lock_owned().await;
        if let Some(link) = copy.places[lane].usable() {
            return Ok(link);
        }
        let (inner, copy) = (self.clone(), copy.clone());
        // A task of its own: a caller that gives up does not undo what others wait for.
        let dialled = self.lanes.handle(lane).spawn(async move {
            let dialled = inner.dial(&copy).await;
            match &dialled {
                Ok(link) => copy.places[lane].set(link.clone()),
                Err(error) => copy.failed(error.to_string()),
            }
            drop(dialing);
            dialled
        });
        dialled.await.map_err(|_| DialError::new("this cage is shutting down"))?.map(Arc::new)
    }

    /// Tries the ways to a copy, the nearest first. Ways that lead nowhere are forgotten.
    async fn dial(self: &Arc<Self>, copy: &Arc<Copy>) -> Result<Link, DialError> {
        let mut last = DialError::new("no address is known");
        for (address, found) in copy.addresses() {
            match self.connect(&address, &copy.cage, None).await {
                Ok((_, hello)) if hello.copy != copy.id.0 => {
                    self.copies.gone(&copy.cage, copy.id, found, Some(&address));
                    last = DialError::new(format!("{address} belongs to another copy by now"));
                }
                Ok((link, hello)) => {
                    copy.greeted(&hello.node, &hello.version);
                    self.tell(&link);
                    self.watch_end(&link, copy);
                    return Ok(link);
                }
                Err(error) => {
                    if error.vacant || error.own {
                        self.vacant(copy, &address, found);
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Looks after the copy when the connection has ended. Keeps neither of them, so that both can go.
    fn watch_end(self: &Arc<Self>, link: &Link, copy: &Arc<Copy>) {
        let (ended, inner, copy) = (link.ended(), Arc::downgrade(self), Arc::downgrade(copy));
        tokio::spawn(async move {
            ended.await;
            if let (Some(inner), Some(copy)) = (inner.upgrade(), copy.upgrade()) {
                inner.left(&copy);
            }
        });
    }

    /// Nobody answers at an address. What is configured is tried again by its own task.
    fn vacant(&self, copy: &Arc<Copy>, address: &Address, found: Found) {
        match (address, found) {
            (Address::Unix(path), _) => {
                self.registry.remove_stale(path);
                self.copies.gone(&copy.cage, copy.id, found, Some(address));
            }
            (Address::Tcp(_), Found::Told) => self.copies.gone(&copy.cage, copy.id, found, Some(address)),
            (Address::Tcp(_), _) => {}
        }
    }

    /// Makes a connection, on the runtime it is called on. With a service, the peer may call this cage over it.
    pub(super) async fn connect(
        self: &Arc<Self>,
        address: &Address,
        cage: &str,
        service: Option<Arc<dyn Service>>,
    ) -> Result<(Link, Hello), DialError> {
        let connecting = async {
            match address {
                Address::Unix(path) => {
                    let stream = unix_socket::connect(path).await.map_err(|error| DialError::io(address, &error))?;
                    own_user(&stream).map_err(|error| DialError::io(address, &error))?;
                    self.greet(stream, address, cage, service).await
                }
                Address::Tcp(host) => {
                    let keys = self.keys.current().ok_or_else(|| {
                        DialError::new(format!(
                            "{address} is on another machine, and this cage has no keys: wasmcage keys issue {}",
                            self.local.cage
                        ))
                    })?;
                    let stream = TcpStream::connect(host).await.map_err(|error| DialError::io(address, &error))?;
                    let stream = secure(&keys, stream, cage, address).await?;
                    self.greet(stream, address, cage, service).await
                }
            }
        };
        let patience = self.config.connect_timeout;
        let late = || DialError::new(format!("no connection to {address} within {} ms", patience.as_millis()));
        tokio::time::timeout(patience, connecting).await.unwrap_or_else(|_| Err(late()))
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
            return Err(DialError { own, ..DialError::new(format!("{address}: {mismatch}")) });
        }
        let serves = service.is_some();
        let answerer = Answerer::new(self, cage.into(), service);
        let (link, life) = Link::new(stream, rest, self.session_limits(), serves, answerer, Some(self.lanes.clone()));
        tokio::spawn(life);
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
    keys.verify_peer(certificates, Some(cage))
        .map_err(|error| DialError::new(format!("{address}: {}", error_chain(&error))))?;
    Ok(stream)
}
