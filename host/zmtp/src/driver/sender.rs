//! Sending: to whom each socket type sends, and what happens when there is no room.

use std::pin::pin;
use std::sync::Arc;

use super::Owner;
use super::pipe::{Pipe, Refused};
use super::shared::{Shared, Turn};
use crate::error::{SendError, SendErrorReason};
use crate::event::count;
use crate::message::Message;
use crate::socket_type::SocketType;

/// The half of a socket that sends and controls. A clone is the same socket.
#[derive(Clone, Debug)]
pub struct Sender {
    pub(super) owner: Arc<Owner>,
}

type Refusal = (SendErrorReason, Message);

impl From<Refused> for SendErrorReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::Full,
            Refused::Closed => Self::Unroutable,
        }
    }
}

impl Sender {
    pub(super) const fn new(owner: Arc<Owner>) -> Self {
        Self { owner }
    }

    /// Puts a message into the queue of the peer, or the peers, that the socket's type sends it to. Waits for room in it
    /// and, with DEALER, REQ and PUSH, for a peer. PUB and REP do not wait (RFC 29, RFC 28: they "SHALL NOT block on
    /// sending").
    ///
    /// Dropped before it returns, it has not sent the message.
    ///
    /// # Errors
    /// The message is given back with the reason. A ROUTER finds no peer with the identity in the first frame; a REQ or REP
    /// is not its turn; the type does not send; the socket is closed.
    pub async fn send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.wait(message.into(), |message| self.offer(message)).await
    }

    /// As [`send`](Self::send), but does not wait.
    ///
    /// # Errors
    /// As those of `send`, and: there is no room, or no peer.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.counted(self.offer(message.into()))
    }

    /// Puts a message into the queue of the peer with this identity, and waits for room in it. ROUTER only.
    ///
    /// # Errors
    /// The message is given back with the reason: no peer has the identity, the socket is no ROUTER, or it is closed.
    pub async fn send_to(&self, identity: &[u8], message: impl Into<Message>) -> Result<(), SendError> {
        self.wait(message.into(), |message| self.offer_to(identity, message)).await
    }

    /// As [`send_to`](Self::send_to), but does not wait.
    ///
    /// # Errors
    /// As those of `send_to`, and: there is no room.
    pub fn try_send_to(&self, identity: &[u8], message: impl Into<Message>) -> Result<(), SendError> {
        self.counted(self.offer_to(identity, message.into()))
    }

    /// Offers a message again and again until it is taken or refused for good.
    async fn wait(&self, message: Message, offer: impl Fn(Message) -> Result<(), Refusal>) -> Result<(), SendError> {
        // Other tasks have their turn, however much there is to send.
        tokio::task::coop::consume_budget().await;
        // The common case, without registering anywhere.
        let mut refused = match offer(message) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        loop {
            if !self.is_worth_waiting(refused.0) {
                return self.counted(Err(refused));
            }
            let mut room = pin!(self.owner.shared.room.notified());
            // From here on no news is missed.
            room.as_mut().enable();
            match offer(refused.1) {
                Ok(()) => return Ok(()),
                Err(again) => refused = again,
            }
            if self.is_worth_waiting(refused.0) {
                room.await;
            }
        }
    }

    fn is_worth_waiting(&self, reason: SendErrorReason) -> bool {
        match reason {
            SendErrorReason::Full => self.owner.shared.socket_type != SocketType::Rep,
            SendErrorReason::NoPeer => true,
            SendErrorReason::Unroutable
            | SendErrorReason::OutOfTurn
            | SendErrorReason::WrongType(_)
            | SendErrorReason::Empty
            | SendErrorReason::Closed => false,
        }
    }

    fn counted(&self, offered: Result<(), Refusal>) -> Result<(), SendError> {
        offered.map_err(|(reason, message)| {
            let counting = &self.owner.shared.counting;
            match reason {
                SendErrorReason::Unroutable => count(&counting.unroutable, 1),
                SendErrorReason::Full => count(&counting.full, 1),
                SendErrorReason::NoPeer
                | SendErrorReason::OutOfTurn
                | SendErrorReason::WrongType(_)
                | SendErrorReason::Empty
                | SendErrorReason::Closed => {}
            }
            SendError { reason, message }
        })
    }

    fn offer(&self, message: Message) -> Result<(), Refusal> {
        let shared = &*self.owner.shared;
        if shared.is_closed() {
            return Err((SendErrorReason::Closed, message));
        }
        if message.is_empty() {
            return Err((SendErrorReason::Empty, message));
        }
        match shared.socket_type {
            SocketType::Router => route(shared, message),
            SocketType::Dealer | SocketType::Push => in_turn(shared, message).map(|_| ()),
            SocketType::Req => ask(shared, message),
            SocketType::Rep => reply(shared, message),
            SocketType::Pub => {
                publish(shared, &message);
                Ok(())
            }
            SocketType::Sub | SocketType::Pull | SocketType::XPub | SocketType::XSub | SocketType::Pair => {
                Err((SendErrorReason::WrongType(shared.socket_type), message))
            }
        }
    }

    fn offer_to(&self, identity: &[u8], message: Message) -> Result<(), Refusal> {
        let shared = &*self.owner.shared;
        let wrong = if shared.socket_type != SocketType::Router {
            SendErrorReason::WrongType(shared.socket_type)
        } else if shared.is_closed() {
            SendErrorReason::Closed
        } else if message.is_empty() {
            SendErrorReason::Empty
        } else {
            return match shared.route(identity) {
                Some(pipe) => push(&pipe, message),
                None => Err((SendErrorReason::Unroutable, message)),
            };
        };
        Err((wrong, message))
    }
}

