//! The copies of cages that are known, and which of them gets a call. Filled by what discovery finds and by the
//! connections themselves; read at each call without a lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::dial::Place;
use crate::dispatcher::Member;
use crate::protocol::rpc::discovery::{Address, Found, Sighting};
use crate::protocol::rpc::fabric::CopyId;
use crate::protocol::rpc::link::Link;

/// Copies that are kept; hints beyond are ignored.
const COPIES_MAX: usize = 10_000;
/// Ways to reach one copy.
const ADDRESSES_MAX: usize = 16;
/// Connections that one copy keeps for calls in reverse.
const REVERSE_MAX: usize = 64;
/// A copy that failed is avoided for so long, twice as long each time, up to the longest.
const EJECTED_FIRST: Duration = Duration::from_millis(500);
const EJECTED_LONGEST: Duration = Duration::from_secs(10);
/// After that its share of the calls grows from little to its full one.
const RETURN: Duration = Duration::from_secs(2);
/// How much dearer it looks when it comes back.
const RETURN_COST: u64 = 16;
/// How fast a measured latency is forgotten while no other comes.
const FADE: Duration = Duration::from_millis(100);

/// Every known copy, by its cage.
#[derive(Default)]
pub(super) struct Copies {
    by_cage: ArcSwap<HashMap<Arc<str>, Known>>,
    /// Held while the table is replaced.
    writing: Mutex<()>,
}

/// A cage of which at least one copy is, or was, known.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) copies: Arc<[Arc<Copy>]>,
    /// Calls that have no answer yet.
    pub(super) in_flight: Arc<AtomicUsize>,
}

pub(super) struct Copy {
    pub(super) id: CopyId,
    pub(super) cage: Arc<str>,
    ways: Mutex<Ways>,
    /// One for each lane.
    pub(super) places: Box<[Place]>,
    pub(super) gauge: Gauge,
}

#[derive(Default)]
struct Ways {
    node: String,
    version: String,
    /// The nearest first.
    addresses: Vec<(Address, Found)>,
    /// Connections that the copy made, to be called on.
    reverse: Vec<Link>,
    /// Why the last attempt to reach it failed.
    error: Option<String>,
}

/// How a copy does.
pub(super) struct Gauge {
    epoch: Instant,
    in_flight: AtomicU32,
    /// Moving average in nanoseconds; 0 before the first answer.
    latency: AtomicU64,
    /// Milliseconds since `epoch`; 0: never.
    ejected_until: AtomicU64,
    answered_at: AtomicU64,
    failures: AtomicU32,
}

impl Copies {
    pub(super) fn get(&self, cage: &str) -> Option<Known> {
        self.by_cage.load().get(cage).filter(|known| !known.copies.is_empty()).cloned()
    }

    pub(super) fn cages(&self) -> Vec<Arc<str>> {
        self.by_cage.load().iter().filter(|(_, known)| !known.copies.is_empty()).map(|(cage, _)| cage.clone()).collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<Copy>> {
        self.by_cage.load().values().flat_map(|known| known.copies.iter().cloned()).collect()
    }

    /// Takes a hint in. Returns the copy when it was not known before.
    pub(super) fn seen(&self, sighting: &Sighting, lanes: usize) -> Option<Arc<Copy>> {
        let way = (sighting.address.clone(), sighting.found);
        let (copy, new) =
            self.update(&sighting.cage, sighting.copy, lanes, |copy| copy.add(&sighting.node, Some(way)))?;
        new.then_some(copy)
    }

    /// The copy, which is added when it is not known, and whether it was; none when there are too many. `lead` adds the
    /// way that leads to it: done before anybody can see the copy, or find that it is lost and forget it.
    pub(super) fn update(
        &self,
        cage: &str,
        id: CopyId,
        lanes: usize,
        lead: impl FnOnce(&Copy),
    ) -> Option<(Arc<Copy>, bool)> {
        let _writing = self.writing.lock();
        let known = self.by_cage.load();
        if let Some(copy) = known.get(cage).and_then(|known| known.copies.iter().find(|copy| copy.id == id)) {
            lead(copy);
            return Some((copy.clone(), false));
        }
        let mut table = HashMap::clone(&known);
        if table.values().map(|known| known.copies.len()).sum::<usize>() >= COPIES_MAX {
            return None;
        }
        let name: Arc<str> = cage.into();
        let copy = Arc::new(Copy {
            id,
            cage: name.clone(),
            ways: Mutex::default(),
            places: (0..lanes).map(|_| Place::default()).collect(),
            gauge: Gauge::new(),
        });
        lead(&copy);
        let known = table.entry(name).or_insert_with(|| Known { copies: Arc::new([]), in_flight: Arc::default() });
        known.copies = known.copies.iter().cloned().chain([copy.clone()]).collect();
        self.by_cage.store(Arc::new(table));
        Some((copy, true))
    }

    /// A way is gone; the copy too when it was the last. None of the address: all that were found so.
    pub(super) fn gone(&self, cage: &str, id: CopyId, found: Found, address: Option<&Address>) {
        let Some(known) = self.get(cage) else { return };
        let Some(copy) = known.copies.iter().find(|copy| copy.id == id) else { return };
        let fits = |way: &(Address, Found)| way.1 == found && address.is_none_or(|address| way.0 == *address);
        copy.ways.lock().addresses.retain(|way| !fits(way));
        self.drop_if_lost(copy);
    }

    /// Forgets a copy that nothing leads to any more.
    pub(super) fn drop_if_lost(&self, copy: &Arc<Copy>) {
        let _writing = self.writing.lock();
        let lost = {
            let ways = copy.ways.lock();
            ways.addresses.is_empty()
                && !ways.reverse.iter().any(Link::is_usable)
                && !copy.places.iter().any(Place::is_usable)
        };
        if !lost {
            return;
        }
        let mut table = HashMap::clone(&self.by_cage.load());
        let Some(known) = table.get_mut(&copy.cage) else { return };
        known.copies = known.copies.iter().filter(|known| !Arc::ptr_eq(known, copy)).cloned().collect();
        // The name stays while calls are counted on it.
        if known.copies.is_empty() && known.in_flight.load(Ordering::Relaxed) == 0 {
            table.remove(&copy.cage);
        }
        self.by_cage.store(Arc::new(table));
    }
}

impl Copy {
    pub(super) fn add(&self, node: &str, way: Option<(Address, Found)>) {
        let mut ways = self.ways.lock();
        if !node.is_empty() {
            ways.node = node.to_owned();
        }
        if let Some(way) = way.filter(|way| !ways.addresses.contains(way))
            && ways.addresses.len() < ADDRESSES_MAX
        {
            ways.addresses.push(way);
            ways.addresses.sort_by_key(|(address, found)| (!address.is_here(), *found));
        }
    }

