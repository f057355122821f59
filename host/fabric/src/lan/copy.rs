//! One running copy of another cage: its known addresses, its connections and its health. Only `copies.rs` changes the
//! addresses, since it also keeps an index by address.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::dial::LaneConnection;
use super::gauge::{CopyHealth, Gauge};
use crate::discovery::{CopyAddress, FoundBy};
use crate::fabric::CopyId;
use crate::link::{CloseReason, Link};
use wasmcage_core::call::Member;

/// Known addresses of one copy; further ones are ignored.
pub(super) const ADDRESSES_MAX: usize = 16;
/// Connections made by one copy that are kept for calls to it.
const REVERSE_MAX: usize = 64;

pub(super) struct RemoteCopy {
    pub(super) id: CopyId,
    pub(super) cage: Arc<str>,
    pub(super) state: Mutex<CopyState>,
    /// Whether one of the addresses is on this machine.
    here: AtomicBool,
    /// One for each lane.
    pub(super) connections: Box<[LaneConnection]>,
    pub(super) gauge: Gauge,
}

#[derive(Default)]
pub(super) struct CopyState {
    node: String,
    version: String,
    /// Sorted, the nearest first.
    pub(super) addresses: Vec<KnownAddress>,
    /// Connections that the copy made and over which it can be called.
    reverse: Vec<Link>,
    /// Why the last attempt to reach it failed.
    error: Option<String>,
    /// The cage whose gossip reported it, while it is known by gossip only.
    pub(super) reporter: Option<Arc<str>>,
}

/// An address where a copy may be reached, and how that became known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownAddress {
    pub(super) address: CopyAddress,
    pub(super) found_by: FoundBy,
    /// When the entry is forgotten unless gossip repeats it. Set for `FoundBy::Gossip` only.
    pub(super) expires: Option<Instant>,
    /// Open connections made by the copy that name this address. Used with `FoundBy::Caller` only.
    pub(super) callers: usize,
}

impl KnownAddress {
    pub(super) fn new(address: CopyAddress, found_by: FoundBy) -> Self {
        Self { address, found_by, expires: None, callers: 0 }
    }
}

impl CopyState {
    pub(super) fn find(&mut self, address: &CopyAddress, found_by: FoundBy) -> Option<&mut KnownAddress> {
        self.addresses.iter_mut().find(|entry| entry.found_by == found_by && entry.address == *address)
    }

    /// Returns false when the copy has `ADDRESSES_MAX` addresses already.
    pub(super) fn add(&mut self, entry: KnownAddress) -> bool {
        if self.addresses.len() >= ADDRESSES_MAX {
            return false;
        }
        self.addresses.push(entry);
        self.addresses.sort_by_key(|entry| (!entry.address.is_here(), entry.found_by));
        true
    }

    /// Returns whether nothing but gossip says that the copy exists.
    pub(super) fn is_gossip_only(&self) -> bool {
        !self.addresses.is_empty()
            && self.reverse.is_empty()
            && self.addresses.iter().all(|entry| entry.found_by == FoundBy::Gossip)
    }
}

impl RemoteCopy {
    pub(super) fn new(id: CopyId, cage: Arc<str>, lanes: usize) -> Self {
        Self {
            id,
            cage,
            state: Mutex::default(),
            here: AtomicBool::new(false),
            connections: (0..lanes).map(|_| LaneConnection::default()).collect(),
            gauge: Gauge::new(),
        }
    }

    pub(super) fn set_node(&self, node: &str) {
        if !node.is_empty() {
            node.clone_into(&mut self.state.lock().node);
        }
    }

    /// Stores what the copy's greeting said.
    pub(super) fn describe(&self, node: &str, version: &str) {
        let mut state = self.state.lock();
        (state.node, state.version) = (node.to_owned(), version.to_owned());
    }

    /// Records that the copy greeted on a connection over which it can be called.
    pub(super) fn greeted(&self, node: &str, version: &str) {
        self.describe(node, version);
        self.state.lock().error = None;
        self.gauge.set_good();
    }

    pub(super) fn failed(&self, error: String) {
        self.state.lock().error = Some(error);
    }

    pub(super) fn addresses(&self) -> Vec<(CopyAddress, FoundBy)> {
        self.state.lock().addresses.iter().map(|entry| (entry.address.clone(), entry.found_by)).collect()
    }

    /// Returns whether the copy runs on this machine.
    pub(super) fn is_here(&self) -> bool {
        self.here.load(Ordering::Relaxed)
    }

    /// Must be called when the addresses have changed.
    pub(super) fn note_where(&self, state: &CopyState) {
        self.here.store(state.addresses.iter().any(|entry| entry.address.is_here()), Ordering::Relaxed);
    }

