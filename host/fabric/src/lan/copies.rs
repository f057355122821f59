//! The table of known copies, by cage. Discovery, gossip from peers, and the connections themselves fill it; each call
//! reads it without a lock.
//!
//! A hint may be wrong, a connection is not: the copy that answered at an address displaces hints about that address, and
//! a newer hint displaces older ones. Gossip counts only where nothing better is known, and expires.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::copy::{KnownAddress, RemoteCopy};
use crate::discovery::{CopyAddress, CopyHint, FoundBy};
use crate::fabric::CopyId;
use crate::link::Link;

/// Known copies of all cages; further hints are ignored.
pub(super) const COPIES_MAX: usize = 10_000;
/// Known copies of one cage; further hints are ignored.
pub(super) const COPIES_OF_CAGE_MAX: usize = 1_000;
/// Copies known by gossip only fill at most this fraction (one half) of each bound above, so that others find room.
const GOSSIP_SHARE: usize = 2;
/// Copies known only by the gossip of one cage.
const COPIES_OF_REPORTER_MAX: usize = 1_000;
/// Gossip that is not repeated within this time is forgotten.
pub(super) const GOSSIP_LIFETIME: Duration = Duration::from_secs(60);
/// A copy that was not found at an address is not looked for there again within this time, whatever gossip says.
const ABSENCE_LIFETIME: Duration = Duration::from_secs(60);
const ABSENCES_MAX: usize = 1_000;
/// The table is cut into this many maps; adding or removing a cage copies one of them.
const SHARDS: usize = 64;

type CopyShard = ArcSwap<HashMap<Arc<str>, Arc<CageCopies>>>;

/// Every known copy, by its cage.
pub(super) struct CopyTable {
    shards: Box<[CopyShard]>,
    hasher: RandomState,
    /// Locked by every change of the table.
    index: Mutex<CopyIndex>,
}

/// The known copies of one cage; there may be none left.
pub(super) struct CageCopies {
    copies: ArcSwap<Vec<Arc<RemoteCopy>>>,
    /// Calls to the cage that have no answer yet.
    pub(super) in_flight: AtomicUsize,
}

/// Data about the copies that only changes of the table need.
#[derive(Default)]
struct CopyIndex {
    /// Number of copies in the table.
    copies: usize,
    /// The copies that are said to be at each network address.
    at: HashMap<CopyAddress, Vec<Arc<RemoteCopy>>>,
    /// Number of copies known by gossip only, by the cage that reported them.
    gossip: HashMap<Arc<str>, usize>,
    /// Addresses where a copy was not found, and until when gossip about them is not believed.
    absent: HashMap<(CopyId, CopyAddress), Instant>,
}

impl Default for CopyTable {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| CopyShard::default()).collect();
        Self { shards, hasher: RandomState::new(), index: Mutex::default() }
    }
}

impl CageCopies {
    fn new() -> Arc<Self> {
        Arc::new(Self { copies: ArcSwap::default(), in_flight: AtomicUsize::new(0) })
    }

    pub(super) fn copies(&self) -> Arc<Vec<Arc<RemoteCopy>>> {
        self.copies.load_full()
    }

    fn find(&self, id: CopyId) -> Option<Arc<RemoteCopy>> {
        self.copies.load().iter().find(|copy| copy.id == id).cloned()
    }

    fn is_empty(&self) -> bool {
        self.copies.load().is_empty()
    }
}

/// Reads.
impl CopyTable {
    fn shard(&self, cage: &str) -> &CopyShard {
        &self.shards[self.hasher.hash_one(cage) as usize % SHARDS]
    }

    fn cage(&self, cage: &str) -> Option<Arc<CageCopies>> {
        self.shard(cage).load().get(cage).cloned()
    }

    /// Returns none when no copy is known.
    pub(super) fn get(&self, cage: &str) -> Option<Arc<CageCopies>> {
        self.cage(cage).filter(|copies| !copies.is_empty())
    }

