//! The copies of cages that are known. Filled by what discovery finds, by what peers tell, and by the connections
//! themselves; read at each call without a lock.
//!
//! Hints may be wrong, a connection is not. Whoever answered at an address displaces what hints said of it; a newer hint
//! displaces older ones; and what a peer tells counts only where nothing better is known, and for a time.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::copy::{Copy, Way};
use crate::discovery::{Address, Found, Sighting};
use crate::fabric::CopyId;
use crate::link::Link;

/// Copies that are kept; hints beyond are ignored.
pub(super) const COPIES_MAX: usize = 10_000;
/// Of one cage.
pub(super) const COPIES_OF_CAGE_MAX: usize = 1_000;
/// Copies that are known by hearsay only fill at most one place in so many, so that the others find room.
const HEARSAY_SHARE: usize = 2;
/// Copies that are known only since one cage told of them.
const COPIES_OF_TELLER_MAX: usize = 1_000;
/// What a peer told is forgotten after this time, unless it is told again.
pub(super) const TOLD_LIFETIME: Duration = Duration::from_secs(60);
/// A copy that was not where it was said to be is not looked for there again within this time, whoever says so.
const BURIED_FOR: Duration = Duration::from_secs(60);
const BURIED_MAX: usize = 1_000;
/// A cage that becomes known, or unknown, has one part of the table replaced, of so many.
const SHARDS: usize = 64;

type Shard = ArcSwap<HashMap<Arc<str>, Arc<Known>>>;

/// Every known copy, by its cage.
pub(super) struct Copies {
    shards: Box<[Shard]>,
    hasher: RandomState,
    /// Held while anything changes.
    register: Mutex<Register>,
}

/// A cage of which at least one copy is, or was, known.
pub(super) struct Known {
    copies: ArcSwap<Vec<Arc<Copy>>>,
    /// Calls that have no answer yet.
    pub(super) in_flight: AtomicUsize,
}

/// What is known besides the copies themselves.
#[derive(Default)]
struct Register {
    copies: usize,
    /// Whom ways lead to.
    at: HashMap<Address, Vec<Arc<Copy>>>,
    /// Copies that are known by hearsay only, by the cage that told of them.
    hearsay: HashMap<Arc<str>, usize>,
    buried: HashMap<(CopyId, Address), Instant>,
}

impl Default for Copies {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Self { shards, hasher: RandomState::new(), register: Mutex::default() }
    }
}

impl Known {
    fn new() -> Arc<Self> {
        Arc::new(Self { copies: ArcSwap::default(), in_flight: AtomicUsize::new(0) })
    }

    pub(super) fn copies(&self) -> Arc<Vec<Arc<Copy>>> {
        self.copies.load_full()
    }

    fn find(&self, id: CopyId) -> Option<Arc<Copy>> {
        self.copies.load().iter().find(|copy| copy.id == id).cloned()
    }

    fn is_empty(&self) -> bool {
        self.copies.load().is_empty()
    }
}

/// Reading.
impl Copies {
    fn shard(&self, cage: &str) -> &Shard {
        &self.shards[self.hasher.hash_one(cage) as usize % SHARDS]
    }

    fn known(&self, cage: &str) -> Option<Arc<Known>> {
        self.shard(cage).load().get(cage).cloned()
    }

    /// None when no copy is known.
    pub(super) fn get(&self, cage: &str) -> Option<Arc<Known>> {
        self.known(cage).filter(|known| !known.is_empty())
    }

    pub(super) fn find(&self, cage: &str, id: CopyId) -> Option<Arc<Copy>> {
        self.known(cage)?.find(id)
    }