fn push(pipe: &Pipe, message: Message) -> Result<(), Refusal> {
    pipe.push(message).map_err(|(refused, message)| (refused.into(), message))
}

/// RFC 28, "The ROUTER Socket Type": the first frame is the identity.
fn route(shared: &Shared, mut message: Message) -> Result<(), Refusal> {
    if message.len() < 2 {
        return Err((SendErrorReason::Empty, message));
    }
    let Some(pipe) = shared.route(&message[0]) else { return Err((SendErrorReason::Unroutable, message)) };
    let identity = message.pop_front().expect("there are two frames");
    push(&pipe, message).map_err(|(reason, mut message)| {
        message.push_front(identity);
        (reason, message)
    })
}

/// RFC 28, "The DEALER Socket Type", RFC 30, "The PUSH Socket Type": to the next peer whose queue is not full. Returns which
/// that was.
fn in_turn(shared: &Shared, mut message: Message) -> Result<u64, Refusal> {
    let mut ring = shared.ring.lock();
    let mut reason = SendErrorReason::NoPeer;
    for _ in 0..ring.pipes.len() {
        let at = ring.next % ring.pipes.len();
        ring.next = at + 1;
        let pipe = &ring.pipes[at];
        match pipe.push(message) {
            Ok(()) => return Ok(pipe.id),
            Err((Refused::Full, back)) => {
                reason = SendErrorReason::Full;
                message = back;
            }
            Err((Refused::Closed, back)) => message = back,
        }
    }
    Err((reason, message))
}

/// RFC 28, "The REQ Socket Type": an empty frame comes first, and nothing else is sent before the reply.
fn ask(shared: &Shared, mut message: Message) -> Result<(), Refusal> {
    let mut turn = shared.turn.lock();
    if !matches!(*turn, Turn::Free) {
        return Err((SendErrorReason::OutOfTurn, message));
    }
    message.push_front(bytes::Bytes::new());
    match in_turn(shared, message) {
        Ok(pipe) => {
            *turn = Turn::Asked { pipe, request: shared.next_id() };
            Ok(())
        }
        Err((reason, mut message)) => {
            message.pop_front();
            Err((reason, message))
        }
    }
}

/// RFC 28, "The REP Socket Type": the envelope of the request comes first. A reply to a peer that is gone is an error, and
/// the next request may be received.
fn reply(shared: &Shared, message: Message) -> Result<(), Refusal> {
    let mut turn = shared.turn.lock();
    match std::mem::replace(&mut *turn, Turn::Free) {
        Turn::Owes(pipe, mut envelope) => {
            let frames = envelope.len();
            envelope.extend(message);
            push(&pipe, envelope).map_err(|(reason, mut message)| {
                let envelope: Message = (0..frames).filter_map(|_| message.pop_front()).collect();
                if reason == SendErrorReason::Full {
                    *turn = Turn::Owes(pipe, envelope);
                }
                (reason, message)
            })
        }
        free => {
            *turn = free;
            Err((SendErrorReason::OutOfTurn, message))
        }
    }
}

/// RFC 29, "The PUB Socket Type": a copy for each peer that subscribed to it; none for those whose queue is full.
fn publish(shared: &Shared, message: &Message) {
    let topic = message.first().map_or(&b""[..], |topic| topic);
    let ring = shared.ring.lock();
    for pipe in ring.pipes.iter().filter(|pipe| pipe.subscriptions.lock().matches(topic)) {
        match pipe.push(message.clone()) {
            Err((Refused::Full, _)) => count(&shared.counting.full, 1),
            Ok(()) | Err((Refused::Closed, _)) => {}
        }
    }
}
