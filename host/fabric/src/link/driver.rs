//! Drives a link: one task that reads, writes and checks timeouts for one connection until it ends. Callers and running
//! calls change the session and wake this task.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::frame::{Frame, Violation};
use super::session::{CallEnding, Event};
use super::{CloseReason, LinkError, LinkHandler, LinkShared};
use wasmcage_core::lanes::Lanes;

/// Interval at which the timeouts are checked.
const TICK: Duration = Duration::from_millis(250);
/// A peer from which nothing was received for this time gets a ping.
const PING_AFTER: Duration = Duration::from_millis(700);
/// A peer from which nothing was received for this time is dead. This is noticed at the next tick, after 3 s at most.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(2_500);
/// A peer that reads nothing of what is written for this time is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a side that closes waits for the peer to have read everything.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Buffer space for one read.
const READ_BYTES: usize = 64 << 10;
/// Calls of one connection that run on its own lane; more are spread over all lanes. An answer from another lane must
/// wake this one, which costs more than a short call, and a caller has a connection for each of its lanes anyway.
const CALLS_ON_LANE: usize = 64;

pub(super) struct LinkDriver<S, A> {
    stream: S,
    shared: Arc<LinkShared>,
    handler: Arc<A>,
    lanes: Option<Arc<Lanes>>,
    read: BytesMut,
    write: BytesMut,
    unflushed: bool,
    tick: Interval,
    /// When something was last read.
    last_read: Instant,
    /// When something was last written, or began to wait for it.
    last_write: Instant,
    last_ping: Instant,
    /// Since when and why nothing can be written any more. What the peer sent before is still read: a go-away frame tells
    /// which calls it did not take.
    write_failed: Option<(Instant, CloseReason)>,
}

impl<S, A> Drop for LinkDriver<S, A> {
    /// Has no effect if the connection has ended by itself.
    fn drop(&mut self) {
        self.shared.close(CloseReason::Here);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, A: LinkHandler> LinkDriver<S, A> {
    /// `read` has the bytes that were received after the greeting.
    pub(super) fn new(
        stream: S,
        shared: Arc<LinkShared>,
        handler: Arc<A>,
        lanes: Option<Arc<Lanes>>,
        read: BytesMut,
    ) -> Self {
        let now = Instant::now();
        let mut tick = interval_at(now + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let write = BytesMut::new();
        Self {
            stream,
            shared,
            handler,
            lanes,
            read,
            write,
            unflushed: false,
            tick,
            last_read: now,
            last_write: now,
            last_ping: now,
            write_failed: None,
        }
    }

    /// Drives the connection until it ends.
    pub(super) async fn run(mut self) {
        // Frames that were received with the greeting come first.
        let closed = match self.take_frames() {
            Ok(()) => std::future::poll_fn(|cx| self.poll(cx)).await,
            Err(closed) => closed,
        };
        if let CloseReason::Violation(text) = &closed {
            self.shared.session.lock().bye(text);
        }
        // What is left is written only if the socket takes it at once.
        let _ = std::future::poll_fn(|cx| {
            self.write(cx);
            Pin::new(&mut self.stream).poll_shutdown(cx)
        })
        .now_or_never();
        if matches!(closed, CloseReason::Here) {
            self.linger().await;
        }
        self.shared.close(closed);
    }

    /// Reads until the peer has closed, too: closing a socket with unread bytes discards what it has not sent yet, such
    /// as the last answers.
    async fn linger(&mut self) {
        let mut shut_down = false;
        let ended = std::future::poll_fn(|cx| {
            shut_down = shut_down || Pin::new(&mut self.stream).poll_shutdown(cx).is_ready();
            loop {
                self.read.clear();
                self.read.reserve(READ_BYTES);
                match tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.read) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(_)) => {}
                }
            }
        });
        // On a timeout the peer hangs, and the answers are lost.
        let _ = tokio::time::timeout(LINGER_TIMEOUT, ended).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        self.shared.waker.register(cx.waker());
        loop {
            let read = match self.read(cx) {
                Ok(read) => read,
                Err(closed) => return Poll::Ready(closed),
            };
            if !(self.write(cx) || read) {
                break;
            }
        }
        while self.tick.poll_tick(cx).is_ready() {
            if let Some(closed) = self.check_timeouts() {
                return Poll::Ready(closed);
            }
            // There may be a ping to write.
            self.write(cx);
        }
        match self.shared.must_close() {
            Some(closed) if self.write.is_empty() && !self.unflushed => Poll::Ready(closed),
            Some(_) | None => Poll::Pending,
        }
    }