    /// Names of the cages of which a copy is known.
    pub(super) fn cages(&self) -> Vec<Arc<str>> {
        let maps = self.shards.iter().map(|shard| shard.load_full());
        let known = |map: Arc<HashMap<Arc<str>, Arc<Known>>>| {
            map.iter().filter(|(_, known)| !known.is_empty()).map(|(cage, _)| cage.clone()).collect::<Vec<_>>()
        };
        maps.flat_map(known).collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<Copy>> {
        let maps = self.shards.iter().map(|shard| shard.load_full());
        let copies = |map: Arc<HashMap<Arc<str>, Arc<Known>>>| {
            map.values().flat_map(|known| known.copies().to_vec()).collect::<Vec<_>>()
        };
        maps.flat_map(copies).collect()
    }
}

/// Changes.
impl Copies {
    /// Takes a hint of discovery in. True when the copy was not known before.
    pub(super) fn seen(&self, sighting: &Sighting, lanes: usize) -> bool {
        let mut register = self.register.lock();
        let Sighting { cage, copy: id, node, address, found } = sighting;
        let added = self.add(&mut register, cage, *id, lanes, None, |register, copy| {
            copy.set_node(node);
            register.add_way(copy, Way::new(address.clone(), *found));
        });
        let Some((copy, new)) = added else { return false };
        let of_cage = |other: &Copy, way: &Way| *other.cage == *copy.cage || way.found == Found::Told;
        self.displace(&mut register, address, &copy, of_cage);
        new
    }

    /// Takes in what cage `teller` says of another copy. True when that was not known before.
    pub(super) fn told(&self, sighting: &Sighting, teller: &Arc<str>, lanes: usize, now: Instant) -> bool {
        let mut register = self.register.lock();
        let Sighting { cage, copy: id, node, address, .. } = sighting;
        if register.contradicts(*id, address, now) {
            return false;
        }
        let added = self.add(&mut register, cage, *id, lanes, Some(teller), |register, copy| {
            copy.set_node(node);
            let way = Way { expires: Some(now + TOLD_LIFETIME), ..Way::new(address.clone(), Found::Told) };
            register.add_way(copy, way);
        });
        let Some((copy, new)) = added else { return false };
        self.displace(&mut register, address, &copy, |_, way| way.found == Found::Told);
        new
    }

    /// A connection to `address` was greeted by that copy. None when there is no room for it.
    pub(super) fn met(&self, cage: &str, id: CopyId, lanes: usize, way: &Address, found: Found) -> Option<Arc<Copy>> {
        let mut register = self.register.lock();
        let (copy, _) = self.add(&mut register, cage, id, lanes, None, |register, copy| {
            register.remove_ways(copy, |known| known.found == Found::Told && known.address == *way);
            let known = copy.ways.lock().all.iter().any(|known| known.address == *way);
            if !known || found != Found::Met {
                register.add_way(copy, Way::new(way.clone(), found));
            }
        })?;
        self.displace(&mut register, way, &copy, |_, _| true);
        Some(copy)
    }

    /// A copy has connected to this one: `address` is where it says that it listens, `reverse` the connection if it may be
    /// called on that. None when there is no room for it.
    pub(super) fn came(
        &self,
        cage: &str,
        id: CopyId,
        lanes: usize,
        address: Option<&Address>,
        reverse: Option<Link>,
    ) -> Option<Arc<Copy>> {
        let mut register = self.register.lock();
        let (copy, _) = self.add(&mut register, cage, id, lanes, None, |register, copy| {
            if let Some(link) = reverse {
                copy.add_reverse(link);
                copy.gauge.prove();
            }
            let Some(address) = address else { return };
            register.remove_ways(copy, |way| way.found == Found::Told && way.address == *address);
            register.add_way(copy, Way::new(address.clone(), Found::Caller));
            if let Some(way) = copy.ways.lock().find(address, Found::Caller) {
                way.callers += 1;
            }
        })?;
        if let Some(address) = address {
            self.displace(&mut register, address, &copy, |other, _| *other.cage == *copy.cage);
        }
        Some(copy)
    }

    /// The connection that `came` tells of has ended.
    pub(super) fn went(&self, copy: &Arc<Copy>, address: Option<&Address>) {
        let mut register = self.register.lock();
        if let Some(address) = address {
            if let Some(way) = copy.ways.lock().find(address, Found::Caller) {
                way.callers = way.callers.saturating_sub(1);
            }
            register.remove_ways(copy, |way| way.found == Found::Caller && way.callers == 0);
        }
        self.drop_if_lost_in(&mut register, copy);
    }

