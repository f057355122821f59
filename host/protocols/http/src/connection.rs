//! The life of one connection, in one task on one lane: TLS handshake, HTTP/1 or HTTP/2, its requests, its end. Spawned by
//! `server.rs`. Nothing here is shared with another connection but what is read only; an error ends this connection alone.

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

use super::forwarded::Peer;
use super::interface::{Site, Visit, answer};
use super::pulse::{Limits, Pulse, Verdict};
use super::tls::{self, Tls};
use super::tunnel::{Orders, Tunnel};
use super::wire::{self, Reset, Wire};
use wasmcage_core::drain::Drain;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::task::{self, Panic};
use wasmcage_core::telemetry::error_chain;

/// How long, and for how many bytes, a client may go on sending after its answer before the socket is closed on it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long an HTTP/2 connection may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(1);

/// For a client that never finished its request's head.
const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

pub(super) struct Connection {
    pub(super) site: Arc<Site>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) lanes: Arc<Lanes>,
    pub(super) drain: Drain,
    pub(super) peer: SocketAddr,
}

/// Why a conversation was left.
enum End<T> {
    /// It came to its end by itself.
    Over(T),
    Late(Verdict),
    Forced,
}

impl Connection {
    pub(super) async fn serve(self, socket: TcpStream) {
        let served = match &self.tls {
            Some(tls) => self.serve_tls(tls, socket).await,
            None => self.serve_plain(socket).await,
        };
        if let Err(error) = served {
            self.site.events.connection_ended(self.peer, &error);
        }
    }

