//! Serves one connection, in one task on one lane: TLS handshake, HTTP/1 or HTTP/2, its requests, its end. `server.rs`
//! spawns it. Connections share only what is read-only, so an error ends one connection alone.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::activity::{ConnectionActivity, ConnectionLimits, WatchdogCheck};
use super::forwarded::ClientIdentity;
use super::interface::{ConnectionContext, InterfaceShared, respond};
use super::tls::{self, ServerTls};
use super::tunnel::{SendTaskControl, Tunnel};
use super::wire::{self, Reset, Wire};
use wasmcage_core::drain::Drain;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::task::{self, Panic};
use wasmcage_core::telemetry::error_chain;

/// How long a client may go on sending after its response, and how many bytes, before the socket is closed.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long an idle connection may take to close in good order.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The response to a client that did not finish its request's head in time.
const HEAD_TIMEOUT_RESPONSE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

pub(super) struct ClientConnection {
    pub(super) shared: Arc<InterfaceShared>,
    pub(super) tls: Option<Arc<ServerTls>>,
    pub(super) lanes: Arc<Lanes>,
    pub(super) drain: Drain,
    pub(super) peer: SocketAddr,
}

/// How a connection ended.
enum ConnectionEnd<T> {
    /// It ended by itself, with this result.
    Completed(T),
    /// A limit was reached.
    TimedOut(WatchdogCheck),
    /// The drain was forced.
    Forced,
}

impl ClientConnection {
    /// Serves the connection until it ends.
    pub(super) async fn serve(self, socket: TcpStream) {
        let served = match &self.tls {
            Some(tls) => self.serve_tls(tls, socket).await,
            None => self.serve_plain(socket).await,
        };
        if let Err(error) = served {
            self.shared.events.connection_ended(self.peer, &error);
        }
    }

    async fn serve_plain(&self, socket: TcpStream) -> io::Result<()> {
        let mut stream = registered(socket)?;
        let idle = self.shared.config.idle_timeout;
        let opening = tokio::select! {
            // Bytes that have arrived are served, even if the drain has begun.
            biased;
            opening = timeout(idle, wire::speaks_http2(&mut stream)) => opening,
            () = self.stop_grace_passed() => return Ok(()),
        };
        match opening {
            Ok(Ok((_, ahead))) if ahead.is_empty() => Ok(()),
            Ok(Ok((true, ahead))) => self.http2(stream, ahead, None).await,
            Ok(Ok((false, ahead))) => self.http1(stream, ahead, None).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// Waits until the server has been stopping for the time that a silent client gets.
    async fn stop_grace_passed(&self) {
        self.drain.stopping().await;
        tokio::time::sleep(self.stop_grace()).await;
    }

    /// The configured time, and at most half of a request's timeout: a stop waits no longer than that timeout.
    fn stop_grace(&self) -> Duration {
        self.shared.config.stop_grace.min(self.shared.endpoint.timeout() / 2)
    }

    async fn serve_tls(&self, tls: &ServerTls, socket: TcpStream) -> io::Result<()> {
        let stream = registered(socket)?;
        let handshake = tokio::select! {
            biased;
            handshake = timeout(tls.handshake_timeout(), tls.acceptor().accept(stream)) => handshake,
            () = self.drain.forcing() => return Ok(()),
        };
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.shared.events.handshake_failed(self.peer, &error);
                return Ok(());
            }
            Err(_) => {
                self.shared.events.handshake_failed(self.peer, &"handshake_timeout_ms passed");
                return Ok(());
            }
        };
        let session = stream.get_ref().1;
        let name = session.peer_certificates().and_then(|chain| tls::name_in(chain.first()?));
        if session.alpn_protocol() == Some(tls::ALPN_HTTP2) {
            self.http2(stream, BytesMut::new(), Some(name)).await
        } else {
            self.http1(stream, BytesMut::new(), Some(name)).await
        }
    }