    /// A way is gone; the copy too when it was the last. None of the address: all that were found so.
    pub(super) fn gone(&self, cage: &str, id: CopyId, found: Found, address: Option<&Address>) {
        let Some(copy) = self.find(cage, id) else { return };
        let mut register = self.register.lock();
        let fits = |way: &Way| way.found == found && address.is_none_or(|address| way.address == *address);
        register.remove_ways(&copy, fits);
        self.drop_if_lost_in(&mut register, &copy);
    }

    /// The copy is surely not at that address any more, however that was found; what peers tell of it is not believed.
    pub(super) fn bury(&self, copy: &Arc<Copy>, address: &Address, now: Instant) {
        let mut register = self.register.lock();
        // Connections that are open speak for these.
        let is_hint = |way: &Way| way.address == *address && !matches!(way.found, Found::Caller | Found::Peer);
        register.remove_ways(copy, is_hint);
        register.bury(copy.id, address, now);
        self.drop_if_lost_in(&mut register, copy);
    }

    /// Forgets a copy that nothing leads to any more.
    pub(super) fn drop_if_lost(&self, copy: &Arc<Copy>) {
        self.drop_if_lost_in(&mut self.register.lock(), copy);
    }

    /// Forgets what was told and not told again, and names of cages without copies.
    pub(super) fn expire(&self, now: Instant) {
        for copy in self.all() {
            let is_over = |way: &Way| way.expires.is_some_and(|expires| expires <= now);
            let any = copy.ways.lock().all.iter().any(is_over);
            if any {
                let mut register = self.register.lock();
                register.remove_ways(&copy, is_over);
                self.drop_if_lost_in(&mut register, &copy);
            }
        }
        let mut register = self.register.lock();
        register.buried.retain(|_, until| *until > now);
        for shard in &self.shards {
            let is_over = |known: &Known| known.is_empty() && known.in_flight.load(Ordering::Relaxed) == 0;
            if shard.load().values().any(|known| is_over(known)) {
                let mut map = HashMap::clone(&shard.load());
                map.retain(|_, known| !is_over(known));
                shard.store(Arc::new(map));
            }
        }
    }

    /// The copy, which is made when it is not known, and whether it was; none when there is no room. `lead` adds the way
    /// that leads to it: done before anybody can see the copy, or find that it is lost and forget it. With a teller, the
    /// copy is known by hearsay only, if it was not known before.
    fn add(
        &self,
        register: &mut Register,
        cage: &str,
        id: CopyId,
        lanes: usize,
        teller: Option<&Arc<str>>,
        lead: impl FnOnce(&mut Register, &Arc<Copy>),
    ) -> Option<(Arc<Copy>, bool)> {
        let known = self.known(cage);
        if let Some(copy) = known.as_ref().and_then(|known| known.find(id)) {
            lead(register, &copy);
            register.classify(&copy);
            return Some((copy, false));
        }
        if !register.has_room(known.as_deref(), teller) {
            return None;
        }
        let name = match &known {
            Some(known) => known.copies.load().first().map(|copy| copy.cage.clone()),
            None => None,
        };
        let name: Arc<str> = name.unwrap_or_else(|| cage.into());
        let copy = Arc::new(Copy::new(id, name.clone(), lanes));
        if let Some(teller) = teller {
            copy.ways.lock().teller = Some(teller.clone());
            *register.hearsay.entry(teller.clone()).or_default() += 1;
        }
        lead(register, &copy);
        register.classify(&copy);
        register.copies += 1;
        let known = known.unwrap_or_else(|| self.add_cage(name));
        known.copies.store(Arc::new(known.copies.load().iter().cloned().chain([copy.clone()]).collect()));
        Some((copy, true))
    }

    fn add_cage(&self, cage: Arc<str>) -> Arc<Known> {
        let (shard, known) = (self.shard(&cage), Known::new());
        let mut map = HashMap::clone(&shard.load());
        map.insert(cage, known.clone());
        shard.store(Arc::new(map));
        known
    }

