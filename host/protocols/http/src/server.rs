//! One listening socket and its accept loop. The loop runs on the ordinary runtime and hands each connection to the lane
//! with the fewest; no error ends it, only the drain, at whose beginning the port is free at once for a successor.

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
use super::interface::Site;
use super::tls::Tls;
use wasmcage_core::drain::Drain;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::task;
use wasmcage_protocol::{InterfaceError, ListenGuard};

/// The pause after an error that the next attempt would meet again, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that the kernel may hold until they are accepted. A burst over it costs its clients a second each.
const BACKLOG: u32 = 4096;

/// How long clients that the kernel is about to connect are still taken when the intake stops: closing the socket resets what
/// it has connected already.
const LAST_HANDSHAKES: Duration = Duration::from_millis(50);

pub(super) struct Server {
    listener: TcpListener,
    intake: Intake,
}

/// Where accepted connections go.
struct Intake {
    address: SocketAddr,
    site: Arc<Site>,
    tls: Option<Arc<Tls>>,
    lanes: Arc<Lanes>,
    seats: Arc<Seats>,
}

impl Server {
    /// # Errors
    /// `Listen` when the address cannot be had, `Setup` when the certificates cannot be used.
    pub(super) async fn bind(site: Site, lanes: Arc<Lanes>) -> Result<Self, InterfaceError> {
        let tls = match site.config.tls.clone() {
            Some(files) => Some(Arc::new(Tls::load(files).await.map_err(|error| InterfaceError::Setup {
                interface: site.endpoint.interface.to_string(),
                text: "tls cannot be set up".to_owned(),
                source: Some(Box::new(error)),
            })?)),
            None => None,
        };
        let (listener, address) = listen(&site.config.listen).await.map_err(|source| InterfaceError::Listen {
            interface: site.endpoint.interface.to_string(),
            address: site.config.listen.clone(),
            source,
        })?;
        let seats = Arc::new(Seats::new(lanes.count()));
        Ok(Self { listener, intake: Intake { address, site: Arc::new(site), tls, lanes, seats } })
    }

    /// Where clients find it.
    pub(super) fn url(&self) -> String {
        let scheme = if self.intake.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/", self.intake.address)
    }

    /// Serves until the drain begins and the last connection has ended, or until it is forced. Dropping this future ends
    /// all connections.
    pub(super) async fn run(self, listening: ListenGuard, drain: Drain) {
        // Counts this interface's connections, and ends them with this future.
        let own = ForceOnDrop(drain.child());
        tokio::select! {
            () = self.intake.accept_forever(&self.listener, &drain, &own.0) => {}
            () = reload_certificates(self.intake.tls.as_deref(), &self.intake.site) => {}
            () = drain.stopping() => {}
        }
        let Self { listener, intake } = self;
        intake.accept_the_last(&listener, &drain, &own.0).await;
        drop(listener);
        drop(listening);
        intake.site.events.stopped(intake.seats.total());
        // Whoever drains the cage sets the time and forces; then the connections drop by themselves.
        own.0.complete(Duration::MAX).await;
    }
}