    /// What its greeting said.
    pub(super) fn greeted(&self, node: &str, version: &str) {
        let mut ways = self.ways.lock();
        (ways.node, ways.version, ways.error) = (node.to_owned(), version.to_owned(), None);
    }

    pub(super) fn failed(&self, error: String) {
        self.ways.lock().error = Some(error);
    }

    pub(super) fn addresses(&self) -> Vec<(Address, Found)> {
        self.ways.lock().addresses.clone()
    }

    /// On this machine.
    pub(super) fn is_here(&self) -> bool {
        self.ways.lock().addresses.iter().any(|(address, _)| address.is_here())
    }

    /// A connection to be called on that the copy made itself.
    pub(super) fn add_reverse(&self, link: Link) {
        let mut ways = self.ways.lock();
        ways.reverse.retain(|link| !link.is_closed());
        if ways.reverse.len() < REVERSE_MAX {
            ways.reverse.push(link);
        }
    }

    pub(super) fn reverse(&self) -> Option<Link> {
        let ways = self.ways.lock();
        let usable: Vec<&Link> = ways.reverse.iter().filter(|link| link.is_usable()).collect();
        usable.into_iter().min_by_key(|link| (link.is_suspect(), link.calls_open())).cloned()
    }

    /// Heard of lately on every connection there is, and not avoided for what it did.
    pub(super) fn is_sound(&self) -> bool {
        !self.gauge.is_ejected() && !self.places.iter().any(Place::is_suspect)
    }

