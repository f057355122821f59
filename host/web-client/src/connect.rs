//! Makes a connection: looks up the name's addresses, connects to the first that answers, and negotiates TLS. Each step has
//! its own errors.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use http::uri::Scheme;
use hyper::rt::ReadBufCursor;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::error::{WebError, WebErrorKind, find};
use super::{ClientSettings, Http2, proxy};
use wasmcage_config::{Proxy, url_port};

/// If an address has not answered after this time, the next one is tried at the same time.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

#[derive(Clone)]
pub(super) struct Connector {
    tls: TlsConnector,
    server_name: Option<ServerName<'static>>,
    timeout: Duration,
    proxy: Option<Arc<Proxy>>,
    permits: Arc<Semaphore>,
}

impl Connector {
    pub(super) fn new(settings: &ClientSettings, proxy: Option<Arc<Proxy>>) -> Self {
        let mut config = (*settings.tls.config).clone();
        let (http1, http2) = (b"http/1.1".to_vec(), b"h2".to_vec());
        config.alpn_protocols = match settings.http2 {
            Http2::Auto => vec![http2, http1],
            Http2::Only => vec![http2],
            Http2::Never => vec![http1],
        };
        Self {
            tls: TlsConnector::from(Arc::new(config)),
            server_name: settings.tls.server_name.clone(),
            timeout: settings.connect_timeout,
            proxy,
            permits: Arc::new(Semaphore::new(settings.connections_max)),
        }
    }

    async fn connect(self, uri: Uri) -> Result<ServerStream, WebError> {
        let timed_out = |what: &str| {
            let text = format!("{what} took longer than {} ms", self.timeout.as_millis());
            WebError::new(WebErrorKind::ConnectTimedOut, text)
        };
        let permit = self.permits.clone().try_acquire_owned();
        let permit =
            permit.map_err(|_| WebError::new(WebErrorKind::ConnectionLimit, "too many connections are open"))?;
        let limit = Instant::now() + self.timeout;
        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        let host = uri.host().unwrap_or_default();
        let port =
            url_port(&uri).ok_or_else(|| WebError::new(WebErrorKind::Uri, format!("{uri} has no valid port")))?;
        let proxy = self.proxy.as_deref().filter(|proxy| proxy::leads_to(proxy, &uri));
        let (next, next_port) = proxy.map_or((bare(host), port), |proxy| (bare(&proxy.host), proxy.port));

        let addresses = match timeout_at(limit, addresses(next, next_port)).await {
            Ok(addresses) => addresses.map_err(|error| WebError::new(WebErrorKind::Dns, format!("{next}: {error}")))?,
            Err(_) => {
                return Err(WebError { kind: WebErrorKind::DnsTimedOut, ..timed_out("the lookup of the name") });
            }
        };
        let tcp = match timeout_at(limit, first_to_answer(addresses)).await {
            Ok(tcp) => tcp.map_err(|error| of_tcp(&error, next, next_port))?,
            Err(_) => return Err(timed_out("connecting")),
        };
        // Without this, small requests would wait for the answer to the one before.
        let _ = tcp.set_nodelay(true);
        let uses = UseCount::default();
        if !secure {
            let io = TokioIo::new(Box::new(tcp) as Box<dyn Io>);
            return Ok(ServerStream { io, http2: false, proxied: proxy.is_some(), uses, _permit: permit });
        }
        let tcp = match proxy {
            None => tcp,
            Some(proxy) => match timeout_at(limit, proxy::tunnel(proxy, tcp, host, port)).await {
                Ok(tunnel) => tunnel?,
                Err(_) => return Err(timed_out("the proxy's answer")),
            },
        };
        let host = bare(host);
        let name = match self.server_name.clone() {
            Some(name) => name,
            None => ServerName::try_from(host.to_owned())
                .map_err(|_| WebError::new(WebErrorKind::Certificate, format!("{host:?} is no name for TLS")))?,
        };
        let tls = match timeout_at(limit, self.tls.connect(name, tcp)).await {
            Ok(tls) => tls.map_err(|error| of_tls(&error))?,
            Err(_) => return Err(timed_out("the TLS handshake")),
        };
        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(ServerStream { io: TokioIo::new(Box::new(tls)), http2, proxied: false, uses, _permit: permit })
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = ServerStream;
    type Error = WebError;
    type Future = Pin<Box<dyn Future<Output = Result<ServerStream, WebError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), WebError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// Removes the brackets that an address has in a URL.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Looks up the addresses of a name, in the system's order of preference, but alternating between the two families.
async fn addresses(host: &str, port: u16) -> io::Result<VecDeque<SocketAddr>> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut ordered = VecDeque::new();
    while ordered.len() < ADDRESSES_MAX && !(first.is_empty() && second.is_empty()) {
        ordered.extend(first.pop_front());
        ordered.extend(second.pop_front());
    }
    match ordered.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
        false => Ok(ordered),
    }
}

/// Connects to the first address that answers. Each address gets a head start on the next one.
async fn first_to_answer(mut addresses: VecDeque<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "no address");
    loop {
        attempts.extend(addresses.pop_front().map(TcpStream::connect));
        tokio::select! {
            attempt = attempts.next() => match attempt {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = tokio::time::sleep(NEXT_ADDRESS), if !addresses.is_empty() => {}
        }
    }
}

fn of_tcp(error: &io::Error, host: &str, port: u16) -> WebError {
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused => WebErrorKind::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => WebErrorKind::Unreachable,
        io::ErrorKind::TimedOut => WebErrorKind::ConnectTimedOut,
        _ => WebErrorKind::Connect,
    };
    WebError::new(kind, format!("{host}:{port}: {error}"))
}

fn of_tls(error: &io::Error) -> WebError {
    let cause = error.get_ref().and_then(|inner| find::<rustls::Error>(inner));
    let kind = match cause {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            WebErrorKind::Certificate
        }
        Some(rustls::Error::AlertReceived(alert)) => WebErrorKind::Alert(u8::from(*alert)),
        _ => WebErrorKind::Tls,
    };
    WebError::new(kind, format!("TLS: {error}"))
}

/// Counts the requests that a connection has served.
#[derive(Clone, Debug, Default)]
pub(super) struct UseCount(Arc<AtomicUsize>);

impl UseCount {
    /// Counts a request. Returns how many there were before.
    pub(super) fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection to a server, with or without TLS, for hyper.
pub(super) struct ServerStream {
    io: TokioIo<Box<dyn Io>>,
    http2: bool,
    /// The other end is a proxy that gets requests for any server.
    proxied: bool,
    uses: UseCount,
    /// Limits the number of connections; released when this one is closed.
    _permit: OwnedSemaphorePermit,
}

impl Connection for ServerStream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.proxied).extra(self.uses.clone());
        if self.http2 { connected.negotiated_h2() } else { connected }
    }
}

impl hyper::rt::Read for ServerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, buffers)
    }
}

#[cfg(test)]
mod tests;