    /// Returns true when something was read.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, CloseReason> {
        if self.shared.session.lock().is_congested() {
            return Ok(false);
        }
        self.read.reserve(READ_BYTES);
        match tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.read) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => Err(CloseReason::ByPeer),
            Poll::Ready(Ok(_)) => {
                self.last_read = Instant::now();
                self.take_frames()?;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(CloseReason::Io(Arc::new(error))),
        }
    }

    fn take_frames(&mut self) -> Result<(), CloseReason> {
        let violated = |violation: Violation| CloseReason::Violation(violation.to_string());
        while let Some(frame) = Frame::take(&mut self.read).map_err(violated)? {
            let event = self.shared.session.lock().receive(frame).map_err(violated)?;
            match event {
                None => {}
                Some(Event::Call { id, message }) => self.serve(id, message),
                Some(Event::Cancelled(runner)) => runner.abort(),
                // The caller may have just left.
                Some(Event::Ended { waiter, ending }) => drop(waiter.send(match ending {
                    CallEnding::Answer(message) => Ok(message),
                    CallEnding::Refused(reason, text) => Err(LinkError::Refused(reason, text)),
                })),
                Some(Event::Members(members)) => self.handler.members_received(&members),
                Some(Event::GoingAway) => self.shared.note_going_away(),
                Some(Event::Bye(text)) => return Err(CloseReason::Bye(text)),
            }
        }
        Ok(())
    }

    fn serve(&mut self, id: u64, message: super::Message) {
        let (handler, shared) = (self.handler.clone(), self.shared.clone());
        let running = async move {
            let answer = handler.answer(message).await;
            shared.session.lock().answer(id, answer);
            shared.waker.wake();
        };
        let mut session = self.shared.session.lock();
        let task = match &self.lanes {
            Some(lanes) if session.calls_served() > CALLS_ON_LANE => lanes.next().spawn(running),
            Some(_) | None => tokio::spawn(running),
        };
        session.running(id, task.abort_handle());
    }

    /// Returns true when something was written.
    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        if self.write_failed.is_some() {
            return false;
        }
        self.try_write(cx).unwrap_or_else(|closed| {
            self.write.clear();
            self.write_failed = Some((Instant::now(), closed));
            false
        })
    }

    fn try_write(&mut self, cx: &mut Context<'_>) -> Result<bool, CloseReason> {
        let mut written_any = false;
        loop {
            if self.write.is_empty() {
                self.shared.session.lock().fill(&mut self.write);
                if self.write.is_empty() {
                    break;
                }
                self.last_write = Instant::now();
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.write) {
                Poll::Pending => return Ok(written_any),
                Poll::Ready(Ok(0)) => return Err(CloseReason::Io(Arc::new(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(written)) => {
                    self.write.advance(written);
                    (self.unflushed, written_any) = (true, true);
                    self.last_write = Instant::now();
                }
                Poll::Ready(Err(error)) => return Err(CloseReason::Io(Arc::new(error))),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(CloseReason::Io(Arc::new(error))),
            }
        }
        Ok(written_any)
    }

    fn check_timeouts(&mut self) -> Option<CloseReason> {
        let now = Instant::now();
        if let Some((since, closed)) = &self.write_failed
            && now - *since > TICK
        {
            return Some(closed.clone());
        }
        let (silent, stalled) = (now - self.last_read, now - self.last_write);
        let mut session = self.shared.session.lock();
        if silent > SILENCE_TIMEOUT && !session.is_congested() {
            return Some(CloseReason::Silent(silent));
        }
        if (!self.write.is_empty() && stalled > WRITE_TIMEOUT) || session.is_unread() {
            return Some(CloseReason::Unread);
        }
        if silent > PING_AFTER && now - self.last_ping > PING_AFTER {
            self.last_ping = now;
            session.ping(0);
        }
        drop(session);
        self.shared.note_silence(silent);
        None
    }
}
