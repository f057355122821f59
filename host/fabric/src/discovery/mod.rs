//! Finds where other copies may be: on this machine by their sockets in a directory (`registry.rs`), on other machines
//! by multicast DNS (`multicast.rs`) and by addresses in the configuration (`peers.rs`). All of these are hints: the
//! listener connects, and trusts only what the other side proves. Discovery itself connects to a socket only to see
//! whether anybody listens there.

mod multicast;
mod peers;
mod probe;
mod registry;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use multicast::MULTICAST_PORT;
pub use multicast::{Multicast, MulticastError, MulticastSettings};
pub use peers::{BadPeerAddress, PeerAddress};
pub use probe::{MulticastInterface, ProbeError, multicast_interfaces, probe};
pub use registry::{Registration, Registry, RegistryError, RegistryWatch};

use super::fabric::CopyId;

/// An address at which a copy may be reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CopyAddress {
    Unix(PathBuf),
    /// `host:port`; an IPv6 address in brackets.
    Tcp(String),
}

impl CopyAddress {
    /// Returns whether the address is surely on this machine.
    pub fn is_here(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(_) => false,
        }
    }
}

impl fmt::Display for CopyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// How the address of a copy became known, in the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FoundBy {
    SameMachine,
    Multicast,
    /// The address is in the configuration.
    Configuration,
    /// The copy greeted on a connection that this one made to the address.
    Connection,
    /// The copy connected to this one, and said at which port it listens.
    Caller,
    /// A peer reported the copy.
    Gossip,
    /// The copy connected to this one, to be called over that connection.
    Reverse,
}

impl fmt::Display for FoundBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameMachine => "same machine",
            Self::Multicast => "multicast",
            Self::Configuration => "peers",
            Self::Connection => "met",
            Self::Caller => "caller",
            Self::Gossip => "told by a peer",
            Self::Reverse => "reverse",
        })
    }
}

/// Says that a copy may be reached at an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CopyHint {
    pub cage: String,
    pub copy: CopyId,
    /// Label of the machine; empty while unknown.
    pub node: String,
    pub address: CopyAddress,
    pub found_by: FoundBy,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscoveryEvent {
    Found(CopyHint),
    /// The addresses that were found this way do not lead to the copy any more; it may have others.
    Lost {
        cage: String,
        copy: CopyId,
        found_by: FoundBy,
    },
}

/// Receives the events in order, on discovery's thread: it must not block, and must not call discovery.
pub type Listener = Arc<dyn Fn(DiscoveryEvent) + Send + Sync>;
