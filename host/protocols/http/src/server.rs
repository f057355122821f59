//! One listening socket and its accept loop. The loop runs on the ordinary runtime and gives each connection to the
//! lane with the fewest. No error ends it, only the drain; when that begins, the port is free at once for a successor.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connection;
use super::interface::InterfaceShared;
use super::tls::ServerTls;
use wasmcage_core::drain::Drain;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::task;
use wasmcage_protocol::{InterfaceError, ListenGuard};

/// The pause after an error that would occur again at once, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections the kernel may keep until they are accepted. A client beyond that has to try again after a
/// second.
const BACKLOG: u32 = 4096;

/// How long handshakes that have begun may still complete when the intake stops. Closing the socket resets the
/// connections that the kernel has made already.
const LAST_HANDSHAKES_TIMEOUT: Duration = Duration::from_millis(50);

pub(super) struct HttpServer {
    listener: TcpListener,
    acceptor: Acceptor,
}

/// Accepts connections and gives them to lanes.
struct Acceptor {
    address: SocketAddr,
    shared: Arc<InterfaceShared>,
    tls: Option<Arc<ServerTls>>,
    lanes: Arc<Lanes>,
    counts: Arc<ConnectionCounts>,
}

impl HttpServer {
    /// # Errors
    /// `Listen` if the address cannot be bound, `Setup` if the certificates cannot be used.
    pub(super) async fn bind(shared: InterfaceShared, lanes: Arc<Lanes>) -> Result<Self, InterfaceError> {
        let tls = match shared.config.tls.clone() {
            Some(files) => Some(Arc::new(ServerTls::load(files).await.map_err(|error| InterfaceError::Setup {
                interface: shared.endpoint.interface.to_string(),
                text: "tls cannot be set up".to_owned(),
                source: Some(Box::new(error)),
            })?)),
            None => None,
        };
        let (listener, address) = listen(&shared.config.listen).await.map_err(|source| InterfaceError::Listen {
            interface: shared.endpoint.interface.to_string(),
            address: shared.config.listen.clone(),
            source,
        })?;
        let counts = Arc::new(ConnectionCounts::new(lanes.count()));
        Ok(Self { listener, acceptor: Acceptor { address, shared: Arc::new(shared), tls, lanes, counts } })
    }

    /// The URL for clients.
    pub(super) fn url(&self) -> String {
        let scheme = if self.acceptor.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/", self.acceptor.address)
    }

    /// Serves until the drain has begun and the last connection has ended, or the drain is forced. Dropping this future
    /// ends all connections.
    pub(super) async fn run(self, listening: ListenGuard, drain: Drain) {
        // A drain of this interface's connections only, which ends them if this future is dropped.
        let own = ForceOnDrop(drain.child());
        tokio::select! {
            () = self.acceptor.accept_forever(&self.listener, &drain, &own.0) => {}
            () = reload_certificates(self.acceptor.tls.as_deref(), &self.acceptor.shared) => {}
            () = drain.stopping() => {}
        }
        let Self { listener, acceptor } = self;
        acceptor.accept_the_last(&listener, &drain, &own.0).await;
        drop(listener);
        drop(listening);
        acceptor.shared.events.stopped(acceptor.counts.total());
        // There is no timeout here: when the cage's drain is forced, the connections end by themselves.
        own.0.complete(Duration::MAX).await;
    }
}

