//! Protocol `lines`: each line that a TCP client sends is a request to the interface's `handler` module, with action `line` and
//! the line as its body; the answer's body goes back as a line. It shows what a protocol outside of the host is made of.
//!
//! `[interfaces.x] protocol = "lines"`: `listen` (`127.0.0.1:0`), `line_bytes_max` (64 KiB), `connections_max` (100).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use wasmcage_config::{ConfigError, ListenAddress, ProtocolInfo, Section};
use wasmcage_core::request::{Facts, Request, RequestContext};
use wasmcage_protocol::{Address, Interface, InterfaceContext, InterfaceError, Protocol};

const NAME: &str = "lines";

pub struct Lines;

impl Protocol for Lines {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(NAME)
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        let listen = section.parsed("listen", ListenAddress("127.0.0.1:0".into()), "host:port");
        let interface = LinesInterface {
            listen: listen.0,
            line_bytes_max: section.integer("line_bytes_max", 64 << 10, 1..=16 << 20),
            connections_max: section.integer("connections_max", 100, 1..=10_000) as usize,
        };
        section.finish().map(|()| Box::new(interface) as Box<dyn Interface>)
    }
}

struct LinesInterface {
    listen: String,
    line_bytes_max: u64,
    connections_max: usize,
}

#[async_trait]
impl Interface for LinesInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let failed = |source| InterfaceError::Listen {
            interface: cx.endpoint.interface.to_string(),
            address: self.listen.clone(),
            source,
        };
        let listener = TcpListener::bind(&self.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let listening = cx.endpoint.listen(Address::Outside(format!("lines://{address}")));
        let (seats, connections) = (Arc::new(Semaphore::new(self.connections_max)), TaskTracker::new());
        // With all seats taken, further clients wait in the kernel's backlog.
        while let Some(accepted) = cx.drain.unless_begun(accept(&listener, &seats)).await {
            let Ok((socket, peer, seat)) = accepted else {
                // Such as no descriptor left: the next one may be luckier.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let connection = Connection { cx: cx.clone(), peer, line_bytes_max: self.line_bytes_max };
            let work = async move {
                let _seat = seat;
                if let Err(error) = connection.serve(socket).await {
                    let (cage, interface) = (&*connection.cx.endpoint.cage, &*connection.cx.endpoint.interface);
                    tracing::debug!(cage, interface, %peer, %error, "connection ended");
                }
            };
            connections.spawn_on(cx.tasks.run_once("a connection", work).map(|_| ()), cx.lanes.next());
        }
        drop((listening, listener));
        connections.close();
        // Whoever drains the cage sets the time, and drops this future at its end.
        connections.wait().await;
        Ok(())
    }
}

async fn accept(
    listener: &TcpListener,
    seats: &Arc<Semaphore>,
) -> io::Result<(std::net::TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let seat = seats.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (socket, peer) = listener.accept().await?;
    // A lane has a runtime of its own.
    Ok((socket.into_std()?, peer, seat))
}

struct Connection {
    cx: InterfaceContext,
    peer: SocketAddr,
    line_bytes_max: u64,
}

impl Connection {
    /// Until the client ends, sends too long a line, or the drain begins between two lines.
    async fn serve(&self, socket: std::net::TcpStream) -> io::Result<()> {
        let mut socket = BufReader::new(TcpStream::from_std(socket)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut limited = (&mut socket).take(self.line_bytes_max + 1);
            tokio::select! {
                read = limited.read_until(b'\n', &mut line) => { read?; }
                () = self.cx.drain.stopping() => return Ok(()),
            }
            match line.pop() {
                None => return Ok(()),
                Some(b'\n') => {}
                Some(_) => return Err(io::Error::other("a line without an end, or longer than line_bytes_max")),
            }
            let mut answer = self.answer(Bytes::copy_from_slice(&line)).await;
            answer.push(b'\n');
            socket.write_all(&answer).await?;
        }
    }

    async fn answer(&self, body: Bytes) -> Vec<u8> {
        let InterfaceContext { dispatch, endpoint, .. } = &self.cx;
        let route = match dispatch.route() {
            Ok(Some(route)) => route,
            Ok(None) => {
                endpoint.count_without_module();
                return b"error module-not-ready".to_vec();
            }
            Err(error) => return format!("error {}", error.code()).into_bytes(),
        };
        let mut facts = Facts::default();
        facts.set(Facts::PEER_ADDRESS, self.peer.to_string());
        let context = RequestContext::new(endpoint.interface.clone(), NAME, endpoint.timeout(), Arc::new(facts));
        let (action, target) = ("line".to_owned(), endpoint.interface.to_string());
        let request = Request { context: context.into(), action, target, headers: Vec::new(), body, body_room: None };
        match dispatch.handle(route, request).await {
            Ok(reply) => reply.body.to_vec(),
            Err(error) => format!("error {}", error.code()).into_bytes(),
        }
    }
}
