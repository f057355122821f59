//! Receiving: what each socket type hands to the application of what its peers sent.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use super::Owner;
use super::inbound::{Item, Source};
use super::shared::Turn;
use crate::error::ReceiveError;
use crate::event::count;
use crate::message::Message;
use crate::options::Identity;
use crate::socket_type::SocketType;

/// The half of a socket that receives.
#[derive(Debug)]
pub struct Receiver {
    owner: Arc<Owner>,
    /// What one peer's turn brought, and that peer.
    turn: VecDeque<Item>,
    source: Option<Arc<Source>>,
}

impl Receiver {
    pub(super) const fn new(owner: Arc<Owner>) -> Self {
        Self { owner, turn: VecDeque::new(), source: None }
    }

    /// The next message. With a ROUTER its first frame is the identity of the peer that sent it (RFC 28, "The ROUTER Socket
    /// Type").
    ///
    /// Peers take turns: one that sends much does not keep others waiting. Dropped before it returns, it has taken no message.
    ///
    /// # Errors
    /// A REQ or REP is not its turn, the peer that has a REQ's request is gone, the type does not receive, or the socket is
    /// closed.
    pub async fn recv(&mut self) -> Result<Message, ReceiveError> {
        let is_router = self.owner.shared.socket_type == SocketType::Router;
        let (identity, mut message) = self.recv_from().await?;
        if is_router {
            message.push_front(identity);
        }
        Ok(message)
    }

    /// The next message, and the identity of the peer that sent it. Only a ROUTER makes up identities for peers that gave
    /// none; those of other sockets are empty then.
    ///
    /// # Errors
    /// As those of [`recv`](Self::recv).
    pub async fn recv_from(&mut self) -> Result<(Identity, Message), ReceiveError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next message and the identity of its peer, if one is there.
    ///
    /// # Errors
    /// As those of [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Result<Option<(Identity, Message)>, ReceiveError> {
        match self.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(received) => received.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// As [`recv_from`](Self::recv_from), for those who write their own futures.
    ///
    /// # Errors
    /// As those of [`recv`](Self::recv).
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Identity, Message), ReceiveError>> {
        if !self.turn.is_empty() {
            return self.poll_next(cx);
        }
        // Other tasks have their turn, however much there is to receive.
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let next = self.poll_next(cx);
        if next.is_ready() {
            budget.made_progress();
        }
        next
    }

    /// A handle to send and control.
    #[must_use]
    pub fn sender(&self) -> super::Sender {
        super::Sender::new(self.owner.clone())
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Identity, Message), ReceiveError>> {
        if let Some(error) = self.obstacle() {
            return Poll::Ready(Err(error));
        }
        loop {
            let Some(item) = self.turn.pop_front() else {
                match ready!(self.owner.shared.inbound.poll_take(cx, &mut self.turn)) {
                    Some(source) => self.source = Some(source),
                    None => return Poll::Ready(Err(ReceiveError::Closed)),
                }
                continue;
            };
            let source = self.source.as_ref().expect("what one turn brought has a source");
            if let Some(received) = self.accept(source, item) {
                return Poll::Ready(received);
            }
        }
    }

    /// Why nothing can be received now, whatever comes.
    fn obstacle(&self) -> Option<ReceiveError> {
        let shared = &self.owner.shared;
        if shared.is_closed() {
            return Some(ReceiveError::Closed);
        }
        let out_of_turn = match shared.socket_type {
            SocketType::Req => !matches!(*shared.turn.lock(), Turn::Asked { .. }),
            SocketType::Rep => matches!(*shared.turn.lock(), Turn::Owes(..)),
            other if other.receives() => false,
            other => return Some(ReceiveError::WrongType(other)),
        };
        out_of_turn.then_some(ReceiveError::OutOfTurn)
    }

    /// What of one item is for the application.
    fn accept(&self, source: &Arc<Source>, item: Item) -> Option<Result<(Identity, Message), ReceiveError>> {
        let shared = &self.owner.shared;
        let mut message = match item {
            Item::Message { message, .. } => message,
            Item::Gone(lost) => {
                let mut turn = shared.turn.lock();
                // Its reply may have come first, and another request gone since.
                return matches!(*turn, Turn::Asked { request, .. } if request == lost).then(|| {
                    *turn = Turn::Free;
                    Err(ReceiveError::PeerLost)
                });
            }
        };
        let is_due = match shared.socket_type {
            // RFC 28, "The REQ Socket Type": only a reply of the peer that was asked, with an empty frame before it.
            SocketType::Req => {
                let mut turn = shared.turn.lock();
                let expected = matches!(*turn, Turn::Asked { pipe, .. } if pipe == source.pipe.id)
                    && message.len() > 1
                    && message.pop_front().is_some_and(|delimiter| delimiter.is_empty());
                if expected {
                    *turn = Turn::Free;
                }
                expected
            }
            // RFC 28, "The REP Socket Type": the envelope is kept for the reply.
            SocketType::Rep => match message.take_envelope() {
                Some(envelope) if !message.is_empty() => {
                    *shared.turn.lock() = Turn::Owes(source.pipe.clone(), envelope);
                    true
                }
                Some(_) | None => false,
            },
            _ => true,
        };
        if !is_due {
            count(&shared.counting.discarded, 1);
            return None;
        }
        Some(Ok((source.identity.clone(), message)))
    }
}
