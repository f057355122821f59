//! One connection: moves bytes between its stream and the protocol, and messages between the protocol and the queues.
//!
//! One task does both directions, so that neither needs a lock around the protocol's state. It runs when the stream is
//! ready, when something was put into its pipe, when the application made room, or when a time has come.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, Sleep, sleep_until};

use super::gate::Ticket;
use super::inbound::{Item, ROOM_MAX};
use super::pipe::{End, Outgoing, Pipe, Sent};
use super::shared::Shared;
use super::stream::Stream;
use crate::codec::{Command, Connection, PingContext, Received};
use crate::endpoint::Endpoint;
use crate::event::{ConnectionId, DisconnectReason, Event, count};
use crate::options::{Heartbeat, Identity};
use crate::socket_type::SocketType;

/// The read buffer of a connection that has said little.
const READ_BYTES_MIN: usize = 8 * 1024;
/// The read buffer of one that fills it.
const READ_BYTES_MAX: usize = 64 * 1024;
/// At most so much is put into the form of the wire before it is written.
const WRITE_BYTES: usize = 64 * 1024;
/// At most so many pieces are written with one call.
const SLICES: usize = 64;
/// After so many reads or writes other tasks have their turn.
const STEPS: usize = 8;
/// How long a peer that is refused is given to read why.
const GOODBYE: Duration = Duration::from_millis(500);

/// What a connection is told when it begins.
pub(crate) struct Start {
    pub(crate) stream: Stream,
    pub(crate) endpoint: Endpoint,
    pub(crate) pipe: Arc<Pipe>,
    /// The pipe is used again when this connection has ended.
    pub(crate) kept: bool,
    /// For connections that were accepted.
    pub(crate) ticket: Option<Ticket>,
}

/// How a connection went.
pub(crate) struct Outcome {
    pub(crate) reason: DisconnectReason,
    /// When the handshake was complete.
    pub(crate) connected: Option<Instant>,
}

pub(crate) struct Link {
    shared: Arc<Shared>,
    stream: Stream,
    endpoint: Endpoint,
    address: Option<std::net::SocketAddr>,
    pipe: Arc<Pipe>,
    kept: bool,
    ticket: Option<Ticket>,
    connection: Connection,
    joined: Option<Joined>,

    input: BytesMut,
    read_bytes: usize,
    /// What was received and not yet delivered.
    batch: Vec<Item>,
    /// How many messages may be received before asking again.
    room: usize,
    messages_read: usize,
    bytes_read: usize,

    taken: VecDeque<Outgoing>,
    sent: Sent,

    timer: Pin<Box<Sleep>>,
    handshake_until: Instant,
    ping_at: Option<Instant>,
    /// Without traffic until then the peer is taken for dead: after a PING of ours, and after one of its own with a time to
    /// live.
    pong_until: Option<Instant>,
    ttl_until: Option<Instant>,
    /// Since when it is told to finish, and what it still has to do.
    finishing: Option<Finishing>,
    reason: Option<DisconnectReason>,
}

struct Joined {
    connection: ConnectionId,
    identity: Identity,
    since: Instant,
}

struct Finishing {
    until: Instant,
    /// Everything is written and the peer knows that nothing more comes. What it sends is thrown away: closing a stream with
    /// something unread in it would take back what the peer has not read yet.
    shut: bool,
}

impl Link {
    pub(crate) fn new(shared: Arc<Shared>, start: Start) -> Self {
        let Start { stream, endpoint, pipe, kept, ticket } = start;
        let handshake_until = after(shared.options.limits.handshake_timeout);
        Self {
            address: stream.address(),
            connection: Connection::new(shared.config.clone(), ticket.is_some()),
            shared,
            stream,
            endpoint,
            pipe,
            kept,
            ticket,
            joined: None,
            input: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
            batch: Vec::new(),
            room: ROOM_MAX,
            messages_read: 0,
            bytes_read: 0,
            taken: VecDeque::new(),
            sent: Sent::default(),
            timer: Box::pin(sleep_until(handshake_until)),
            handshake_until,
            ping_at: None,
            pong_until: None,
            ttl_until: None,
            finishing: None,
            reason: None,
        }
    }