    pub(super) fn find(&self, cage: &str, id: CopyId) -> Option<Arc<RemoteCopy>> {
        self.cage(cage)?.find(id)
    }

    /// Returns the names of the cages of which at least one copy is known.
    pub(super) fn cages(&self) -> Vec<Arc<str>> {
        let maps = self.shards.iter().map(|shard| shard.load_full());
        let cages = |map: Arc<HashMap<Arc<str>, Arc<CageCopies>>>| {
            map.iter().filter(|(_, copies)| !copies.is_empty()).map(|(cage, _)| cage.clone()).collect::<Vec<_>>()
        };
        maps.flat_map(cages).collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<RemoteCopy>> {
        let maps = self.shards.iter().map(|shard| shard.load_full());
        let copies = |map: Arc<HashMap<Arc<str>, Arc<CageCopies>>>| {
            map.values().flat_map(|cage| cage.copies().to_vec()).collect::<Vec<_>>()
        };
        maps.flat_map(copies).collect()
    }
}

/// Changes.
impl CopyTable {
    /// Adds a hint from discovery. Returns true when the copy was not known before.
    pub(super) fn add_hint(&self, hint: &CopyHint, lanes: usize) -> bool {
        let mut index = self.index.lock();
        let CopyHint { cage, copy: id, node, address, found_by } = hint;
        let added = self.add(&mut index, cage, *id, lanes, None, |index, copy| {
            copy.set_node(node);
            index.add_address(copy, KnownAddress::new(address.clone(), *found_by));
        });
        let Some((copy, new)) = added else { return false };
        let of_cage =
            |other: &RemoteCopy, entry: &KnownAddress| *other.cage == *copy.cage || entry.found_by == FoundBy::Gossip;
        self.displace(&mut index, address, &copy, of_cage);
        new
    }

    /// Adds a hint that cage `reporter` sent. Returns true when the copy was not known before.
    pub(super) fn add_gossip(&self, hint: &CopyHint, reporter: &Arc<str>, lanes: usize, now: Instant) -> bool {
        let mut index = self.index.lock();
        let CopyHint { cage, copy: id, node, address, .. } = hint;
        if index.contradicts_gossip(*id, address, now) {
            return false;
        }
        let added = self.add(&mut index, cage, *id, lanes, Some(reporter), |index, copy| {
            copy.set_node(node);
            let entry = KnownAddress {
                expires: Some(now + GOSSIP_LIFETIME),
                ..KnownAddress::new(address.clone(), FoundBy::Gossip)
            };
            index.add_address(copy, entry);
        });
        let Some((copy, new)) = added else { return false };
        self.displace(&mut index, address, &copy, |_, entry| entry.found_by == FoundBy::Gossip);
        new
    }

    /// Records that the copy greeted on a connection to `address`. Returns none when the table is full.
    pub(super) fn record_connection(
        &self,
        cage: &str,
        id: CopyId,
        lanes: usize,
        address: &CopyAddress,
        found_by: FoundBy,
    ) -> Option<Arc<RemoteCopy>> {
        let mut index = self.index.lock();
        let (copy, _) = self.add(&mut index, cage, id, lanes, None, |index, copy| {
            index.remove_addresses(copy, |known| known.found_by == FoundBy::Gossip && known.address == *address);
            let known = copy.state.lock().addresses.iter().any(|known| known.address == *address);
            if !known || found_by != FoundBy::Connection {
                index.add_address(copy, KnownAddress::new(address.clone(), found_by));
            }
        })?;
        self.displace(&mut index, address, &copy, |_, _| true);
        Some(copy)
    }