    pub(super) fn member(&self) -> Member {
        let ways = self.ways.lock();
        let connected = self.places.iter().any(Place::is_usable) || ways.reverse.iter().any(Link::is_usable);
        let health = match &ways.error {
            _ if self.places.iter().any(Place::is_suspect) => "silent".to_owned(),
            Some(error) if self.gauge.is_ejected() => format!("avoided: {error}"),
            _ if self.gauge.is_ejected() => "avoided".to_owned(),
            _ if connected => "connected".to_owned(),
            Some(error) => format!("unreachable: {error}"),
            None => "idle".to_owned(),
        };
        let mut found: Vec<String> = ways.addresses.iter().map(|(_, found)| found.to_string()).collect();
        if !ways.reverse.is_empty() {
            found.push(Found::Reverse.to_string());
        }
        found.dedup();
        let mut addresses: Vec<String> = ways.addresses.iter().map(|(address, _)| address.to_string()).collect();
        addresses.dedup();
        Member {
            cage: self.cage.to_string(),
            copy: self.id.to_string(),
            node: ways.node.clone(),
            version: ways.version.clone(),
            addresses,
            found: found.join(", "),
            health,
            in_flight: self.gauge.in_flight.load(Ordering::Relaxed),
            latency_us: self.gauge.latency().map(|latency| latency.as_micros() as u64),
        }
    }
}

impl Known {
    /// The copy for the next call, of those not tried yet: the better of two by chance. A copy that is avoided is only
    /// taken when no other is left.
    pub(super) fn choose(&self, tried: &[CopyId], near_first: bool) -> Option<Arc<Copy>> {
        let left: Vec<&Arc<Copy>> = self.copies.iter().filter(|copy| !tried.contains(&copy.id)).collect();
        if let [only] = left[..] {
            return Some(only.clone());
        }
        let mut best: Vec<&Arc<Copy>> = left.iter().copied().filter(|copy| copy.is_sound()).collect();
        if near_first && best.iter().any(|copy| copy.is_here()) {
            best.retain(|copy| copy.is_here());
        }
        match best.len() {
            0 => left.into_iter().min_by_key(|copy| copy.gauge.ejected_until.load(Ordering::Relaxed)).cloned(),
            1 => Some(best[0].clone()),
            count => {
                let first = fastrand::usize(..count);
                let second = (first + 1 + fastrand::usize(..count - 1)) % count;
                let (first, second) = (best[first], best[second]);
                Some(if first.gauge.is_better_than(&second.gauge) { first } else { second }.clone())
            }
        }
    }
}

impl Gauge {
    fn new() -> Self {
        Self {
            epoch: Instant::now(),
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            failures: AtomicU32::new(0),
        }
    }

    fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    fn is_ejected(&self) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && self.now_ms() < until
    }

    /// A small difference is chance, and the one with fewer calls in work gets the next. A copy that has not answered yet is
    /// taken to be as fast as the other: so it is tried, and not by everybody at once.
    fn is_better_than(&self, other: &Self) -> bool {
        let (latency, other_latency) = (self.faded_latency(), other.faded_latency());
        let known = latency.or(other_latency).unwrap_or(1);
        let (cost, other_cost) = (self.cost(latency.unwrap_or(known)), other.cost(other_latency.unwrap_or(known)));
        if cost / 2 > other_cost || other_cost / 2 > cost {
            return cost < other_cost;
        }
        self.in_flight.load(Ordering::Relaxed) <= other.in_flight.load(Ordering::Relaxed)
    }

    /// In nanoseconds. What was measured counts for half after each `FADE` without an answer, so that a copy that was slow
    /// once is tried again.
    fn faded_latency(&self) -> Option<u64> {
        let age_ms = self.now_ms().saturating_sub(self.answered_at.load(Ordering::Relaxed));
        let latency = self.latency()?.as_nanos() as u64;
        Some((latency >> (age_ms / FADE.as_millis() as u64).min(30)).max(1))
    }

    /// What one more call would cost, at that latency.
    fn cost(&self, latency: u64) -> u64 {
        let cost = latency.saturating_mul(u64::from(self.in_flight.load(Ordering::Relaxed)) + 1);
        let until = self.ejected_until.load(Ordering::Relaxed);
        let returned = match until {
            0 => RETURN.as_millis() as u64,
            until => self.now_ms().saturating_sub(until),
        };
        let return_ms = RETURN.as_millis() as u64;
        let left = return_ms.saturating_sub(returned);
        cost.saturating_mul(1 + RETURN_COST * left / return_ms)
    }

    fn latency(&self) -> Option<Duration> {
        Some(self.latency.load(Ordering::Relaxed)).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
    }

    /// A call begins; it ends with one of the others.
    pub(super) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self)
    }

    /// An answer came.
    pub(super) fn answered(&self, elapsed: Duration) {
        self.slow(elapsed);
        self.failures.store(0, Ordering::Relaxed);
    }

    /// An answer took so long, or longer. Lost updates of two at once do not matter.
    pub(super) fn slow(&self, elapsed: Duration) {
        let (old, new) = (self.latency.load(Ordering::Relaxed), elapsed.as_nanos().max(1) as u64);
        let average = if old == 0 { new } else { old - old / 8 + new / 8 };
        self.latency.store(average.max(1), Ordering::Relaxed);
        self.answered_at.store(self.now_ms(), Ordering::Relaxed);
    }

    /// It could not be reached, broke off, or hung.
    pub(super) fn failed(&self) {
        if self.is_ejected() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let pause = EJECTED_LONGEST.min(EJECTED_FIRST * 2_u32.pow(failures));
        self.ejected_until.store(self.now_ms() + pause.as_millis() as u64, Ordering::Relaxed);
    }
}

