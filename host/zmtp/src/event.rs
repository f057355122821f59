//! What happens to a socket's connections, and how often.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::broadcast;

use crate::codec::{Peer, ProtocolError};
use crate::endpoint::Endpoint;
use crate::options::Identity;

/// One connection of a socket, told from all others that the socket ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub(crate) u64);

/// Something that happened to a connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A handshake is complete.
    Connected {
        /// The connection.
        connection: ConnectionId,
        /// Where it was accepted, or made to.
        endpoint: Endpoint,
        /// The peer's address, for TCP.
        address: Option<std::net::SocketAddr>,
        /// The peer's identity, its own or the one that a ROUTER made for it.
        identity: Identity,
        /// What the peer said about itself.
        peer: Arc<Peer>,
    },
    /// A connection ended whose handshake had been complete.
    Disconnected {
        /// The connection.
        connection: ConnectionId,
        /// Where it was accepted, or made to.
        endpoint: Endpoint,
        /// The peer's identity.
        identity: Identity,
        /// Why.
        reason: DisconnectReason,
    },
    /// A connection ended before its handshake was complete, or could not be made.
    HandshakeFailed {
        /// Where it was accepted, or made to.
        endpoint: Endpoint,
        /// The peer's address, for TCP, if there was a connection.
        address: Option<std::net::SocketAddr>,
        /// Why.
        reason: DisconnectReason,
    },
    /// A connection will be tried again.
    Retry {
        /// Where to.
        endpoint: Endpoint,
        /// After which pause; `None` if it will not be: the peer refused, and the options say to give up then.
        pause: Option<Duration>,
        /// Attempts in a row that led to nothing.
        failures: u32,
    },
    /// Accepting failed; it goes on after a pause.
    AcceptFailed {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        error: Arc<io::Error>,
    },
    /// A task of the socket panicked, which is a fault of this crate or of a callback. What the task did has ended.
    Panicked {
        /// The panic's text.
        message: String,
    },
    /// The reader was too slow, and events were left out.
    Missed(u64),
}

/// Why a connection ended.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The peer closed it.
    #[error("the peer closed the connection")]
    ClosedByPeer,
    /// It failed, or could not be made.
    #[error("the connection failed")]
    Io(#[source] Arc<io::Error>),
    /// The peer broke the protocol, or was refused or refused itself.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// `handshake_timeout` ran out.
    #[error("the handshake took too long")]
    HandshakeTimeout,
    /// No sign of life within the time of the heartbeats, this side's or the peer's.
    #[error("the peer was silent for too long")]
    Silent,
    /// Another connection with this identity exists.
    #[error("a peer with the identity {0} is connected already")]
    DuplicateIdentity(Identity),
    /// Another connection with this identity came.
    #[error("another peer came with the identity {0}")]
    HandedOver(Identity),
    /// More handshakes went on than `handshakes_max` or `handshakes_per_address_max` allow, and this was the oldest.
    #[error("it gave way to a newer connection: too many handshakes were going on")]
    TooManyHandshakes,
    /// `connections_max` was reached.
    #[error("there are as many connections as are allowed")]
    TooManyConnections,
    /// The peer had more subscriptions than are allowed.
    #[error("the peer had more subscriptions than are allowed")]
    TooManySubscriptions,
    /// More subscriptions and cancellations waited for the peer than may wait.
    #[error("the peer did not read what waits for it")]
    NotReading,
    /// `disconnect`, `unbind` or `close` was called.
    #[error("it was closed here")]
    ClosedHere,
    /// Its task panicked.
    #[error("its task panicked")]
    Panicked,
}

impl DisconnectReason {
    /// Whether trying again with the same settings is unlikely to end otherwise.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Protocol(error) if error.is_lasting())
    }
}

/// The events of a socket from when this was made.
#[derive(Debug)]
pub struct Events(pub(crate) broadcast::Receiver<Event>);

impl Events {
    /// The next event; `None` when the socket is closed. May be dropped before it returns without losing an event.
    pub async fn recv(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How often things happened since the socket was made.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The counters while they are counted.
        #[derive(Debug, Default)]
        pub(crate) struct Counting {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counting {
            pub(crate) fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Messages that came in whole.
    messages_received,
    /// Bytes read from peers, including what is not of messages.
    bytes_received,
    /// Messages that were put into the form of the wire. Some of them may be lost with a connection.
    messages_sent,
    /// Bytes written to peers.
    bytes_sent,
    /// Messages of the application that no peer has the identity for, or replies to peers that are gone.
    unroutable,
    /// Messages of the application that a full queue had no room for: those of a PUB are left out, others are given back.
    full,
    /// Messages that waited for a peer when its connection ended.
    unsent,
    /// Messages of peers that the socket's type has no use for: replies nobody asked for, requests without an envelope.
    discarded,
    /// Handshakes that were completed.
    connected,
    /// Connections that ended after that.
    disconnected,
    /// Connections that ended before that, attempts that found no peer among them.
    handshakes_failed,
    /// Connections closed at once because of `connections_max`.
    refused,
    /// Further attempts to connect.
    retries,
    /// Tasks that panicked.
    panics,
}

pub(crate) fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}