    /// Records that the copy has connected to this one. `address` is where it says that it listens; `reverse` is the
    /// connection, if the copy can be called over it. Returns none when the table is full.
    pub(super) fn record_inbound(
        &self,
        cage: &str,
        id: CopyId,
        lanes: usize,
        address: Option<&CopyAddress>,
        reverse: Option<Link>,
    ) -> Option<Arc<RemoteCopy>> {
        let mut index = self.index.lock();
        let (copy, _) = self.add(&mut index, cage, id, lanes, None, |index, copy| {
            if let Some(link) = reverse {
                copy.add_reverse(link);
                copy.gauge.set_good();
            }
            let Some(address) = address else { return };
            index.remove_addresses(copy, |entry| entry.found_by == FoundBy::Gossip && entry.address == *address);
            index.add_address(copy, KnownAddress::new(address.clone(), FoundBy::Caller));
            if let Some(entry) = copy.state.lock().find(address, FoundBy::Caller) {
                entry.callers += 1;
            }
        })?;
        if let Some(address) = address {
            self.displace(&mut index, address, &copy, |other, _| *other.cage == *copy.cage);
        }
        Some(copy)
    }

    /// Records the end of a connection that was given to `record_inbound`.
    pub(super) fn record_inbound_end(&self, copy: &Arc<RemoteCopy>, address: Option<&CopyAddress>) {
        let mut index = self.index.lock();
        if let Some(address) = address {
            if let Some(entry) = copy.state.lock().find(address, FoundBy::Caller) {
                entry.callers = entry.callers.saturating_sub(1);
            }
            index.remove_addresses(copy, |entry| entry.found_by == FoundBy::Caller && entry.callers == 0);
        }
        self.drop_unreachable(&mut index, copy);
    }

    /// Removes what was found that way: one address, or all of them without `address`. A copy that is left without an
    /// address and a connection is forgotten.
    pub(super) fn remove_addresses(&self, cage: &str, id: CopyId, found_by: FoundBy, address: Option<&CopyAddress>) {
        let Some(copy) = self.find(cage, id) else { return };
        let mut index = self.index.lock();
        let fits = |entry: &KnownAddress| {
            entry.found_by == found_by && address.is_none_or(|address| entry.address == *address)
        };
        index.remove_addresses(&copy, fits);
        self.drop_unreachable(&mut index, &copy);
    }

    /// Records that the copy is not at that address any more. Gossip that says otherwise is ignored for a while.
    pub(super) fn mark_absent(&self, copy: &Arc<RemoteCopy>, address: &CopyAddress, now: Instant) {
        let mut index = self.index.lock();
        // Open connections vouch for the other kinds.
        let is_hint = |entry: &KnownAddress| {
            entry.address == *address && !matches!(entry.found_by, FoundBy::Caller | FoundBy::Configuration)
        };
        index.remove_addresses(copy, is_hint);
        index.mark_absent(copy.id, address, now);
        self.drop_unreachable(&mut index, copy);
    }

    /// Forgets the copy if it has neither an address nor a connection.
    pub(super) fn drop_if_unreachable(&self, copy: &Arc<RemoteCopy>) {
        self.drop_unreachable(&mut self.index.lock(), copy);
    }

    /// Forgets gossip that was not repeated, and cages without copies.
    pub(super) fn expire(&self, now: Instant) {
        for copy in self.all() {
            let is_over = |entry: &KnownAddress| entry.expires.is_some_and(|expires| expires <= now);
            let any = copy.state.lock().addresses.iter().any(is_over);
            if any {
                let mut index = self.index.lock();
                index.remove_addresses(&copy, is_over);
                self.drop_unreachable(&mut index, &copy);
            }
        }
        let mut index = self.index.lock();
        index.absent.retain(|_, until| *until > now);
        for shard in &self.shards {
            let is_unused = |cage: &CageCopies| cage.is_empty() && cage.in_flight.load(Ordering::Relaxed) == 0;
            if shard.load().values().any(|cage| is_unused(cage)) {
                let mut map = HashMap::clone(&shard.load());
                map.retain(|_, cage| !is_unused(cage));
                shard.store(Arc::new(map));
            }
        }
    }

