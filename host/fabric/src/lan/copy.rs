//! One running copy of a cage elsewhere: the ways that lead to it, its connections, how it does. Ways are changed by
//! `copies.rs` only, which keeps track of what is known at each address.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::dial::Place;
use super::gauge::{Gauge, Standing};
use crate::discovery::{Address, Found};
use crate::fabric::CopyId;
use crate::link::{Closed, Link};
use wasmcage_core::call::Member;

/// Ways to reach one copy.
pub(super) const WAYS_MAX: usize = 16;
/// Connections that one copy keeps for calls in reverse.
const REVERSE_MAX: usize = 64;

pub(super) struct Copy {
    pub(super) id: CopyId,
    pub(super) cage: Arc<str>,
    pub(super) ways: Mutex<Ways>,
    /// One of the ways is on this machine.
    here: AtomicBool,
    /// One for each lane.
    pub(super) places: Box<[Place]>,
    pub(super) gauge: Gauge,
}

#[derive(Default)]
pub(super) struct Ways {
    node: String,
    version: String,
    /// The nearest first.
    pub(super) all: Vec<Way>,
    /// Connections that the copy made, to be called on.
    reverse: Vec<Link>,
    /// Why the last attempt to reach it failed.
    error: Option<String>,
    /// The cage that told of it, as long as nothing else leads to it.
    pub(super) teller: Option<Arc<str>>,
}

/// Where a copy may be reached, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) address: Address,
    pub(super) found: Found,
    /// `Found::Told`: forgotten then unless it is told again.
    pub(super) expires: Option<Instant>,
    /// `Found::Caller`: connections of the copy that are open and name this address.
    pub(super) callers: usize,
}

impl Way {
    pub(super) fn new(address: Address, found: Found) -> Self {
        Self { address, found, expires: None, callers: 0 }
    }
}

impl Ways {
    pub(super) fn find(&mut self, address: &Address, found: Found) -> Option<&mut Way> {
        self.all.iter_mut().find(|way| way.found == found && way.address == *address)
    }

    /// False when there are too many.
    pub(super) fn add(&mut self, way: Way) -> bool {
        if self.all.len() >= WAYS_MAX {
            return false;
        }
        self.all.push(way);
        self.all.sort_by_key(|way| (!way.address.is_here(), way.found));
        true
    }

    /// Nobody but another copy says that it is there.
    pub(super) fn is_hearsay(&self) -> bool {
        !self.all.is_empty() && self.reverse.is_empty() && self.all.iter().all(|way| way.found == Found::Told)
    }
}

impl Copy {
    pub(super) fn new(id: CopyId, cage: Arc<str>, lanes: usize) -> Self {
        Self {
            id,
            cage,
            ways: Mutex::default(),
            here: AtomicBool::new(false),
            places: (0..lanes).map(|_| Place::default()).collect(),
            gauge: Gauge::new(),
        }
    }

    pub(super) fn set_node(&self, node: &str) {
        if !node.is_empty() {
            node.clone_into(&mut self.ways.lock().node);
        }
    }

    /// What its greeting said.
    pub(super) fn describe(&self, node: &str, version: &str) {
        let mut ways = self.ways.lock();
        (ways.node, ways.version) = (node.to_owned(), version.to_owned());
    }

    /// It greeted on a connection on which it can be called.
    pub(super) fn greeted(&self, node: &str, version: &str) {
        self.describe(node, version);
        self.ways.lock().error = None;
        self.gauge.prove();
    }

    pub(super) fn failed(&self, error: String) {
        self.ways.lock().error = Some(error);
    }

    pub(super) fn addresses(&self) -> Vec<(Address, Found)> {
        self.ways.lock().all.iter().map(|way| (way.address.clone(), way.found)).collect()
    }

    /// On this machine.
    pub(super) fn is_here(&self) -> bool {
        self.here.load(Ordering::Relaxed)
    }

    /// To be called when its ways have changed.
    pub(super) fn note_where(&self, ways: &Ways) {
        self.here.store(ways.all.iter().any(|way| way.address.is_here()), Ordering::Relaxed);
    }