    /// Adds a connection that the copy made and over which it can be called.
    pub(super) fn add_reverse(&self, link: Link) {
        let mut state = self.state.lock();
        state.error = None;
        state.reverse.retain(|link| !link.is_closed());
        if state.reverse.len() < REVERSE_MAX {
            state.reverse.push(link);
        }
    }

    pub(super) fn reverse(&self) -> Option<Link> {
        let state = self.state.lock();
        let usable = state.reverse.iter().filter(|link| link.is_usable());
        usable.min_by_key(|link| (link.is_suspect(), link.calls_open())).cloned()
    }

    /// Records the end of a connection, made by either side. The copy's health changes only when no other connection is
    /// open.
    pub(super) fn connection_ended(&self, closed: &CloseReason) {
        if !self.is_connected() {
            match closed {
                CloseReason::Silent(_) | CloseReason::Unread => {
                    self.failed(closed.to_string());
                    self.gauge.fail();
                }
                CloseReason::Here
                | CloseReason::ByPeer
                | CloseReason::Bye(_)
                | CloseReason::Violation(_)
                | CloseReason::Io(_) => {
                    self.gauge.set_unknown();
                }
            }
        }
        self.connections.iter().for_each(LaneConnection::forget_closed);
    }

    /// Returns whether the copy may get calls: its health is good, no connection is silent, and none takes long to make.
    pub(super) fn is_healthy(&self) -> bool {
        self.gauge.health() == CopyHealth::Good
            && !self.connections.iter().any(|connection| connection.is_suspect() || connection.is_slow_to_connect(&self.gauge))
            // Connections that the copy made matter only when calls go over them.
            && (self.connections.iter().any(LaneConnection::is_usable) || !self.reverse().is_some_and(|link| link.is_suspect()))
    }

    /// Returns whether there is an open connection over which the copy can be called.
    pub(super) fn is_connected(&self) -> bool {
        self.connections.iter().any(LaneConnection::is_usable) || self.state.lock().reverse.iter().any(Link::is_usable)
    }

    /// Returns whether something was received lately on such a connection.
    pub(super) fn is_responsive(&self) -> bool {
        let is_heard = |link: &Link| link.is_usable() && !link.is_suspect();
        self.connections.iter().any(|connection| connection.usable().is_some_and(|link| is_heard(&link)))
            || self.state.lock().reverse.iter().any(is_heard)
    }

    /// Returns whether the copy has neither an address nor a connection.
    pub(super) fn is_unreachable(&self) -> bool {
        let no_address = self.state.lock().addresses.is_empty();
        no_address && !self.is_connected()
    }

    /// Returns an address that peers may be told: one where the copy answered, or that the copy named itself, that is
    /// configured or that it announced by multicast and at which it has not failed since.
    pub(super) fn firsthand(&self) -> Option<CopyAddress> {
        let in_doubt = !self.is_connected() && (self.gauge.health() == CopyHealth::Avoided);
        let state = self.state.lock();
        let fits = |entry: &&KnownAddress| match entry.found_by {
            FoundBy::Connection | FoundBy::Caller => true,
            FoundBy::Configuration | FoundBy::Multicast => !in_doubt,
            FoundBy::SameMachine | FoundBy::Gossip | FoundBy::Reverse => false,
        };
        // A configured address may be a host name, which may mean something else on another machine: used last.
        let is_named = |entry: &&KnownAddress| entry.found_by == FoundBy::Configuration;
        state.addresses.iter().filter(fits).min_by_key(is_named).map(|entry| entry.address.clone())
    }

    pub(super) fn member(&self) -> Member {
        let connected = self.is_connected();
        let paused = self.gauge.is_paused();
        let state = self.state.lock();
        let health = match &state.error {
            _ if self.connections.iter().any(LaneConnection::is_suspect) => "silent".to_owned(),
            Some(error) if paused => format!("avoided: {error}"),
            _ if paused => "avoided".to_owned(),
            _ if connected => "connected".to_owned(),
            Some(error) => format!("unreachable: {error}"),
            None => "idle".to_owned(),
        };
        let mut found: Vec<String> = state.addresses.iter().map(|entry| entry.found_by.to_string()).collect();
        if state.reverse.iter().any(|link| !link.is_closed()) {
            found.push(FoundBy::Reverse.to_string());
        }
        found.dedup();
        let mut addresses: Vec<String> = state.addresses.iter().map(|entry| entry.address.to_string()).collect();
        addresses.dedup();
        Member {
            cage: self.cage.to_string(),
            copy: self.id.to_string(),
            node: state.node.clone(),
            version: state.version.clone(),
            addresses,
            found: found.join(", "),
            health,
            in_flight: self.gauge.in_flight(),
            latency_us: self.gauge.latency().map(|latency| latency.as_micros() as u64),
        }
    }
}
