//! The socket types of ZeroMQ, and which of them may talk to each other.

use std::fmt;

/// A socket type (RFC 37, "The Socket-Type Property").
///
/// Sockets of this crate have the eight types that [`Socket`](crate::Socket) can make; the others are known as peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are ZeroMQ's own")]
pub enum SocketType {
    Req,
    Rep,
    Dealer,
    Router,
    Pub,
    XPub,
    Sub,
    XSub,
    Push,
    Pull,
    Pair,
}

impl SocketType {
    const ALL: [Self; 11] = [
        Self::Req,
        Self::Rep,
        Self::Dealer,
        Self::Router,
        Self::Pub,
        Self::XPub,
        Self::Sub,
        Self::XSub,
        Self::Push,
        Self::Pull,
        Self::Pair,
    ];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Req => "REQ",
            Self::Rep => "REP",
            Self::Dealer => "DEALER",
            Self::Router => "ROUTER",
            Self::Pub => "PUB",
            Self::XPub => "XPUB",
            Self::Sub => "SUB",
            Self::XSub => "XSUB",
            Self::Push => "PUSH",
            Self::Pull => "PULL",
            Self::Pair => "PAIR",
        }
    }

    /// The type with this name on the wire.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name().as_bytes() == name)
    }

    /// Whether sockets of the two types may be connected (RFC 37, "The Socket-Type Property").
    #[must_use]
    pub const fn is_compatible(self, peer: Self) -> bool {
        match self {
            Self::Req => matches!(peer, Self::Rep | Self::Router),
            Self::Rep => matches!(peer, Self::Req | Self::Dealer),
            Self::Dealer => matches!(peer, Self::Rep | Self::Dealer | Self::Router),
            Self::Router => matches!(peer, Self::Req | Self::Dealer | Self::Router),
            Self::Pub | Self::XPub => matches!(peer, Self::Sub | Self::XSub),
            Self::Sub | Self::XSub => matches!(peer, Self::Pub | Self::XPub),
            Self::Push => matches!(peer, Self::Pull),
            Self::Pull => matches!(peer, Self::Push),
            Self::Pair => matches!(peer, Self::Pair),
        }
    }

    /// Whether the type announces an identity (RFC 37, "The Identity Property").
    pub(crate) const fn announces_identity(self) -> bool {
        matches!(self, Self::Req | Self::Dealer | Self::Router)
    }

    /// Whether the type hands messages of its peers to the application.
    pub(crate) const fn receives(self) -> bool {
        !matches!(self, Self::Pub | Self::Push)
    }

    /// Whether the type spreads its messages over its peers in turn.
    pub(crate) const fn takes_turns(self) -> bool {
        matches!(self, Self::Dealer | Self::Push | Self::Req)
    }
}

impl fmt::Display for SocketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_compatibility_is_mutual() {
        for one in SocketType::ALL {
            assert_eq!(SocketType::from_name(one.name().as_bytes()), Some(one));
            for other in SocketType::ALL {
                assert_eq!(one.is_compatible(other), other.is_compatible(one), "{one} and {other}");
            }
        }
        assert_eq!(SocketType::from_name(b"router"), None);
    }
}