    /// Another copy is at that address: hints that lead others there are outdated, as far as they fit.
    fn displace(&self, register: &mut Register, at: &Address, by: &Copy, fits: impl Fn(&Copy, &Way) -> bool) {
        if at.is_here() {
            return;
        }
        let others: Vec<_> =
            register.at.get(at).into_iter().flatten().filter(|copy| copy.id != by.id).cloned().collect();
        for other in others.iter().filter(|other| !other.is_connected()) {
            let is_hint = |way: &Way| matches!(way.found, Found::Multicast | Found::Met | Found::Told);
            register.remove_ways(other, |way| way.address == *at && is_hint(way) && fits(other, way));
            self.drop_if_lost_in(register, other);
        }
    }

    fn drop_if_lost_in(&self, register: &mut Register, copy: &Arc<Copy>) {
        if !copy.is_lost() {
            return;
        }
        let Some(known) = self.known(&copy.cage) else { return };
        let copies = known.copies.load();
        let left: Vec<_> = copies.iter().filter(|known| !Arc::ptr_eq(known, copy)).cloned().collect();
        if left.len() < copies.len() {
            register.copies -= 1;
            let teller = copy.ways.lock().teller.take();
            register.untell(teller);
            known.copies.store(Arc::new(left));
        }
    }
}

impl Register {
    fn has_room(&self, known: Option<&Known>, teller: Option<&Arc<str>>) -> bool {
        let copies = known.map(Known::copies).unwrap_or_default();
        if self.copies >= COPIES_MAX || copies.len() >= COPIES_OF_CAGE_MAX {
            return false;
        }
        let Some(teller) = teller else { return true };
        let of_cage = copies.iter().filter(|copy| copy.ways.lock().teller.is_some()).count();
        of_cage < COPIES_OF_CAGE_MAX / HEARSAY_SHARE
            && self.hearsay.values().sum::<usize>() < COPIES_MAX / HEARSAY_SHARE
            && self.hearsay.get(teller).is_none_or(|of_teller| *of_teller < COPIES_OF_TELLER_MAX)
    }

    /// Something better than hearsay says that the copy is not there.
    fn contradicts(&self, id: CopyId, address: &Address, now: Instant) -> bool {
        let better = |copy: &Arc<Copy>| {
            copy.id != id && copy.ways.lock().all.iter().any(|way| way.address == *address && way.found != Found::Told)
        };
        self.buried.get(&(id, address.clone())).is_some_and(|until| *until > now)
            || self.at.get(address).is_some_and(|copies| copies.iter().any(better))
    }

    fn bury(&mut self, id: CopyId, address: &Address, now: Instant) {
        if self.buried.len() >= BURIED_MAX {
            self.buried.retain(|_, until| *until > now);
        }
        if self.buried.len() < BURIED_MAX {
            self.buried.insert((id, address.clone()), now + BURIED_FOR);
        }
    }

    fn add_way(&mut self, copy: &Arc<Copy>, way: Way) {
        let mut ways = copy.ways.lock();
        if let Some(known) = ways.find(&way.address, way.found) {
            known.expires = way.expires;
            return;
        }
        let address = way.address.clone();
        if !ways.add(way) {
            return;
        }
        copy.note_where(&ways);
        drop(ways);
        if !address.is_here() {
            let copies = self.at.entry(address).or_default();
            if !copies.iter().any(|known| Arc::ptr_eq(known, copy)) {
                copies.push(copy.clone());
            }
        }
    }

    fn remove_ways(&mut self, copy: &Arc<Copy>, fits: impl Fn(&Way) -> bool) {
        let mut ways = copy.ways.lock();
        let removed: Vec<_> = ways.all.extract_if(.., |way| fits(way)).map(|way| way.address).collect();
        copy.note_where(&ways);
        for address in removed {
            if !ways.all.iter().any(|way| way.address == address) {
                self.forget_at(copy, &address);
            }
        }
    }

    fn forget_at(&mut self, copy: &Arc<Copy>, address: &Address) {
        if let Some(copies) = self.at.get_mut(address) {
            copies.retain(|known| !Arc::ptr_eq(known, copy));
            if copies.is_empty() {
                self.at.remove(address);
            }
        }
    }

