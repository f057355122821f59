//! Where other copies may be: on this machine by their sockets in a directory (`registry.rs`), on others by multicast DNS
//! (`multicast.rs`) and by addresses in the configuration (`peers.rs`). All of these are hints: whoever is told of them
//! connects, and believes only what the other side proves. Never connects to a copy itself, but to see that a socket is dead.

mod multicast;
mod peers;
mod probe;
mod registry;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use multicast::{MULTICAST_PORT, Multicast, MulticastError, MulticastSettings};
pub use peers::{BadPeerAddress, PeerAddress};
pub use probe::{MulticastInterface, ProbeError, multicast_interfaces, probe};
pub use registry::{Registered, Registry, RegistryError, Watch};

use super::fabric::CopyId;

/// Somewhere a copy may be reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    Unix(PathBuf),
    /// `host:port`; an IPv6 address in brackets.
    Tcp(String),
}

impl Address {
    /// Whether it is surely on this machine.
    pub fn is_here(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(_) => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// How a copy came to be known; the nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Found {
    SameMachine,
    Multicast,
    /// Its address is in the configuration.
    Peer,
    /// It answered at an address at which another copy was looked for.
    Met,
    /// It connected to this one, and said at which port of that machine it listens.
    Caller,
    /// Another copy knew it.
    Told,
    /// It connected to this one, to be called over that connection.
    Reverse,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameMachine => "same machine",
            Self::Multicast => "multicast",
            Self::Peer => "peers",
            Self::Met => "met",
            Self::Caller => "caller",
            Self::Told => "told by a peer",
            Self::Reverse => "reverse",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sighting {
    pub cage: String,
    pub copy: CopyId,
    /// Label of the machine; empty while unknown.
    pub node: String,
    pub address: Address,
    pub found: Found,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Seen(Sighting),
    /// What was found this way does not lead to the copy any more; it may still be reached otherwise.
    Gone {
        cage: String,
        copy: CopyId,
        found: Found,
    },
}

/// Takes news, in order and at once: it must not block, and must not call discovery.
pub type Listener = Arc<dyn Fn(News) + Send + Sync>;