/// A call that has no answer yet.
pub(super) struct InFlight<'a>(&'a Gauge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting(cage: &str, copy: u64, address: Address, found: Found) -> Sighting {
        Sighting { cage: cage.into(), copy: CopyId(copy), node: "n".into(), address, found }
    }

    fn tcp(text: &str) -> Address {
        Address::Tcp(text.into())
    }

    #[test]
    fn copies_come_and_go_with_the_ways_to_them() {
        let copies = Copies::default();
        let (peer, multicast) = (tcp("10.0.0.1:1"), tcp("10.0.0.2:1"));
        assert!(copies.seen(&sighting("a", 1, peer.clone(), Found::Peer), 1).is_some());
        assert!(copies.seen(&sighting("a", 1, multicast, Found::Multicast), 1).is_none());
        assert!(copies.seen(&sighting("a", 2, peer.clone(), Found::Peer), 1).is_some());
        assert_eq!(copies.get("a").unwrap().copies.len(), 2);
        copies.gone("a", CopyId(1), Found::Peer, Some(&peer));
        assert_eq!(copies.get("a").unwrap().copies.len(), 2);
        copies.gone("a", CopyId(1), Found::Multicast, None);
        assert_eq!(copies.get("a").unwrap().copies[0].id, CopyId(2));
        copies.gone("a", CopyId(2), Found::Peer, None);
        assert!(copies.get("a").is_none() && copies.cages().is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let copies = Copies::default();
        for copy in 0..COPIES_MAX as u64 {
            // One cage, so that the table is quick to copy.
            copies.update("a", CopyId(copy + 1), 1, |_| {}).unwrap();
            if copy > 50 {
                break;
            }
        }
        let copy = copies.get("a").unwrap().copies[0].clone();
        for port in 0..100 {
            copy.add("n", Some((tcp(&format!("10.0.0.1:{port}")), Found::Told)));
        }
        assert_eq!(copy.addresses().len(), ADDRESSES_MAX);
    }

    /// A copy was once forgotten between its becoming known and its getting an address: calls found nobody from then on.
    #[test]
    fn a_copy_is_seen_with_a_way_to_it_only() {
        let copies = Copies::default();
        let peer = tcp("10.0.0.1:1");
        let lead = |copy: &Copy| {
            assert!(copies.get("a").is_none());
            copy.add("n", Some((peer.clone(), Found::Peer)));
        };
        let (copy, new) = copies.update("a", CopyId(1), 1, lead).unwrap();
        copies.drop_if_lost(&copy);
        assert!(new && copies.get("a").is_some());
    }

    #[test]
    fn the_better_of_two_is_chosen_and_a_failed_one_avoided() {
        let copies = Copies::default();
        for copy in 1..=2 {
            copies.seen(&sighting("a", copy, tcp("10.0.0.1:1"), Found::Peer), 1);
        }
        let known = copies.get("a").unwrap();
        let share = |known: &Known| {
            (0..1_000).filter(|_| known.choose(&[], true).is_some_and(|copy| copy.id == CopyId(1))).count()
        };
        assert_eq!(known.choose(&[CopyId(1)], true).unwrap().id, CopyId(2));
        assert!(known.choose(&[CopyId(1), CopyId(2)], true).is_none());
        known.copies[0].gauge.answered(Duration::from_millis(50));
        known.copies[1].gauge.answered(Duration::from_millis(1));
        assert_eq!(share(&known), 0);
        known.copies[1].gauge.failed();
        assert_eq!(share(&known), 1_000);
        // When all are avoided, one is tried all the same.
        known.copies[0].gauge.failed();
        assert!(known.choose(&[], true).is_some());
    }

    /// One copy that answered within microseconds once got all calls, since another was credited with more.
    #[test]
    fn a_copy_that_has_not_answered_yet_is_tried() {
        let copies = Copies::default();
        for copy in 1..=2 {
            copies.seen(&sighting("a", copy, tcp("10.0.0.1:1"), Found::Peer), 1);
        }
        let known = copies.get("a").unwrap();
        known.copies[0].gauge.answered(Duration::from_nanos(10));
        assert!((0..100).any(|_| known.choose(&[], true).unwrap().id == CopyId(2)));
        let _waiting: Vec<_> = (0..10).map(|_| known.copies[1].gauge.begin()).collect();
        assert!((0..100).all(|_| known.choose(&[], true).unwrap().id == CopyId(1)));
    }

    #[test]
    fn copies_of_this_machine_are_preferred_unless_told_otherwise() {
        let copies = Copies::default();
        copies.seen(&sighting("a", 1, tcp("10.0.0.1:1"), Found::Peer), 1);
        copies.seen(&sighting("a", 2, Address::Unix("/run/x.sock".into()), Found::SameMachine), 1);
        let known = copies.get("a").unwrap();
        assert!((0..100).all(|_| known.choose(&[], true).unwrap().id == CopyId(2)));
        known.copies[1].gauge.answered(Duration::from_secs(1));
        assert!((0..100).any(|_| known.choose(&[], false).unwrap().id == CopyId(1)));
    }
}
