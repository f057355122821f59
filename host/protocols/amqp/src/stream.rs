//! The byte stream between the client library and a broker. The connection is made and secured here, not by the
//! library: with `amqps` there is TLS or no connection, and only the configured roots are trusted. Everything that is
//! read passes the guard.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_compat::Compat;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::broker::Broker;
use super::guard::{Guard, Mark};

/// The time for TCP, and again for TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 64 * 1024;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// The stream that the library reads from and writes to.
pub(super) struct GuardedStream {
    socket: Box<dyn Socket>,
    guard: Guard,
    /// Bytes that passed the guard, and how many of them the library has read.
    ready: Vec<u8>,
    taken: usize,
    buffer: Box<[u8]>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Connects, with TLS if the broker is configured so. `ended` makes every read fail.
///
/// # Errors
/// Those of the operating system and of TLS; `TimedOut`.
pub(super) async fn connect(
    broker: &Broker,
    mark: Arc<Mark>,
    ended: CancellationToken,
) -> io::Result<Compat<GuardedStream>> {
    let address = (broker.host.as_str(), broker.port);
    let socket = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
    socket.set_nodelay(true)?;
    let socket: Box<dyn Socket> = match &broker.tls {
        None => Box::new(socket),
        Some(tls) => {
            let name = ServerName::try_from(broker.host.clone()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(tls.config.clone());
            Box::new(tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(name, socket)).await??)
        }
    };
    Ok(Compat::new(GuardedStream {
        socket,
        guard: Guard::new(broker.body_bytes_max, mark),
        ready: Vec::new(),
        taken: 0,
        buffer: vec![0; READ_BYTES].into(),
        ended: Box::pin(ended.cancelled_owned()),
    }))
}

impl AsyncRead for GuardedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.taken == this.ready.len() {
            if this.ended.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            let mut read = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.socket).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            (this.taken, this.ready) = (0, std::mem::take(&mut this.ready));
            this.ready.clear();
            this.guard.feed(read.filled(), &mut this.ready)?;
        }
        let ready = &this.ready[this.taken..];
        let ready = &ready[..ready.len().min(to.remaining())];
        to.put_slice(ready);
        this.taken += ready.len();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// The library's view of tokio, with `GuardedStream` as its type of connections.
#[derive(Clone, Debug)]
pub(super) struct GuardedRuntime(Tokio);

/// Wraps the runtime on which the caller runs.
pub(super) fn runtime() -> Runtime<GuardedRuntime> {
    Runtime::new(GuardedRuntime(Tokio::default().with_handle(Handle::current())))
}

impl RuntimeKit for GuardedRuntime {}

impl Executor for GuardedRuntime {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, work: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for GuardedRuntime {
    type TcpStream = Compat<GuardedStream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl futures_io::AsyncRead + futures_io::AsyncWrite + Send + Unpin + 'static> {
        Err::<Self::TcpStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, period: Duration) -> impl futures_util::Stream<Item = Instant> + Send + 'static {
        self.0.interval(period)
    }

    /// Always fails: the library gets its connections from `connect`.
    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
