//! What can go wrong for the application.

use std::io;

use crate::endpoint::Endpoint;
use crate::message::Message;
use crate::socket_type::SocketType;

/// A message was not sent. It is given back.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct SendError {
    /// Why.
    pub reason: SendErrorReason,
    /// The message.
    pub message: Message,
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendErrorReason {
    /// No connected peer has the identity, or one from which messages are only received.
    #[error("no peer has this identity")]
    Unroutable,
    /// As many messages or bytes as are allowed wait for the peer, or for each of the peers.
    #[error("the queue for the peer is full")]
    Full,
    /// There is no peer that could take it.
    #[error("no peer is connected")]
    NoPeer,
    /// A REQ sends again only after a reply, a REP only after a request.
    #[error("it is not this side's turn: requests and replies alternate")]
    OutOfTurn,
    /// The socket's type does not send.
    #[error("a {0} socket does not send")]
    WrongType(SocketType),
    /// The message has no frame, or, with a ROUTER, none behind the identity.
    #[error("the message has no frame to send")]
    Empty,
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed,
}

/// No message was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// A REQ receives only after a request, a REP only after its reply.
    #[error("it is not this side's turn: requests and replies alternate")]
    OutOfTurn,
    /// The peer to which a REQ sent its request is gone: no reply will come, and another request may be sent.
    #[error("the peer that has the request is gone")]
    PeerLost,
    /// The socket's type does not receive.
    #[error("a {0} socket does not receive")]
    WrongType(SocketType),
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed,
}

/// A socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The system refused.
    #[error("could not bind to {endpoint}")]
    Io {
        /// Where to.
        endpoint: Endpoint,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The path is not a socket's, so it is not replaced.
    #[error("could not bind to {0}: there is a file that is no socket")]
    NotASocket(Endpoint),
    /// The socket is closed.
    #[error("could not bind to {0}: the socket is closed")]
    Closed(Endpoint),
}

/// A socket could not be told to connect. That a peer cannot be reached is no such error: it is tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// `*` and port 0 are for binding.
    #[error("cannot connect to {0}: it names no single place; use the address and port of a bound socket")]
    Wildcard(Endpoint),
    /// It was told so already.
    #[error("the socket connects to {0} already")]
    Twice(Endpoint),
    /// The socket is closed.
    #[error("cannot connect to {0}: the socket is closed")]
    Closed(Endpoint),
}

/// A subscription was not made or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// Only SUB sockets subscribe.
    #[error("a {0} socket has no subscriptions")]
    WrongType(SocketType),
    /// There are `subscriptions_max` or `subscription_bytes_max` already, or this one is longer than a command may be.
    #[error("the subscription exceeds the socket's limits")]
    TooMany,
    /// There is no such subscription.
    #[error("there is no such subscription")]
    Unknown,
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed,
}