    /// Returns the copy, made if it is not known, and whether it is new; none when the table is full. `add_address` runs
    /// before the copy is visible to readers: without an address it would be forgotten as unreachable. A new copy with a
    /// `reporter` counts as known by gossip only.
    fn add(
        &self,
        index: &mut CopyIndex,
        cage: &str,
        id: CopyId,
        lanes: usize,
        reporter: Option<&Arc<str>>,
        add_address: impl FnOnce(&mut CopyIndex, &Arc<RemoteCopy>),
    ) -> Option<(Arc<RemoteCopy>, bool)> {
        let known = self.cage(cage);
        if let Some(copy) = known.as_ref().and_then(|known| known.find(id)) {
            add_address(index, &copy);
            index.update_gossip_count(&copy);
            return Some((copy, false));
        }
        if !index.has_room(known.as_deref(), reporter) {
            return None;
        }
        let name = match &known {
            Some(known) => known.copies.load().first().map(|copy| copy.cage.clone()),
            None => None,
        };
        let name: Arc<str> = name.unwrap_or_else(|| cage.into());
        let copy = Arc::new(RemoteCopy::new(id, name.clone(), lanes));
        if let Some(reporter) = reporter {
            copy.state.lock().reporter = Some(reporter.clone());
            *index.gossip.entry(reporter.clone()).or_default() += 1;
        }
        add_address(index, &copy);
        index.update_gossip_count(&copy);
        index.copies += 1;
        let known = known.unwrap_or_else(|| self.add_cage(name));
        known.copies.store(Arc::new(known.copies.load().iter().cloned().chain([copy.clone()]).collect()));
        Some((copy, true))
    }

    fn add_cage(&self, cage: Arc<str>) -> Arc<CageCopies> {
        let (shard, copies) = (self.shard(&cage), CageCopies::new());
        let mut map = HashMap::clone(&shard.load());
        map.insert(cage, copies.clone());
        shard.store(Arc::new(map));
        copies
    }

    /// Copy `by` is at that address: removes the hints about other copies there for which `fits` holds.
    fn displace(
        &self,
        index: &mut CopyIndex,
        at: &CopyAddress,
        by: &RemoteCopy,
        fits: impl Fn(&RemoteCopy, &KnownAddress) -> bool,
    ) {
        if at.is_here() {
            return;
        }
        let others: Vec<_> = index.at.get(at).into_iter().flatten().filter(|copy| copy.id != by.id).cloned().collect();
        for other in others.iter().filter(|other| !other.is_connected()) {
            let is_hint = |entry: &KnownAddress| {
                matches!(entry.found_by, FoundBy::Multicast | FoundBy::Connection | FoundBy::Gossip)
            };
            index.remove_addresses(other, |entry| entry.address == *at && is_hint(entry) && fits(other, entry));
            self.drop_unreachable(index, other);
        }
    }

    fn drop_unreachable(&self, index: &mut CopyIndex, copy: &Arc<RemoteCopy>) {
        if !copy.is_unreachable() {
            return;
        }
        let Some(cage) = self.cage(&copy.cage) else { return };
        let copies = cage.copies.load();
        let left: Vec<_> = copies.iter().filter(|known| !Arc::ptr_eq(known, copy)).cloned().collect();
        if left.len() < copies.len() {
            index.copies -= 1;
            let reporter = copy.state.lock().reporter.take();
            index.uncount_gossip(reporter);
            cage.copies.store(Arc::new(left));
        }
    }
}

impl CopyIndex {
    fn has_room(&self, known: Option<&CageCopies>, reporter: Option<&Arc<str>>) -> bool {
        let copies = known.map(CageCopies::copies).unwrap_or_default();
        if self.copies >= COPIES_MAX || copies.len() >= COPIES_OF_CAGE_MAX {
            return false;
        }
        let Some(reporter) = reporter else { return true };
        let of_cage = copies.iter().filter(|copy| copy.state.lock().reporter.is_some()).count();
        of_cage < COPIES_OF_CAGE_MAX / GOSSIP_SHARE
            && self.gossip.values().sum::<usize>() < COPIES_MAX / GOSSIP_SHARE
            && self.gossip.get(reporter).is_none_or(|of_teller| *of_teller < COPIES_OF_REPORTER_MAX)
    }