    async fn serve_plain(&self, socket: TcpStream) -> io::Result<()> {
        let mut stream = registered(socket)?;
        let idle = self.site.config.idle_timeout;
        let opening = tokio::select! {
            // First: what has come already is served, though the drain has begun.
            biased;
            opening = timeout(idle, wire::speaks_http2(&mut stream)) => opening,
            () = self.given_up() => return Ok(()),
        };
        match opening {
            Ok(Ok((_, ahead))) if ahead.is_empty() => Ok(()),
            Ok(Ok((true, ahead))) => self.http2(stream, ahead, None).await,
            Ok(Ok((false, ahead))) => self.http1(stream, ahead, None).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// Resolves when the server has been stopping for so long that a client which has sent nothing will hardly do so.
    async fn given_up(&self) {
        self.drain.stopping().await;
        tokio::time::sleep(self.stop_grace()).await;
    }

    /// A stop waits for requests only as long as one may take, of which this must leave something.
    fn stop_grace(&self) -> Duration {
        self.site.config.stop_grace.min(self.site.endpoint.timeout() / 2)
    }

    async fn serve_tls(&self, tls: &Tls, socket: TcpStream) -> io::Result<()> {
        let stream = registered(socket)?;
        let handshake = tokio::select! {
            biased;
            handshake = timeout(tls.handshake_timeout(), tls.acceptor().accept(stream)) => handshake,
            () = self.drain.forcing() => return Ok(()),
        };
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.site.events.handshake_failed(self.peer, &error);
                return Ok(());
            }
            Err(_) => {
                self.site.events.handshake_failed(self.peer, &"handshake_timeout_ms passed");
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
        let config = &self.site.config;
        let visit = self.visit(false, tls);
        let pulse = visit.pulse.clone();
        let visited = visit.clone();
        let wire = TokioIo::new(Wire::new(stream, ahead, pulse.clone()));
        let mut builder = http1::Builder::new();
        builder.keep_alive(config.keep_alive).half_close(true).max_header_size(config.header_bytes_max);
        if config.headers_max != HYPER_HEADERS_MAX {
            builder.max_headers(config.headers_max);
        }
        let mut conversation =
            builder.serve_connection(wire, service_fn(move |request| answer(visited.clone(), request)));
        let end = self.attend(&mut conversation, http1::Connection::graceful_shutdown, &pulse).await;
        let http1::Parts { io, read_buf, .. } = conversation.into_parts();
        let mut wire = io.into_inner();
        let tunnel = visit.tunnel.lock().take();
        match end {
            End::Over(result) if let Some(tunnel) = tunnel => {
                // Then hyper has sent the head of the answer that begins it.
                result.map_err(io::Error::other)?;
                Box::pin(self.tunnel(wire, read_buf, tunnel, &pulse)).await
            }
            End::Over(result) => {
                // What was not understood, or not read to its end, may still be arriving.
                if pulse.must_linger() || result.as_ref().is_err_and(hyper::Error::is_parse) {
                    self.linger(&mut wire).await;
                }
                result.map_err(io::Error::other)
            }
            End::Late(Verdict::SlowHead) if pulse.between_answers() => {
                timeout(LINGER, wire.write_all(HEAD_TIMEOUT)).await??;
                self.linger(&mut wire).await;
                Ok(())
            }
            End::Late(verdict) => late(verdict),
            End::Forced => Ok(()),
        }
    }

    /// The rest of a connection of HTTP/1, under the same watchdog and the same orders as its requests.
    async fn tunnel<S>(&self, mut wire: Wire<S>, ahead: Bytes, tunnel: Tunnel, pulse: &Pulse) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Reset + Unpin,
    {
        let end = {
            let mut run = pin!(tunnel.run(&mut wire, ahead, None));
            self.attend(&mut run, |_| {}, pulse).await
        };
        let result = match end {
            End::Over(Ok(())) => {
                if pulse.must_linger() {
                    self.linger(&mut wire).await;
                }
                return Ok(());
            }
            End::Over(Err(error)) => Err(io::Error::other(error_chain(&error))),
            End::Late(verdict) => late(verdict),
            End::Forced => Ok(()),
        };
        wire.reset_on_drop();
        result
    }

    async fn http2<S>(&self, stream: S, ahead: BytesMut, tls: Option<Option<String>>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let config = &self.site.config;
        let visit = self.visit(true, tls);
        let pulse = visit.pulse.clone();
        let wire = TokioIo::new(Wire::new(stream, ahead, pulse.clone()));
        let mut builder = http2::Builder::new(OverLanes(self.lanes.clone()));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(config.streams_max)
            .max_header_list_size(config.header_bytes_max as u32)
            // A peer that vanished with streams open is noticed.
            .keep_alive_interval(config.idle_timeout)
            .keep_alive_timeout(config.write_timeout);
        let mut conversation =
            builder.serve_connection(wire, service_fn(move |request| answer(visit.clone(), request)));
        match self.attend(&mut conversation, http2::Connection::graceful_shutdown, &pulse).await {
            End::Over(result) => result.map_err(io::Error::other),
            End::Late(verdict) => late(verdict),
            End::Forced => Ok(()),
        }
    }

    /// `tls`: the name in the client's certificate, if it showed one; none on a plain connection.
    fn visit(&self, multiplexed: bool, tls: Option<Option<String>>) -> Arc<Visit> {
        let peer = Peer::new(self.peer.ip(), tls.is_some(), tls.flatten());
        Arc::new(Visit {
            peer,
            pulse: Arc::new(Pulse::new(multiplexed)),
            interface: Arc::from(&*self.site.endpoint.interface),
            site: self.site.clone(),
            tunnel: Mutex::new(None),
        })
    }

    /// Drives a conversation, under the watchdog and the drain's orders. Those are polled only when they have woken this
    /// task themselves: a poll of the conversation costs them nothing.
    ///
    /// When the drain begins, requests may be on their way. HTTP/2 says goodbye so that none is lost. HTTP/1 cannot: there the
    /// next answer says that it is the last, and a connection without a request is closed only after a while.
    async fn attend<C>(&self, conversation: &mut C, finish: impl Fn(Pin<&mut C>), pulse: &Pulse) -> End<C::Output>
    where
        C: Future + Unpin,
    {
        let config = &self.site.config;
        // Asked anew each time: the request's timeout may change while the connection is open.
        let limits = || Limits {
            idle: config.idle_timeout,
            head: config.header_timeout,
            write: config.write_timeout,
            request: self.site.endpoint.timeout() + config.body_timeout + config.write_timeout,
            leaving: self.stop_grace(),
        };
        let mut orders = FuturesUnordered::from_iter([order(&self.drain, false), order(&self.drain, true)]);
        let mut watch = pin!(sleep_until(Instant::now() + limits().shortest()));
        if self.drain.begun() {
            // Before its first request is read, whose answer must say so.
            pulse.leave();
        }
        let (mut goodbye, mut farewell) = (false, false);
        std::future::poll_fn(move |cx| {
            loop {
                // Before any order: a request that has come is served.
                if let Poll::Ready(result) = Pin::new(&mut *conversation).poll(cx) {
                    return Poll::Ready(End::Over(result));
                }
                if !goodbye && pulse.can_say_goodbye() {
                    goodbye = true;
                    finish(Pin::new(&mut *conversation));
                    continue;
                }
                match orders.poll_next_unpin(cx) {
                    Poll::Ready(Some(true)) => return Poll::Ready(End::Forced),
                    Poll::Ready(Some(false)) => {
                        pulse.leave();
                        watch.as_mut().reset(Instant::now());
                        continue;
                    }
                    Poll::Ready(None) | Poll::Pending => {}
                }
                if watch.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                match pulse.verdict(&limits(), Instant::now()) {
                    Verdict::Wait(until) => watch.as_mut().reset(until),
                    Verdict::Idle if !farewell => {
                        farewell = true;
                        finish(Pin::new(&mut *conversation));
                        watch.as_mut().reset(Instant::now() + FAREWELL);
                    }
                    late => return Poll::Ready(End::Late(late)),
                }
            }
        })
        .await
    }

    /// Ends the sending, then takes what the client still sends: a socket that is closed on unread bytes is reset, and the
    /// reset overtakes the answer.
    async fn linger<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) {
        let taken = async {
            stream.shutdown().await?;
            let mut rest = stream.take(LINGER_BYTES_MAX as u64);
            let mut buffer = vec![0; 16 * 1024];
            while rest.read(&mut buffer).await? > 0 {}
            io::Result::Ok(())
        };
        tokio::select! {
            // However it ends, the connection is over, and its answer was sent.
            _ = taken => {}
            () = tokio::time::sleep(LINGER) => {}
            () = self.drain.forcing() => {}
        }
    }
}

/// What a connection that was left because of its client is logged with.
fn late(verdict: Verdict) -> io::Result<()> {
    let text = match verdict {
        Verdict::Wait(_) | Verdict::Idle => return Ok(()),
        Verdict::SlowHead => "header_timeout_ms passed",
        Verdict::Stuck => "write_timeout_ms passed",
    };
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

/// Hyper keeps so many headers on the stack, and on the heap when any number is set.
const HYPER_HEADERS_MAX: usize = 100;

/// Resolves, to whether it must be dropped, when this connection may take no more requests, or must end.
async fn order(drain: &Drain, forced: bool) -> bool {
    if forced {
        drain.forcing().await;
    } else {
        drain.stopping().await;
    }
    forced
}

fn registered(socket: TcpStream) -> io::Result<tokio::net::TcpStream> {
    socket.set_nonblocking(true)?;
    // Answers are written whole; none is held back to be joined by another.
    socket.set_nodelay(true)?;
    tokio::net::TcpStream::from_std(socket)
}

/// The streams of an HTTP/2 connection run on all lanes in turn: one connection can use every core.
#[derive(Clone)]
struct OverLanes(Arc<Lanes>);

impl<F> hyper::rt::Executor<F> for OverLanes
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let lane = self.0.next();
        match Orders::taken() {
            None => lane.spawn(async move { tell(task::catch_panic_async(Orders::may_come(stream)).await) }),
            Some(orders) => lane.spawn(async move { tell(task::catch_panic_async(orders.obeyed(stream)).await) }),
        };
    }
}

fn tell<T>(ended: Result<T, Panic>) {
    if let Err(panic) = ended {
        tracing::error!(error = %panic, "a stream of HTTP/2 panicked");
    }
}