    /// Runs until the connection ends. If this is dropped before, the connection ends there.
    pub(crate) async fn run(mut self) -> Outcome {
        let reason = std::future::poll_fn(|cx| self.poll(cx)).await;
        if matches!(reason, DisconnectReason::Protocol(_)) && !self.connection.output().is_empty() {
            // Too slow a peer will not know why.
            let _ = tokio::time::timeout(GOODBYE, std::future::poll_fn(|cx| self.poll_goodbye(cx))).await;
        }
        self.reason = Some(reason.clone());
        Outcome { reason, connected: self.joined.as_ref().map(|joined| joined.since) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<DisconnectReason> {
        match self.pipe.attend(cx.waker()) {
            Some(End::Kill(reason)) => return Poll::Ready(reason),
            Some(End::Finish) if self.finishing.is_none() => {
                self.finishing = Some(Finishing { until: after(self.shared.options.linger), shut: false });
            }
            Some(End::Finish) | None => {}
        }
        if let Err(reason) = self.step(cx) {
            // What came in before is the application's.
            self.deliver(cx);
            return Poll::Ready(reason);
        }
        self.count_reads();
        self.poll_timer(cx)
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Result<(), DisconnectReason> {
        self.read(cx)?;
        if let Err(reason) = self.write(cx) {
            // What a peer said before it went is still there.
            self.read_rest(cx);
            return Err(reason);
        }
        if self.finishing.is_some() {
            self.finish(cx)?;
        }
        Ok(())
    }

    // ---- reading ----

    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), DisconnectReason> {
        if self.finishing.as_ref().is_some_and(|finishing| finishing.shut) {
            return self.discard(cx);
        }
        for _ in 0..STEPS {
            if !self.decode(cx)? {
                // No room: the application wakes this task when there is.
                return Ok(());
            }
            self.make_read_room();
            let free = self.input.capacity() - self.input.len();
            match self.stream.poll_read(cx, &mut self.input) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(DisconnectReason::ClosedByPeer),
                Poll::Ready(Ok(read)) => {
                    self.bytes_read += read;
                    self.pong_until = None;
                    self.ttl_until = None;
                    if read == free {
                        self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
                    }
                }
                Poll::Ready(Err(error)) => return Err(failed(error)),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Reads what has come, as far as there is room for it.
    fn read_rest(&mut self, cx: &mut Context<'_>) {
        while let Ok(true) = self.decode(cx) {
            self.make_read_room();
            match self.stream.poll_read(cx, &mut self.input) {
                Poll::Ready(Ok(read)) if read > 0 => self.bytes_read += read,
                Poll::Ready(Ok(_) | Err(_)) | Poll::Pending => return,
            }
        }
    }

    /// Makes room for a read. A frame that is longer than the buffer has it grow with what has come, at most to twice of that.
    fn make_read_room(&mut self) {
        if self.input.is_empty() && self.input.capacity() > 4 * READ_BYTES_MAX {
            // It had grown for a frame that is gone.
            self.input = BytesMut::new();
        }
        let free = self.input.capacity() - self.input.len();
        let more = more_room(self.input.len(), free, self.connection.wanted(&self.input), self.read_bytes);
        if more > 0 {
            self.input.reserve(more);
        }
    }

    /// Takes what is in the buffer apart, as far as there is room for it. Whether more is to be read.
    fn decode(&mut self, cx: &Context<'_>) -> Result<bool, DisconnectReason> {
        loop {
            if self.room == 0 {
                self.room = self.deliver(cx);
                if self.room == 0 {
                    return Ok(false);
                }
            }
            let received = match self.connection.receive(&mut self.input) {
                Ok(Some(received)) => received,
                Ok(None) => {
                    if !self.batch.is_empty() {
                        self.room = self.deliver(cx);
                    }
                    return Ok(self.room > 0);
                }
                Err(error) => return Err(error.into()),
            };
            self.received(received)?;
        }
    }

    fn received(&mut self, received: Received) -> Result<(), DisconnectReason> {
        let limits = &self.shared.options.limits;
        match received {
            Received::Ready(peer) => {
                let identity = self.shared.join(&self.pipe, &peer, self.kept)?;
                if let Some(ticket) = &self.ticket {
                    ticket.established();
                }
                let connection = ConnectionId(self.shared.next_id());
                self.joined = Some(Joined { connection, identity: identity.clone(), since: Instant::now() });
                self.room = 0;
                count(&self.shared.counting.connected, 1);
                self.ping_at = self.shared.options.heartbeat.as_ref().map(Heartbeat::next);
                self.shared.tell(Event::Connected {
                    connection,
                    endpoint: self.endpoint.clone(),
                    address: self.address,
                    identity,
                    peer: Arc::new(*peer),
                });
            }
            Received::Message(message) => {
                self.messages_read += 1;
                if self.shared.socket_type.receives() {
                    self.batch.push(message.into());
                    self.room -= 1;
                } else {
                    // RFC 29, "The PUB Socket Type", RFC 30, "The PUSH Socket Type": they only send.
                    count(&self.shared.counting.discarded, 1);
                }
            }
            // RFC 29: only publishers have a use for them.
            Received::Subscribe(_) | Received::Cancel(_) if self.shared.socket_type != SocketType::Pub => {}
            Received::Subscribe(prefix) => {
                let mut subscriptions = self.pipe.subscriptions.lock();
                let added = subscriptions.add(&prefix, limits.subscriptions_max, limits.subscription_bytes_max);
                added.map_err(|_| DisconnectReason::TooManySubscriptions)?;
            }
            Received::Cancel(prefix) => {
                // One that is not there has no effect.
                let _ = self.pipe.subscriptions.lock().remove(&prefix);
            }
            Received::Ping { ttl_tenths } => {
                if ttl_tenths > 0 {
                    self.ttl_until = Some(after(Duration::from_millis(100) * u32::from(ttl_tenths)));
                }
            }
            Received::Pong => {}
        }
        Ok(())
    }

    /// Hands over what was received, and asks for room.
    fn deliver(&mut self, cx: &Context<'_>) -> usize {
        if self.joined.is_none() || !self.shared.socket_type.receives() {
            return ROOM_MAX;
        }
        if self.shared.socket_type == SocketType::Sub {
            // RFC 29, "The SUB Socket Type": publishers filter, and those that do not are not relied on.
            let subscriptions = self.shared.subscriptions.lock();
            self.batch.retain(|item| match item {
                Item::Message { message, .. } => message.first().is_some_and(|topic| subscriptions.matches(topic)),
                Item::Gone(_) => true,
            });
        }
        self.shared.inbound.deliver(self.pipe.id, &mut self.batch, cx.waker())
    }

    fn count_reads(&mut self) {
        let counting = &self.shared.counting;
        if self.bytes_read > 0 {
            count(&counting.bytes_received, std::mem::take(&mut self.bytes_read));
        }
        if self.messages_read > 0 {
            count(&counting.messages_received, std::mem::take(&mut self.messages_read));
        }
    }

    /// Reads and forgets until the peer closes.
    fn discard(&mut self, cx: &mut Context<'_>) -> Result<(), DisconnectReason> {
        for _ in 0..STEPS {
            self.input.clear();
            self.input.reserve(READ_BYTES_MIN);
            match self.stream.poll_read(cx, &mut self.input) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0) | Err(_)) => return Err(DisconnectReason::ClosedHere),
                Poll::Ready(Ok(_)) => {}
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    // ---- writing ----

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), DisconnectReason> {
        for _ in 0..STEPS {
            if self.joined.is_some() {
                self.fill();
            }
            if self.connection.output().is_empty() {
                return Ok(());
            }
            match self.poll_write(cx) {
                Poll::Ready(written) => count(&self.shared.counting.bytes_sent, written?),
                Poll::Pending => return Ok(()),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Puts what waits into the form of the wire, as much as is written at once.
    fn fill(&mut self) {
        while self.connection.output().len() < WRITE_BYTES {
            let Some(outgoing) = self.taken.pop_front() else {
                self.pipe.take(&mut self.taken);
                if self.taken.is_empty() {
                    break;
                }
                continue;
            };
            match outgoing {
                Outgoing::Message(message) => {
                    self.connection.send(&message);
                    self.sent.messages += 1;
                    self.sent.weight += message.weight();
                }
                Outgoing::Command(command) => self.connection.send_command(&command),
            }
        }
        if self.sent.messages > 0 {
            count(&self.shared.counting.messages_sent, self.sent.messages);
            if self.pipe.release(&mut self.sent) {
                self.shared.room.notify_waiters();
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, DisconnectReason>> {
        let output = self.connection.output();
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = output.slices(&mut slices);
        match ready!(self.stream.poll_write(cx, &slices[..filled])) {
            Ok(0) => Poll::Ready(Err(failed(io::ErrorKind::WriteZero.into()))),
            Ok(written) => {
                output.advance(written);
                Poll::Ready(Ok(written))
            }
            Err(error) => Poll::Ready(Err(failed(error))),
        }
    }

    // ---- ending ----

    /// Goes on with closing in order.
    fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), DisconnectReason> {
        let Some(finishing) = &mut self.finishing else { return Ok(()) };
        if finishing.shut {
            return Ok(());
        }
        if self.joined.is_none() {
            // Only a handshake that something waits for is worth its end.
            return if self.pipe.is_empty() { Err(DisconnectReason::ClosedHere) } else { Ok(()) };
        }
        if !self.connection.output().is_empty() || !self.pipe.is_empty() {
            return Ok(());
        }
        match self.stream.poll_shutdown(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) => {
                finishing.shut = true;
                self.discard(cx)
            }
            Poll::Ready(Err(_)) => Err(DisconnectReason::ClosedHere),
        }
    }

    /// Writes what tells a peer why it is refused, and lets it be read.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.connection.output().is_empty() {
            if ready!(self.poll_write(cx)).is_err() {
                return Poll::Ready(());
            }
        }
        if ready!(self.stream.poll_shutdown(cx)).is_err() || self.discard(cx).is_err() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    // ---- time ----

    /// When something is due.
    fn due(&self) -> Option<Instant> {
        let handshake = self.joined.is_none().then_some(self.handshake_until);
        let finishing = self.finishing.as_ref().map(|finishing| finishing.until);
        [handshake, finishing, self.ping_at, self.pong_until, self.ttl_until].into_iter().flatten().min()
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<DisconnectReason> {
        loop {
            let Some(due) = self.due() else { return Poll::Pending };
            if self.timer.deadline() != due {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            let is_due = |time: Option<Instant>| time.is_some_and(|time| time <= now);
            if self.joined.is_none() && self.handshake_until <= now {
                return Poll::Ready(DisconnectReason::HandshakeTimeout);
            }
            if self.finishing.as_ref().is_some_and(|finishing| finishing.until <= now) {
                return Poll::Ready(DisconnectReason::ClosedHere);
            }
            if is_due(self.pong_until) || is_due(self.ttl_until) {
                if self.room > 0 {
                    return Poll::Ready(DisconnectReason::Silent);
                }
                // It is this side that does not listen.
                self.pong_until = None;
                self.ttl_until = None;
            }
            if is_due(self.ping_at)
                && let Some(heartbeat) = self.shared.options.heartbeat.clone()
            {
                self.ping_at = Some(heartbeat.next());
                // RFC 37, "Connection Heartbeating": not many PINGs without an answer. While one waits, no further one is sent.
                if self.pong_until.is_none() {
                    self.pong_until = Some(after(heartbeat.timeout));
                    let ping = Command::Ping { ttl_tenths: heartbeat.ttl_tenths(), context: PingContext::default() };
                    self.connection.send_command(&ping);
                    if let Err(reason) = self.write(cx) {
                        return Poll::Ready(reason);
                    }
                }
            }
        }
    }
}

/// However a connection ends, by its own decision, by a panic, or with its runtime: its place is given up and the end is told.
impl Drop for Link {
    fn drop(&mut self) {
        self.count_reads();
        let panicking =
            if std::thread::panicking() { DisconnectReason::Panicked } else { DisconnectReason::ClosedHere };
        let reason = self.reason.take().unwrap_or(panicking);
        if self.kept {
            self.pipe.restore(std::mem::take(&mut self.taken));
        }
        let Some(Joined { connection, identity, .. }) = self.joined.take() else {
            count(&self.shared.counting.handshakes_failed, 1);
            let endpoint = self.endpoint.clone();
            return self.shared.tell(Event::HandshakeFailed { endpoint, address: self.address, reason });
        };
        self.shared.leave(&self.pipe, &identity, self.kept);
        count(&self.shared.counting.disconnected, 1);
        self.shared.tell(Event::Disconnected { connection, endpoint: self.endpoint.clone(), identity, reason });
    }
}

/// How much room a read is given if `held` bytes wait for `wanted` more and `free` are free: as much again as has come, and
/// no less than a read brings at once. Nothing for what there is room for.
fn more_room(held: usize, free: usize, wanted: usize, at_once: usize) -> usize {
    if wanted > free || free < READ_BYTES_MIN / 4 { wanted.min(held).max(at_once) } else { 0 }
}

impl Heartbeat {
    /// When the next PING is due. An interval of nothing would leave no time for anything else.
    fn next(&self) -> Instant {
        after(self.interval.max(Duration::from_millis(1)))
    }
}

/// A point in time, far away if the time until then is too long to be one.
fn after(time: Duration) -> Instant {
    Instant::now() + time.min(Duration::from_secs(10 * 365 * 24 * 3600))
}

fn failed(error: io::Error) -> DisconnectReason {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => DisconnectReason::ClosedByPeer,
        _ => DisconnectReason::Io(Arc::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_with_what_has_come_and_not_by_what_is_announced() {
        assert_eq!(more_room(0, 0, usize::MAX, 8192), 8192);
        assert_eq!(more_room(9, 8000, usize::MAX, 8192), 8192);
        assert_eq!(more_room(100_000, 0, usize::MAX, 65_536), 100_000);
        assert_eq!(more_room(100_000, 0, 10, 65_536), 65_536);
        assert_eq!(more_room(100, 8000, 10, 8192), 0);
        assert_eq!(more_room(8000, 100, 10, 8192), 8192);
    }
}