    /// Returns whether something better than gossip says that the copy is not at that address.
    fn contradicts_gossip(&self, id: CopyId, address: &CopyAddress, now: Instant) -> bool {
        let better = |copy: &Arc<RemoteCopy>| {
            copy.id != id
                && copy
                    .state
                    .lock()
                    .addresses
                    .iter()
                    .any(|entry| entry.address == *address && entry.found_by != FoundBy::Gossip)
        };
        self.absent.get(&(id, address.clone())).is_some_and(|until| *until > now)
            || self.at.get(address).is_some_and(|copies| copies.iter().any(better))
    }

    fn mark_absent(&mut self, id: CopyId, address: &CopyAddress, now: Instant) {
        if self.absent.len() >= ABSENCES_MAX {
            self.absent.retain(|_, until| *until > now);
        }
        if self.absent.len() < ABSENCES_MAX {
            self.absent.insert((id, address.clone()), now + ABSENCE_LIFETIME);
        }
    }

    fn add_address(&mut self, copy: &Arc<RemoteCopy>, entry: KnownAddress) {
        let mut state = copy.state.lock();
        if let Some(known) = state.find(&entry.address, entry.found_by) {
            known.expires = entry.expires;
            return;
        }
        let address = entry.address.clone();
        if !state.add(entry) {
            return;
        }
        copy.note_where(&state);
        drop(state);
        if !address.is_here() {
            let copies = self.at.entry(address).or_default();
            if !copies.iter().any(|known| Arc::ptr_eq(known, copy)) {
                copies.push(copy.clone());
            }
        }
    }

    fn remove_addresses(&mut self, copy: &Arc<RemoteCopy>, fits: impl Fn(&KnownAddress) -> bool) {
        let mut state = copy.state.lock();
        let removed: Vec<_> = state.addresses.extract_if(.., |entry| fits(entry)).map(|entry| entry.address).collect();
        copy.note_where(&state);
        for address in removed {
            if !state.addresses.iter().any(|entry| entry.address == address) {
                self.unindex(copy, &address);
            }
        }
    }

    fn unindex(&mut self, copy: &Arc<RemoteCopy>, address: &CopyAddress) {
        if let Some(copies) = self.at.get_mut(address) {
            copies.retain(|known| !Arc::ptr_eq(known, copy));
            if copies.is_empty() {
                self.at.remove(address);
            }
        }
    }

    /// Stops counting the copy as known by gossip only once it is known otherwise.
    fn update_gossip_count(&mut self, copy: &RemoteCopy) {
        let mut state = copy.state.lock();
        if state.reporter.is_some() && !state.is_gossip_only() {
            let reporter = state.reporter.take();
            drop(state);
            self.uncount_gossip(reporter);
        }
    }