    async fn http1<S>(&self, stream: S, ahead: BytesMut, tls: Option<Option<String>>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
    {
        let config = &self.shared.config;
        let context = self.context(false, tls);
        let activity = context.activity.clone();
        let for_requests = context.clone();
        let wire = TokioIo::new(Wire::new(stream, ahead, activity.clone()));
        let mut builder = http1::Builder::new();
        builder.keep_alive(config.keep_alive).half_close(true).max_header_size(config.header_bytes_max);
        if config.headers_max != HYPER_HEADERS_MAX {
            builder.max_headers(config.headers_max);
        }
        let mut connection =
            builder.serve_connection(wire, service_fn(move |request| respond(for_requests.clone(), request)));
        let end = self.drive(&mut connection, http1::Connection::graceful_shutdown, &activity).await;
        let http1::Parts { io, read_buf, .. } = connection.into_parts();
        let mut wire = io.into_inner();
        let tunnel = context.tunnel.lock().take();
        match end {
            ConnectionEnd::Completed(result) if let Some(tunnel) = tunnel => {
                // If it succeeded, hyper has sent the head of the response that begins the tunnel.
                result.map_err(io::Error::other)?;
                Box::pin(self.tunnel(wire, read_buf, tunnel, &activity)).await
            }
            ConnectionEnd::Completed(result) => {
                // The rest of a malformed or unread request may still be arriving.
                if activity.must_linger() || result.as_ref().is_err_and(hyper::Error::is_parse) {
                    self.linger(&mut wire).await;
                }
                result.map_err(io::Error::other)
            }
            ConnectionEnd::TimedOut(WatchdogCheck::SlowHead) if activity.is_between_responses() => {
                timeout(LINGER, wire.write_all(HEAD_TIMEOUT_RESPONSE)).await??;
                self.linger(&mut wire).await;
                Ok(())
            }
            ConnectionEnd::TimedOut(limit) => timed_out(limit),
            ConnectionEnd::Forced => Ok(()),
        }
    }

    /// Serves the tunnel that an HTTP/1 connection has become, under the same watchdog and drain as its requests.
    async fn tunnel<S>(
        &self,
        mut wire: Wire<S>,
        ahead: Bytes,
        tunnel: Tunnel,
        activity: &ConnectionActivity,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Reset + Unpin,
    {
        let end = {
            let mut run = pin!(tunnel.run(&mut wire, ahead, None));
            self.drive(&mut run, |_| {}, activity).await
        };
        let result = match end {
            ConnectionEnd::Completed(Ok(())) => {
                if activity.must_linger() {
                    self.linger(&mut wire).await;
                }
                return Ok(());
            }
            ConnectionEnd::Completed(Err(error)) => Err(io::Error::other(error_chain(&error))),
            ConnectionEnd::TimedOut(limit) => timed_out(limit),
            ConnectionEnd::Forced => Ok(()),
        };
        wire.reset_on_drop();
        result
    }

    async fn http2<S>(&self, stream: S, ahead: BytesMut, tls: Option<Option<String>>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let config = &self.shared.config;
        let context = self.context(true, tls);
        let activity = context.activity.clone();
        let wire = TokioIo::new(Wire::new(stream, ahead, activity.clone()));
        let mut builder = http2::Builder::new(OverLanes(self.lanes.clone()));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(config.streams_max)
            .max_header_list_size(config.header_bytes_max as u32)
            // Notices a peer that has vanished with open streams.
            .keep_alive_interval(config.idle_timeout)
            .keep_alive_timeout(config.write_timeout);
        let mut connection =
            builder.serve_connection(wire, service_fn(move |request| respond(context.clone(), request)));
        match self.drive(&mut connection, http2::Connection::graceful_shutdown, &activity).await {
            ConnectionEnd::Completed(result) => result.map_err(io::Error::other),
            ConnectionEnd::TimedOut(limit) => timed_out(limit),
            ConnectionEnd::Forced => Ok(()),
        }
    }

    /// The context of this connection's requests. `tls` is none on a plain connection; within it is the name in the
    /// client's certificate, if it showed one.
    fn context(&self, multiplexed: bool, tls: Option<Option<String>>) -> Arc<ConnectionContext> {
        let peer = ClientIdentity::new(self.peer.ip(), tls.is_some(), tls.flatten());
        Arc::new(ConnectionContext {
            peer,
            activity: Arc::new(ConnectionActivity::new(multiplexed)),
            interface: Arc::from(&*self.shared.endpoint.interface),
            shared: self.shared.clone(),
            tunnel: Mutex::new(None),
        })
    }

    /// Runs the connection until it ends, a limit is reached or the drain is forced.
    ///
    /// When the drain begins, requests may be on their way. HTTP/2 sends a GOAWAY that loses none of them. HTTP/1 has
    /// no such thing: there the next response says that it is the last, and a connection without a request is closed
    /// only after a while.
    async fn drive<C>(
        &self,
        connection: &mut C,
        finish: impl Fn(Pin<&mut C>),
        activity: &ConnectionActivity,
    ) -> ConnectionEnd<C::Output>
    where
        C: Future + Unpin,
    {
        let config = &self.shared.config;
        // Computed for each check, since the request's timeout may change while the connection is open.
        let limits = || ConnectionLimits {
            idle: config.idle_timeout,
            head: config.header_timeout,
            write: config.write_timeout,
            request: self.shared.endpoint.timeout() + config.body_timeout + config.write_timeout,
            stopping: self.stop_grace(),
        };
        // Within this set a signal is polled only when it has woken the task, not at each poll of the connection.
        let mut signals =
            FuturesUnordered::from_iter([drain_signal(&self.drain, false), drain_signal(&self.drain, true)]);
        let mut watchdog = pin!(sleep_until(Instant::now() + limits().shortest()));
        if self.drain.begun() {
            // This comes before the first request is read, since its response must say so.
            activity.stop();
        }
        let (mut goaway_sent, mut closing) = (false, false);
        std::future::poll_fn(move |cx| {
            loop {
                // The connection comes before the signals, so that a request that has arrived is served.
                if let Poll::Ready(result) = Pin::new(&mut *connection).poll(cx) {
                    return Poll::Ready(ConnectionEnd::Completed(result));
                }
                if !goaway_sent && activity.may_send_goaway() {
                    goaway_sent = true;
                    finish(Pin::new(&mut *connection));
                    continue;
                }
                match signals.poll_next_unpin(cx) {
                    Poll::Ready(Some(true)) => return Poll::Ready(ConnectionEnd::Forced),
                    Poll::Ready(Some(false)) => {
                        activity.stop();
                        watchdog.as_mut().reset(Instant::now());
                        continue;
                    }
                    Poll::Ready(None) | Poll::Pending => {}
                }
                if watchdog.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                match activity.check(&limits(), Instant::now()) {
                    WatchdogCheck::NextAt(until) => watchdog.as_mut().reset(until),
                    WatchdogCheck::Idle if !closing => {
                        closing = true;
                        finish(Pin::new(&mut *connection));
                        watchdog.as_mut().reset(Instant::now() + CLOSE_TIMEOUT);
                    }
                    limit => return Poll::Ready(ConnectionEnd::TimedOut(limit)),
                }
            }
        })
        .await
    }

    /// Closes the sending side, then reads what the client still sends: a socket that is closed with unread bytes is
    /// reset, and the reset may overtake the response.
    async fn linger<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) {
        let drained = async {
            stream.shutdown().await?;
            let mut rest = stream.take(LINGER_BYTES_MAX as u64);
            let mut buffer = vec![0; 16 * 1024];
            while rest.read(&mut buffer).await? > 0 {}
            io::Result::Ok(())
        };
        tokio::select! {
            // The result does not matter: the response was sent, and the connection is over.
            _ = drained => {}
            () = tokio::time::sleep(LINGER) => {}
            () = self.drain.forcing() => {}
        }
    }
}

/// The error to log for a connection whose client reached a limit; idle connections are no error.
fn timed_out(limit: WatchdogCheck) -> io::Result<()> {
    let text = match limit {
        WatchdogCheck::NextAt(_) | WatchdogCheck::Idle => return Ok(()),
        WatchdogCheck::SlowHead => "header_timeout_ms passed",
        WatchdogCheck::Stuck => "write_timeout_ms passed",
    };
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

/// Hyper's default limit on headers, for which it keeps them on the stack; with any other limit they are on the heap.
const HYPER_HEADERS_MAX: usize = 100;

/// Waits until the drain stops the intake, or is forced; returns `forced`.
async fn drain_signal(drain: &Drain, forced: bool) -> bool {
    if forced {
        drain.forcing().await;
    } else {
        drain.stopping().await;
    }
    forced
}

/// Registers the socket with this lane's runtime.
fn registered(socket: TcpStream) -> io::Result<tokio::net::TcpStream> {
    socket.set_nonblocking(true)?;
    // Responses are written whole, so none should be delayed to be joined with the next.
    socket.set_nodelay(true)?;
    tokio::net::TcpStream::from_std(socket)
}

/// Runs the streams of an HTTP/2 connection on all lanes in turn, so that one connection can use every core.
#[derive(Clone)]
struct OverLanes(Arc<Lanes>);

impl<F> hyper::rt::Executor<F> for OverLanes
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let lane = self.0.next();
        match SendTaskControl::take() {
            None => lane.spawn(async move { log_panic(task::catch_panic_async(SendTaskControl::scope(stream)).await) }),
            Some(control) => lane.spawn(async move { log_panic(task::catch_panic_async(control.run(stream)).await) }),
        };
    }
}

fn log_panic<T>(result: Result<T, Panic>) {
    if let Err(panic) = result {
        tracing::error!(error = %panic, "a stream of HTTP/2 panicked");
    }
}