    /// A connection to be called on that the copy made itself.
    pub(super) fn add_reverse(&self, link: Link) {
        let mut ways = self.ways.lock();
        ways.error = None;
        ways.reverse.retain(|link| !link.is_closed());
        if ways.reverse.len() < REVERSE_MAX {
            ways.reverse.push(link);
        }
    }

    pub(super) fn reverse(&self) -> Option<Link> {
        let ways = self.ways.lock();
        let usable = ways.reverse.iter().filter(|link| link.is_usable());
        usable.min_by_key(|link| (link.is_suspect(), link.calls_open())).cloned()
    }

    /// A connection to it, or of its own, has ended. As long as another stands, that one tells how the copy is.
    pub(super) fn connection_ended(&self, closed: &Closed) {
        if !self.is_connected() {
            match closed {
                Closed::Silent(_) | Closed::Unread => {
                    self.failed(closed.to_string());
                    self.gauge.fail();
                }
                Closed::Here | Closed::ByPeer | Closed::Bye(_) | Closed::Violation(_) | Closed::Io(_) => {
                    self.gauge.doubt();
                }
            }
        }
        self.places.iter().for_each(Place::forget_closed);
    }

    /// Heard of lately on every connection there is, quick to connect to, and proven.
    pub(super) fn is_sound(&self) -> bool {
        self.gauge.standing() == Standing::Proven
            && !self.places.iter().any(|place| place.is_suspect() || place.is_slow_to_connect(&self.gauge))
            // Those that it made itself matter where calls go over them.
            && (self.places.iter().any(Place::is_usable) || !self.reverse().is_some_and(|link| link.is_suspect()))
    }

    /// A connection on which it can be called stands.
    pub(super) fn is_connected(&self) -> bool {
        self.places.iter().any(Place::is_usable) || self.ways.lock().reverse.iter().any(Link::is_usable)
    }

    /// It was heard lately on such a connection.
    pub(super) fn is_heard(&self) -> bool {
        let heard = |link: &Link| link.is_usable() && !link.is_suspect();
        self.places.iter().any(|place| place.usable().is_some_and(|link| heard(&link)))
            || self.ways.lock().reverse.iter().any(heard)
    }

    /// Nothing leads to it.
    pub(super) fn is_lost(&self) -> bool {
        let no_way = self.ways.lock().all.is_empty();
        no_way && !self.is_connected()
    }

    /// Where others could reach it, by what this copy knows at first hand: an address where it answered, or that it named
    /// itself and did not fail at since.
    pub(super) fn firsthand(&self) -> Option<Address> {
        let in_doubt = !self.is_connected() && (self.gauge.standing() == Standing::Avoided);
        let ways = self.ways.lock();
        let fits = |way: &&Way| match way.found {
            Found::Met | Found::Caller => true,
            Found::Peer | Found::Multicast => !in_doubt,
            Found::SameMachine | Found::Told | Found::Reverse => false,
        };
        // An address rather than a name, which may mean something else elsewhere.
        let is_named = |way: &&Way| way.found == Found::Peer;
        ways.all.iter().filter(fits).min_by_key(is_named).map(|way| way.address.clone())
    }

    pub(super) fn member(&self) -> Member {
        let connected = self.is_connected();
        let paused = self.gauge.is_paused();
        let ways = self.ways.lock();
        let health = match &ways.error {
            _ if self.places.iter().any(Place::is_suspect) => "silent".to_owned(),
            Some(error) if paused => format!("avoided: {error}"),
            _ if paused => "avoided".to_owned(),
            _ if connected => "connected".to_owned(),
            Some(error) => format!("unreachable: {error}"),
            None => "idle".to_owned(),
        };
        let mut found: Vec<String> = ways.all.iter().map(|way| way.found.to_string()).collect();
        if ways.reverse.iter().any(|link| !link.is_closed()) {
            found.push(Found::Reverse.to_string());
        }
        found.dedup();
        let mut addresses: Vec<String> = ways.all.iter().map(|way| way.address.to_string()).collect();
        addresses.dedup();
        Member {
            cage: self.cage.to_string(),
            copy: self.id.to_string(),
            node: ways.node.clone(),
            version: ways.version.clone(),
            addresses,
            found: found.join(", "),
            health,
            in_flight: self.gauge.in_flight(),
            latency_us: self.gauge.latency().map(|latency| latency.as_micros() as u64),
        }
    }
}
