//! Which copy gets a call: the better of two by chance, among those that are sound. Runs at each call, so it takes no lock
//! and allocates nothing.

use std::sync::Arc;

use super::copy::Copy;
use super::gauge::Standing;
use crate::fabric::CopyId;

/// For one call.
pub(super) struct Choice {
    /// None when all were tried.
    pub(super) copy: Option<Arc<Copy>>,
    /// One that should be proven meanwhile, in the background.
    pub(super) unproven: Option<Arc<Copy>>,
}

/// The copy for the next call, of those not tried yet; this machine's before others if `near_first`. One that is not sound
/// is only taken when no other is left.
pub(super) fn choose(copies: &[Arc<Copy>], tried: &[CopyId], near_first: bool) -> Choice {
    let left = || copies.iter().filter(|copy| !tried.contains(&copy.id));
    let sound = || left().filter(|copy| copy.is_sound());
    let near = near_first && sound().any(|copy| copy.is_here());
    let fit = || sound().filter(move |copy| !near || copy.is_here());
    // What is sound may change between two looks.
    let copy = match fit().count() {
        0 => None,
        1 => fit().next(),
        count => {
            let first = fastrand::usize(..count);
            let second = (first + 1 + fastrand::usize(..count - 1)) % count;
            match (fit().nth(first), fit().nth(second)) {
                (Some(one), Some(other)) if other.gauge.is_better_than(&one.gauge) => Some(other),
                (Some(copy), _) | (None, Some(copy)) => Some(copy),
                (None, None) => None,
            }
        }
    };
    let unproven = copy.and_then(|_| copies.iter().find(|copy| copy.gauge.standing() == Standing::Unproven)).cloned();
    Choice { copy: copy.or_else(|| least_bad(left())).cloned(), unproven }
}

/// One that may well be there before one that failed; of those, the one whose pause ends first; by chance among equals.
fn least_bad<'a>(copies: impl Iterator<Item = &'a Arc<Copy>>) -> Option<&'a Arc<Copy>> {
    copies.min_by_key(|copy| {
        let paused_until = if copy.gauge.is_paused() { copy.gauge.avoided_until_ms() } else { 0 };
        (copy.gauge.standing() == Standing::Avoided, paused_until, fastrand::u32(..))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::discovery::{Address, Found, Sighting};
    use crate::lan::copies::Copies;

    fn sighting(cage: &str, copy: u64, address: Address, found: Found) -> Sighting {
        Sighting { cage: cage.into(), copy: CopyId(copy), node: "n".into(), address, found }
    }

    fn tcp(text: &str) -> Address {
        Address::Tcp(text.into())
    }

    /// Copies 1 and up, each at an address of its own.
    fn known(count: u64) -> Arc<Vec<Arc<Copy>>> {
        let copies = Copies::default();
        for copy in 1..=count {
            assert!(copies.seen(&sighting("a", copy, tcp(&format!("10.0.0.{copy}:1")), Found::Multicast), 1));
        }
        copies.get("a").unwrap().copies()
    }

    fn proven(count: u64) -> Arc<Vec<Arc<Copy>>> {
        let copies = known(count);
        copies.iter().for_each(|copy| copy.gauge.prove());
        copies
    }

    fn chosen(copies: &[Arc<Copy>], tried: &[u64]) -> Option<u64> {
        let tried: Vec<_> = tried.iter().copied().map(CopyId).collect();
        choose(copies, &tried, true).copy.map(|copy| copy.id.0)
    }

    fn share(copies: &[Arc<Copy>], of: u64) -> usize {
        (0..1_000).filter(|_| chosen(copies, &[]) == Some(of)).count()
    }

    #[test]
    fn the_better_of_two_is_chosen_and_a_failed_one_avoided() {
        let copies = proven(2);
        assert_eq!(chosen(&copies, &[1]), Some(2));
        assert_eq!(chosen(&copies, &[1, 2]), None);
        copies[0].gauge.answered(Duration::from_millis(50));
        copies[1].gauge.answered(Duration::from_millis(1));
        assert_eq!(share(&copies, 1), 0);
        copies[1].gauge.fail();
        assert_eq!(share(&copies, 1), 1_000);
        // When all are avoided, one is tried all the same.
        copies[0].gauge.fail();
        assert!(chosen(&copies, &[]).is_some());
    }

    #[test]
    fn a_copy_that_nobody_has_met_gets_calls_only_when_there_is_no_other() {
        let copies = known(3);
        assert!((1..=3).all(|copy| share(&copies, copy) > 0), "somebody has to be the first");
        copies[1].gauge.prove();
        assert_eq!(share(&copies, 2), 1_000);
        let unproven = choose(&copies, &[], true).unproven.unwrap();
        assert!(unproven.gauge.begin_proof());
        assert_ne!(choose(&copies, &[], true).unproven.unwrap().id, unproven.id, "one proof at a time");
        unproven.gauge.prove();
        assert!(share(&copies, unproven.id.0) > 0);
    }

    /// One copy that answered within microseconds once got all calls, since another was credited with more.
    #[test]
    fn a_copy_that_has_not_answered_yet_is_tried() {
        let copies = proven(2);
        copies[0].gauge.answered(Duration::from_nanos(10));
        assert!(share(&copies, 2) > 0);
        let _waiting: Vec<_> = (0..10).map(|_| copies[1].gauge.begin()).collect();
        assert_eq!(share(&copies, 1), 1_000);
    }

    #[test]
    fn copies_of_this_machine_are_preferred_unless_told_otherwise() {
        let table = Copies::default();
        table.seen(&sighting("a", 1, tcp("10.0.0.1:1"), Found::Multicast), 1);
        table.seen(&sighting("a", 2, Address::Unix("/run/x.sock".into()), Found::SameMachine), 1);
        let copies = table.get("a").unwrap().copies();
        copies.iter().for_each(|copy| copy.gauge.prove());
        assert_eq!(share(&copies, 2), 1_000);
        copies[1].gauge.answered(Duration::from_secs(1));
        assert!((0..1_000).any(|_| choose(&copies, &[], false).copy.unwrap().id == CopyId(1)));
    }
}