impl Intake {
    async fn accept_forever(&self, listener: &TcpListener, drain: &Drain, own: &Drain) {
        loop {
            let accepted = listener.accept().await;
            // The lane's runtime is another one.
            match accepted.and_then(|(socket, peer)| Ok((socket.into_std()?, peer))) {
                Ok((socket, peer)) => self.seat(socket, peer, drain, own),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    self.site.events.accept_failed(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Clients that the kernel has connected already, or is about to, are served rather than reset. New ones are not let in
    /// meanwhile: their systems try again in a second, and find either the successor or a closed port. Where the kernel cannot
    /// be told so, a client that connects in the very last moment is reset.
    async fn accept_the_last(&self, listener: &TcpListener, drain: &Drain, own: &Drain) {
        let until = match let_nobody_in(listener) {
            Ok(()) => Instant::now() + LAST_HANDSHAKES,
            Err(_) => Instant::now(),
        };
        for _ in 0..BACKLOG {
            // A timeout of zero takes what is there.
            match timeout_at(until, listener.accept()).await {
                Ok(accepted) => match accepted.and_then(|(socket, peer)| Ok((socket.into_std()?, peer))) {
                    Ok((socket, peer)) => self.seat(socket, peer, drain, own),
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        self.site.events.accept_failed(&error);
                        return;
                    }
                },
                Err(_) => return,
            }
        }
    }

    /// Hands a connection to a lane, where it stays.
    fn seat(&self, socket: TcpStream, peer: SocketAddr, drain: &Drain, own: &Drain) {
        let connections_max = self.site.config.connections_max;
        if self.seats.total() >= connections_max {
            self.site.events.connection_refused(connections_max);
            return;
        }
        let lane = self.seats.least_taken();
        let seat = Seat::take(&self.seats, lane, drain, own);
        let connection = connection::Connection {
            site: self.site.clone(),
            tls: self.tls.clone(),
            lanes: self.lanes.clone(),
            drain: own.clone(),
            peer,
        };
        self.lanes.handle(lane).spawn(async move {
            let _seat = seat;
            let (site, peer) = (connection.site.clone(), connection.peer);
            if let Err(panic) = task::catch_panic_async(connection.serve(socket)).await {
                site.events.connection_panicked(peer, &panic);
            }
        });
    }
}

/// Never ends: without TLS there is nothing to reload.
async fn reload_certificates(tls: Option<&Tls>, site: &Site) {
    match tls {
        Some(tls) => tls.reload_forever(&site.events).await,
        None => std::future::pending().await,
    }
}

/// The first of the address's meanings that can be had. With `SO_REUSEADDR` a restart need not wait; without
/// `SO_REUSEPORT` a port that another socket listens at is an error.
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

/// Has the kernel drop what would begin a new connection: TCP segments with SYN and without ACK. Handshakes that have begun go
/// on.
fn let_nobody_in(listener: &TcpListener) -> io::Result<()> {
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

/// Errors that concern a connection that is gone already, not the socket that listens.
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

struct ForceOnDrop(Drain);

impl Drop for ForceOnDrop {
    fn drop(&mut self) {
        self.0.force();
    }
}

/// Open connections, by lane. Only the accept loop adds, so the limit holds.
struct Seats(Box<[AtomicUsize]>);

impl Seats {
    fn new(lanes: usize) -> Self {
        Self((0..lanes).map(|_| AtomicUsize::new(0)).collect())
    }

    fn total(&self) -> usize {
        self.0.iter().map(|taken| taken.load(Ordering::Relaxed)).sum()
    }

    fn least_taken(&self) -> usize {
        let taken = self.0.iter().enumerate().min_by_key(|(_, taken)| taken.load(Ordering::Relaxed));
        taken.map_or(0, |(lane, _)| lane)
    }
}

/// Held by a connection's task for its whole life.
struct Seat {
    seats: Arc<Seats>,
    lane: usize,
    _tracked: [TaskTrackerToken; 2],
}

impl Seat {
    fn take(seats: &Arc<Seats>, lane: usize, drain: &Drain, own: &Drain) -> Self {
        seats.0[lane].fetch_add(1, Ordering::Relaxed);
        Self { seats: seats.clone(), lane, _tracked: [drain.token(), own.token()] }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.0[self.lane].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_spread_over_the_lanes() {
        let seats = Arc::new(Seats::new(3));
        let drain = Drain::new();
        let taken: Vec<Seat> = (0..5).map(|_| Seat::take(&seats, seats.least_taken(), &drain, &drain)).collect();
        assert_eq!(taken.iter().map(|seat| seat.lane).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
        assert_eq!((seats.total(), seats.least_taken()), (5, 2));
        drop(taken);
        assert_eq!(seats.total(), 0);
    }
}