    /// A copy that was known by hearsay only, and is known otherwise by now, counts as the others.
    fn classify(&mut self, copy: &Copy) {
        let mut ways = copy.ways.lock();
        if ways.teller.is_some() && !ways.is_hearsay() {
            let teller = ways.teller.take();
            drop(ways);
            self.untell(teller);
        }
    }

    fn untell(&mut self, teller: Option<Arc<str>>) {
        let Some(teller) = teller else { return };
        if let Some(count) = self.hearsay.get_mut(&teller) {
            *count -= 1;
            if *count == 0 {
                self.hearsay.remove(&teller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting(cage: &str, copy: u64, address: &str, found: Found) -> Sighting {
        let address = Address::Tcp(address.into());
        Sighting { cage: cage.into(), copy: CopyId(copy), node: "n".into(), address, found }
    }

    fn at(address: &str) -> Address {
        Address::Tcp(address.into())
    }

    fn ids(copies: &Copies, cage: &str) -> Vec<u64> {
        let mut ids: Vec<_> =
            copies.get(cage).iter().flat_map(|known| known.copies().to_vec()).map(|copy| copy.id.0).collect();
        ids.sort_unstable();
        ids
    }

    /// What a peer of cage `teller` says.
    fn tell(copies: &Copies, teller: &str, cage: &str, copy: u64, address: &str) -> bool {
        copies.told(&sighting(cage, copy, address, Found::Told), &teller.into(), 1, Instant::now())
    }

    #[test]
    fn copies_come_and_go_with_the_ways_to_them() {
        let copies = Copies::default();
        assert!(copies.seen(&sighting("a", 1, "10.0.0.1:1", Found::Multicast), 1));
        assert!(!copies.seen(&sighting("a", 1, "10.0.0.2:1", Found::Multicast), 1));
        copies.met("a", CopyId(1), 1, &at("10.0.0.3:1"), Found::Peer).unwrap();
        assert!(copies.seen(&sighting("a", 2, "10.0.0.4:1", Found::Multicast), 1));
        assert_eq!(ids(&copies, "a"), [1, 2]);
        copies.gone("a", CopyId(1), Found::Peer, Some(&at("10.0.0.3:1")));
        assert_eq!(ids(&copies, "a"), [1, 2]);
        copies.gone("a", CopyId(1), Found::Multicast, None);
        assert_eq!(ids(&copies, "a"), [2]);
        copies.gone("a", CopyId(2), Found::Multicast, None);
        assert!(copies.get("a").is_none() && copies.cages().is_empty());
        let register = copies.register.lock();
        assert!(register.copies == 0 && register.at.is_empty());
    }

    /// A copy was once forgotten between its becoming known and its getting an address: calls found nobody from then on.
    #[test]
    fn a_copy_is_seen_with_a_way_to_it_only() {
        let copies = Copies::default();
        let mut register = copies.register.lock();
        let added = copies.add(&mut register, "a", CopyId(1), 1, None, |register, copy| {
            assert!(copies.get("a").is_none());
            register.add_way(copy, Way::new(at("10.0.0.1:1"), Found::Peer));
        });
        let (copy, new) = added.unwrap();
        drop(register);
        copies.drop_if_lost(&copy);
        assert!(new && copies.get("a").is_some());
    }

    #[test]
    fn who_is_at_an_address_displaces_what_was_said_of_it() {
        let copies = Copies::default();
        let place = "10.0.0.1:7420";
        copies.seen(&sighting("a", 1, place, Found::Multicast), 1);
        copies.seen(&sighting("a", 2, place, Found::Multicast), 1);
        assert_eq!(ids(&copies, "a"), [2], "two cannot listen at one address");
        copies.seen(&sighting("b", 3, place, Found::Multicast), 1);
        assert_eq!((ids(&copies, "a"), ids(&copies, "b")), (vec![2], vec![3]), "anybody can announce another cage");
        copies.met("a", CopyId(4), 1, &at(place), Found::Met).unwrap();
        assert_eq!((ids(&copies, "a"), ids(&copies, "b")), (vec![4], vec![]), "a certificate decides");
    }

    /// Copies that had been at an address once were told on from peer to peer for ever.
    #[test]
    fn hearsay_stands_beside_nothing_better() {
        let copies = Copies::default();
        let place = "10.0.0.1:7420";
        assert!(tell(&copies, "hub", "a", 1, place));
        assert!(tell(&copies, "hub", "a", 2, place));
        assert_eq!(ids(&copies, "a"), [2], "the later word counts");
        let copy = copies.met("a", CopyId(3), 1, &at(place), Found::Met).unwrap();
        assert!(!tell(&copies, "hub", "a", 2, place) && !tell(&copies, "hub", "b", 9, place));
        assert_eq!(ids(&copies, "a"), [3]);
        copies.bury(&copy, &at(place), Instant::now());
        assert!(!tell(&copies, "hub", "a", 3, place), "it is known not to be there");
        assert!(tell(&copies, "hub", "a", 3, "10.0.0.2:7420"));
        let later = Instant::now() + BURIED_FOR;
        copies.expire(later);
        assert!(ids(&copies, "a").is_empty(), "nobody has told of it again");
        assert!(copies.register.lock().buried.is_empty());
        let known = sighting("a", 3, place, Found::Told);
        assert!(copies.told(&known, &"hub".into(), 1, later));
        copies.told(&known, &"hub".into(), 1, later + TOLD_LIFETIME / 2);
        copies.expire(later + TOLD_LIFETIME);
        assert_eq!(ids(&copies, "a"), [3], "told again, it stays");
    }

    #[test]
    fn a_caller_is_known_as_long_as_it_is_connected() {
        let copies = Copies::default();
        let place = at("10.0.0.1:7420");
        let first = copies.came("a", CopyId(1), 1, Some(&place), None).unwrap();
        let second = copies.came("a", CopyId(1), 1, Some(&place), None).unwrap();
        copies.went(&first, Some(&place));
        assert_eq!(ids(&copies, "a"), [1]);
        copies.went(&second, Some(&place));
        assert!(ids(&copies, "a").is_empty() && copies.register.lock().at.is_empty());
    }

    #[test]
    fn one_cage_cannot_fill_the_table() {
        let copies = Copies::default();
        let place = |n: usize| format!("10.0.{}.{}:1", n / 250, n % 250);
        for copy in 0..COPIES_OF_CAGE_MAX + 10 {
            copies.came("mallory", CopyId(copy as u64 + 1), 1, Some(&at(&place(copy))), None);
        }
        assert_eq!(ids(&copies, "mallory").len(), COPIES_OF_CAGE_MAX);
        assert!(copies.seen(&sighting("a", 1, "10.9.0.1:1", Found::Multicast), 1));
        for copy in 0..3 * COPIES_OF_CAGE_MAX {
            tell(&copies, "mallory", "a", 10_000 + copy as u64, &place(10_000 + copy));
        }
        assert_eq!(ids(&copies, "a").len(), 1 + COPIES_OF_CAGE_MAX / HEARSAY_SHARE);
        for copy in 0..3 * COPIES_OF_TELLER_MAX {
            tell(&copies, "mallory", &format!("c{copy}"), 20_000 + copy as u64, &place(20_000 + copy));
        }
        assert_eq!(copies.register.lock().hearsay.values().copied().collect::<Vec<_>>(), [COPIES_OF_TELLER_MAX]);
        assert!(tell(&copies, "hub", "b", 5, "10.8.0.1:1"), "another's word still counts");
        copies.expire(Instant::now() + TOLD_LIFETIME);
        assert_eq!(ids(&copies, "a"), [1]);
        assert!(copies.register.lock().hearsay.is_empty() && copies.cages().len() == 2);
    }

    #[test]
    fn ways_to_one_copy_are_bounded() {
        let copies = Copies::default();
        for port in 1..100 {
            copies.seen(&sighting("a", 1, &format!("10.0.0.1:{port}"), Found::Multicast), 1);
        }
        assert_eq!(copies.find("a", CopyId(1)).unwrap().addresses().len(), super::super::copy::WAYS_MAX);
        assert_eq!(copies.register.lock().at.len(), super::super::copy::WAYS_MAX);
    }
}