    fn uncount_gossip(&mut self, reporter: Option<Arc<str>>) {
        let Some(reporter) = reporter else { return };
        if let Some(count) = self.gossip.get_mut(&reporter) {
            *count -= 1;
            if *count == 0 {
                self.gossip.remove(&reporter);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(cage: &str, copy: u64, address: &str, found_by: FoundBy) -> CopyHint {
        let address = CopyAddress::Tcp(address.into());
        CopyHint { cage: cage.into(), copy: CopyId(copy), node: "n".into(), address, found_by }
    }

    fn at(address: &str) -> CopyAddress {
        CopyAddress::Tcp(address.into())
    }

    fn ids(copies: &CopyTable, cage: &str) -> Vec<u64> {
        let mut ids: Vec<_> =
            copies.get(cage).iter().flat_map(|known| known.copies().to_vec()).map(|copy| copy.id.0).collect();
        ids.sort_unstable();
        ids
    }

    /// Adds gossip of a peer of cage `reporter`.
    fn gossip(copies: &CopyTable, reporter: &str, cage: &str, copy: u64, address: &str) -> bool {
        copies.add_gossip(&hint(cage, copy, address, FoundBy::Gossip), &reporter.into(), 1, Instant::now())
    }

    #[test]
    fn copies_come_and_go_with_their_addresses() {
        let copies = CopyTable::default();
        assert!(copies.add_hint(&hint("a", 1, "10.0.0.1:1", FoundBy::Multicast), 1));
        assert!(!copies.add_hint(&hint("a", 1, "10.0.0.2:1", FoundBy::Multicast), 1));
        copies.record_connection("a", CopyId(1), 1, &at("10.0.0.3:1"), FoundBy::Configuration).unwrap();
        assert!(copies.add_hint(&hint("a", 2, "10.0.0.4:1", FoundBy::Multicast), 1));
        assert_eq!(ids(&copies, "a"), [1, 2]);
        copies.remove_addresses("a", CopyId(1), FoundBy::Configuration, Some(&at("10.0.0.3:1")));
        assert_eq!(ids(&copies, "a"), [1, 2]);
        copies.remove_addresses("a", CopyId(1), FoundBy::Multicast, None);
        assert_eq!(ids(&copies, "a"), [2]);
        copies.remove_addresses("a", CopyId(2), FoundBy::Multicast, None);
        assert!(copies.get("a").is_none() && copies.cages().is_empty());
        let index = copies.index.lock();
        assert!(index.copies == 0 && index.at.is_empty());
    }

    /// A copy was once forgotten after it was added and before it had an address: from then on calls did not find it.
    #[test]
    fn a_copy_is_visible_only_with_an_address() {
        let copies = CopyTable::default();
        let mut index = copies.index.lock();
        let added = copies.add(&mut index, "a", CopyId(1), 1, None, |index, copy| {
            assert!(copies.get("a").is_none());
            index.add_address(copy, KnownAddress::new(at("10.0.0.1:1"), FoundBy::Configuration));
        });
        let (copy, new) = added.unwrap();
        drop(index);
        copies.drop_if_unreachable(&copy);
        assert!(new && copies.get("a").is_some());
    }

    #[test]
    fn the_copy_at_an_address_displaces_hints_about_it() {
        let copies = CopyTable::default();
        let place = "10.0.0.1:7420";
        copies.add_hint(&hint("a", 1, place, FoundBy::Multicast), 1);
        copies.add_hint(&hint("a", 2, place, FoundBy::Multicast), 1);
        assert_eq!(ids(&copies, "a"), [2], "two cannot listen at one address");
        copies.add_hint(&hint("b", 3, place, FoundBy::Multicast), 1);
        assert_eq!((ids(&copies, "a"), ids(&copies, "b")), (vec![2], vec![3]), "anybody can announce another cage");
        copies.record_connection("a", CopyId(4), 1, &at(place), FoundBy::Connection).unwrap();
        assert_eq!((ids(&copies, "a"), ids(&copies, "b")), (vec![4], vec![]), "a certificate decides");
    }

    /// Peers once kept passing on gossip about copies that had long left their address.
    #[test]
    fn gossip_counts_only_where_nothing_better_is_known() {
        let copies = CopyTable::default();
        let place = "10.0.0.1:7420";
        assert!(gossip(&copies, "hub", "a", 1, place));
        assert!(gossip(&copies, "hub", "a", 2, place));
        assert_eq!(ids(&copies, "a"), [2], "the later hint counts");
        let copy = copies.record_connection("a", CopyId(3), 1, &at(place), FoundBy::Connection).unwrap();
        assert!(!gossip(&copies, "hub", "a", 2, place) && !gossip(&copies, "hub", "b", 9, place));
        assert_eq!(ids(&copies, "a"), [3]);
        copies.mark_absent(&copy, &at(place), Instant::now());
        assert!(!gossip(&copies, "hub", "a", 3, place), "it is known not to be there");
        assert!(gossip(&copies, "hub", "a", 3, "10.0.0.2:7420"));
        let later = Instant::now() + ABSENCE_LIFETIME;
        copies.expire(later);
        assert!(ids(&copies, "a").is_empty(), "nobody has repeated it");
        assert!(copies.index.lock().absent.is_empty());
        let known = hint("a", 3, place, FoundBy::Gossip);
        assert!(copies.add_gossip(&known, &"hub".into(), 1, later));
        copies.add_gossip(&known, &"hub".into(), 1, later + GOSSIP_LIFETIME / 2);
        copies.expire(later + GOSSIP_LIFETIME);
        assert_eq!(ids(&copies, "a"), [3], "repeated gossip stays");
    }

    #[test]
    fn a_caller_is_known_as_long_as_it_is_connected() {
        let copies = CopyTable::default();
        let place = at("10.0.0.1:7420");
        let first = copies.record_inbound("a", CopyId(1), 1, Some(&place), None).unwrap();
        let second = copies.record_inbound("a", CopyId(1), 1, Some(&place), None).unwrap();
        copies.record_inbound_end(&first, Some(&place));
        assert_eq!(ids(&copies, "a"), [1]);
        copies.record_inbound_end(&second, Some(&place));
        assert!(ids(&copies, "a").is_empty() && copies.index.lock().at.is_empty());
    }

    #[test]
    fn one_cage_cannot_fill_the_table() {
        let copies = CopyTable::default();
        let place = |n: usize| format!("10.0.{}.{}:1", n / 250, n % 250);
        for copy in 0..COPIES_OF_CAGE_MAX + 10 {
            copies.record_inbound("mallory", CopyId(copy as u64 + 1), 1, Some(&at(&place(copy))), None);
        }
        assert_eq!(ids(&copies, "mallory").len(), COPIES_OF_CAGE_MAX);
        assert!(copies.add_hint(&hint("a", 1, "10.9.0.1:1", FoundBy::Multicast), 1));
        for copy in 0..3 * COPIES_OF_CAGE_MAX {
            gossip(&copies, "mallory", "a", 10_000 + copy as u64, &place(10_000 + copy));
        }
        assert_eq!(ids(&copies, "a").len(), 1 + COPIES_OF_CAGE_MAX / GOSSIP_SHARE);
        for copy in 0..3 * COPIES_OF_REPORTER_MAX {
            gossip(&copies, "mallory", &format!("c{copy}"), 20_000 + copy as u64, &place(20_000 + copy));
        }
        assert_eq!(copies.index.lock().gossip.values().copied().collect::<Vec<_>>(), [COPIES_OF_REPORTER_MAX]);
        assert!(gossip(&copies, "hub", "b", 5, "10.8.0.1:1"), "another cage's gossip still counts");
        copies.expire(Instant::now() + GOSSIP_LIFETIME);
        assert_eq!(ids(&copies, "a"), [1]);
        assert!(copies.index.lock().gossip.is_empty() && copies.cages().len() == 2);
    }

    #[test]
    fn addresses_of_one_copy_are_bounded() {
        let copies = CopyTable::default();
        for port in 1..100 {
            copies.add_hint(&hint("a", 1, &format!("10.0.0.1:{port}"), FoundBy::Multicast), 1);
        }
        assert_eq!(copies.find("a", CopyId(1)).unwrap().addresses().len(), super::super::copy::ADDRESSES_MAX);
        assert_eq!(copies.index.lock().at.len(), super::super::copy::ADDRESSES_MAX);
    }
}
