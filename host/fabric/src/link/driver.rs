//! Moves a link's bytes: one task that reads, writes and keeps time for one connection, until it ends. Everything that
//! callers and runners want of it goes through the session; they wake it.

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
use super::session::{Ending, Event};
use super::{Answering, Closed, LinkError, Shared};
use wasmcage_core::lanes::Lanes;

/// Between two looks at the time.
const TICK: Duration = Duration::from_millis(250);
/// A peer that has been silent for so long is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_millis(700);
/// A peer that has been silent for so long is dead. Found at the tick after it: in three seconds at most.
const DEAD_AFTER: Duration = Duration::from_millis(2_500);
/// A peer that takes nothing of what is written for so long is as good as dead.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// How long a side that closes waits for the other one to have read everything.
const LINGER: Duration = Duration::from_secs(1);
/// Room for one read.
const READ_BYTES: usize = 64 << 10;
/// Calls of one connection that run on its own lane; more are spread over all lanes. An answer from another lane wakes this
/// one, which costs more than a short call; a caller has a connection for each of its lanes anyway.
const CALLS_ON_LANE: usize = 64;

pub(super) struct Driver<S, A> {
    stream: S,
    shared: Arc<Shared>,
    answering: Arc<A>,
    lanes: Option<Arc<Lanes>>,
    read: BytesMut,
    write: BytesMut,
    unflushed: bool,
    tick: Interval,
    /// When something was last read, and written.
    heard: Instant,
    moved: Instant,
    pinged: Instant,
    /// Nothing can be written any more, since then. What the peer said before it closed is still to be read: it may tell
    /// which calls it did not take.
    broken: Option<(Instant, Closed)>,
}

impl<S, A> Drop for Driver<S, A> {
    /// Without effect where the connection has ended by itself.
    fn drop(&mut self) {
        self.shared.close(Closed::Here);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, A: Answering> Driver<S, A> {
    /// `read` holds what came after the greeting.
    pub(super) fn new(
        stream: S,
        shared: Arc<Shared>,
        answering: Arc<A>,
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
            answering,
            lanes,
            read,
            write,
            unflushed: false,
            tick,
            heard: now,
            moved: now,
            pinged: now,
            broken: None,
        }
    }

    /// The whole life of the connection.
    pub(super) async fn run(mut self) {
        // What came with the greeting is taken before anything is read.
        let closed = match self.take_frames() {
            Ok(()) => std::future::poll_fn(|cx| self.poll(cx)).await,
            Err(closed) => closed,
        };
        if let Closed::Violation(text) = &closed {
            self.shared.session.lock().bye(text);
        }
        // The last words, if the socket takes them at once.
        let _ = std::future::poll_fn(|cx| {
            self.write(cx);
            Pin::new(&mut self.stream).poll_shutdown(cx)
        })
        .now_or_never();
        if matches!(closed, Closed::Here) {
            self.linger().await;
        }
        self.shared.close(closed);
    }

    /// Reads on until the peer has closed, too: a socket that is closed while something unread is in it takes back what it
    /// has not sent yet, such as the last answers.
    async fn linger(&mut self) {
        let mut said = false;
        let ended = std::future::poll_fn(|cx| {
            said = said || Pin::new(&mut self.stream).poll_shutdown(cx).is_ready();
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
        // A peer that hangs is not waited for.
        let _ = tokio::time::timeout(LINGER, ended).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
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
            if let Some(closed) = self.look_at_time() {
                return Poll::Ready(closed);
            }
            // A ping may have to go out.
            self.write(cx);
        }
        match self.shared.must_close() {
            Some(closed) if self.write.is_empty() && !self.unflushed => Poll::Ready(closed),
            Some(_) | None => Poll::Pending,
        }
    }

    /// True when something came.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Closed> {
        if self.shared.session.lock().is_congested() {
            return Ok(false);
        }
        self.read.reserve(READ_BYTES);
        match tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.read) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => Err(Closed::ByPeer),
            Poll::Ready(Ok(_)) => {
                self.heard = Instant::now();
                self.take_frames()?;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(Closed::Io(Arc::new(error))),
        }
    }

    fn take_frames(&mut self) -> Result<(), Closed> {
        let broken = |violation: Violation| Closed::Violation(violation.to_string());
        while let Some(frame) = Frame::take(&mut self.read).map_err(broken)? {
            let event = self.shared.session.lock().receive(frame).map_err(broken)?;
            match event {
                None => {}
                Some(Event::Call { id, message }) => self.serve(id, message),
                Some(Event::Cancelled(runner)) => runner.abort(),
                // A caller that has just left has no use for it.
                Some(Event::Ended { waiter, ending }) => drop(waiter.send(match ending {
                    Ending::Answer(message) => Ok(message),
                    Ending::Refused(reason, text) => Err(LinkError::Refused(reason, text)),
                })),
                Some(Event::Told(members)) => self.answering.told(&members),
                Some(Event::GoingAway) => self.shared.note_going_away(),
                Some(Event::Bye(text)) => return Err(Closed::Bye(text)),
            }
        }
        Ok(())
    }

    fn serve(&mut self, id: u64, message: super::Message) {
        let (answering, shared) = (self.answering.clone(), self.shared.clone());
        let running = async move {
            let answer = answering.answer(message).await;
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

    /// True when something went out.
    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        if self.broken.is_some() {
            return false;
        }
        self.try_write(cx).unwrap_or_else(|closed| {
            self.write.clear();
            self.broken = Some((Instant::now(), closed));
            false
        })
    }

    fn try_write(&mut self, cx: &mut Context<'_>) -> Result<bool, Closed> {
        let mut moved = false;
        loop {
            if self.write.is_empty() {
                self.shared.session.lock().fill(&mut self.write);
                if self.write.is_empty() {
                    break;
                }
                self.moved = Instant::now();
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.write) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(0)) => return Err(Closed::Io(Arc::new(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(written)) => {
                    self.write.advance(written);
                    (self.unflushed, moved) = (true, true);
                    self.moved = Instant::now();
                }
                Poll::Ready(Err(error)) => return Err(Closed::Io(Arc::new(error))),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(Closed::Io(Arc::new(error))),
            }
        }
        Ok(moved)
    }

    fn look_at_time(&mut self) -> Option<Closed> {
        let now = Instant::now();
        if let Some((since, closed)) = &self.broken
            && now - *since > TICK
        {
            return Some(closed.clone());
        }
        let (silent, stalled) = (now - self.heard, now - self.moved);
        let mut session = self.shared.session.lock();
        if silent > DEAD_AFTER && !session.is_congested() {
            return Some(Closed::Silent(silent));
        }
        if (!self.write.is_empty() && stalled > STALLED_AFTER) || session.is_unread() {
            return Some(Closed::Unread);
        }
        if silent > PING_AFTER && now - self.pinged > PING_AFTER {
            self.pinged = now;
            session.ping(0);
        }
        drop(session);
        self.shared.note_silence(silent);
        None
    }
}