impl Acceptor {
    async fn accept_forever(&self, listener: &TcpListener, drain: &Drain, own: &Drain) {
        loop {
            let accepted = listener.accept().await;
            // The socket leaves this runtime, since the lane has its own.
            match accepted.and_then(|(socket, peer)| Ok((socket.into_std()?, peer))) {
                Ok((socket, peer)) => self.spawn(socket, peer, drain, own),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    self.shared.events.accept_failed(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Accepts the clients that the kernel has connected already, or is connecting, which closing the socket would
    /// reset. New clients are kept out meanwhile: their systems try again after a second, and find either the successor
    /// or a closed port. If the kernel does not support that, a client that connects in the last moment is reset.
    async fn accept_the_last(&self, listener: &TcpListener, drain: &Drain, own: &Drain) {
        let until = match drop_new_handshakes(listener) {
            Ok(()) => Instant::now() + LAST_HANDSHAKES_TIMEOUT,
            Err(_) => Instant::now(),
        };
        for _ in 0..BACKLOG {
            // With a timeout of zero this accepts what is there.
            match timeout_at(until, listener.accept()).await {
                Ok(accepted) => match accepted.and_then(|(socket, peer)| Ok((socket.into_std()?, peer))) {
                    Ok((socket, peer)) => self.spawn(socket, peer, drain, own),
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        self.shared.events.accept_failed(&error);
                        return;
                    }
                },
                Err(_) => return,
            }
        }
    }

    /// Serves the connection on a lane, where it stays until it ends.
    fn spawn(&self, socket: TcpStream, peer: SocketAddr, drain: &Drain, own: &Drain) {
        let connections_max = self.shared.config.connections_max;
        if self.counts.total() >= connections_max {
            self.shared.events.connection_refused(connections_max);
            return;
        }
        let lane = self.counts.least_loaded_lane();
        let slot = ConnectionSlot::take(&self.counts, lane, drain, own);
        let connection = connection::ClientConnection {
            shared: self.shared.clone(),
            tls: self.tls.clone(),
            lanes: self.lanes.clone(),
            drain: own.clone(),
            peer,
        };
        self.lanes.handle(lane).spawn(async move {
            let _seat = slot;
            let (shared, peer) = (connection.shared.clone(), connection.peer);
            if let Err(panic) = task::catch_panic_async(connection.serve(socket)).await {
                shared.events.connection_panicked(peer, &panic);
            }
        });
    }
}

/// Runs for ever, without TLS as well, when there is nothing to reload.
async fn reload_certificates(tls: Option<&ServerTls>, shared: &InterfaceShared) {
    match tls {
        Some(tls) => tls.reload_forever(&shared.events).await,
        None => std::future::pending().await,
    }
}

/// Listens on the first of the name's addresses that can be bound. `SO_REUSEADDR` is set, so that a restart need not
/// wait; `SO_REUSEPORT` is not, so that a port on which another socket listens is an error.
async fn listen(address: &str) -> io::Result<(TcpListener, SocketAddr)> {
    let mut failure = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    for address in tokio::net::lookup_host(address).await? {
        match listen_at(address) {
            Ok(listener) => {
                let address = listener.local_addr()?;
                return Ok((listener, address));
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Has the kernel drop the TCP segments that would begin a new connection: those with SYN and without ACK. Handshakes
/// that have begun go on.
fn drop_new_handshakes(listener: &TcpListener) -> io::Result<()> {
    // Classic BPF over the TCP header: the operations as in linux/bpf_common.h, the flags as in RFC 9293 section 3.1.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// Returns whether the error concerns a single connection that is gone already, and not the listening socket.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::TimedOut
    )
}

/// Forces the drain when it is dropped.
struct ForceOnDrop(Drain);

impl Drop for ForceOnDrop {
    fn drop(&mut self) {
        self.0.force();
    }
}

/// The number of open connections by lane. Only the accept loop adds to it, so the limit holds.
struct ConnectionCounts(Box<[AtomicUsize]>);

impl ConnectionCounts {
    fn new(lanes: usize) -> Self {
        Self((0..lanes).map(|_| AtomicUsize::new(0)).collect())
    }

    fn total(&self) -> usize {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn least_loaded_lane(&self) -> usize {
        let least = self.0.iter().enumerate().min_by_key(|(_, count)| count.load(Ordering::Relaxed));
        least.map_or(0, |(lane, _)| lane)
    }
}

/// Counts a connection while its task runs.
struct ConnectionSlot {
    counts: Arc<ConnectionCounts>,
    lane: usize,
    _tracked: [TaskTrackerToken; 2],
}

impl ConnectionSlot {
    fn take(counts: &Arc<ConnectionCounts>, lane: usize, drain: &Drain, own: &Drain) -> Self {
        counts.0[lane].fetch_add(1, Ordering::Relaxed);
        Self { counts: counts.clone(), lane, _tracked: [drain.token(), own.token()] }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.counts.0[self.lane].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_spread_over_the_lanes() {
        let counts = Arc::new(ConnectionCounts::new(3));
        let drain = Drain::new();
        let taken: Vec<ConnectionSlot> =
            (0..5).map(|_| ConnectionSlot::take(&counts, counts.least_loaded_lane(), &drain, &drain)).collect();
        assert_eq!(taken.iter().map(|slot| slot.lane).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
        assert_eq!((counts.total(), counts.least_loaded_lane()), (5, 2));
        drop(taken);
        assert_eq!(counts.total(), 0);
    }
}
