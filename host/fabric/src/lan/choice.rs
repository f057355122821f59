//! Chooses the copy that gets a call: the better of two that are picked at random among the healthy ones. It runs at each
//! call, so it takes no lock and allocates nothing.

use std::sync::Arc;

use super::copy::RemoteCopy;
use super::gauge::CopyHealth;
use crate::fabric::CopyId;

/// The choice for one call.
pub(super) struct Choice {
    /// The copy to call; none when all were tried.
    pub(super) copy: Option<Arc<RemoteCopy>>,
    /// A copy of unknown health that should be probed in the background.
    pub(super) to_probe: Option<Arc<RemoteCopy>>,
}

/// Chooses a copy that was not tried yet; with `near_first`, this machine's before others. A copy that is not healthy is
/// chosen only when no healthy one is left.
pub(super) fn choose(copies: &[Arc<RemoteCopy>], tried: &[CopyId], near_first: bool) -> Choice {
    let left = || copies.iter().filter(|copy| !tried.contains(&copy.id));
    let healthy = || left().filter(|copy| copy.is_healthy());
    let near = near_first && healthy().any(|copy| copy.is_here());
    let fit = || healthy().filter(move |copy| !near || copy.is_here());
    // CopyHealth may change between two passes, so `nth` may find none.
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
    let to_probe = copy.and_then(|_| copies.iter().find(|copy| copy.gauge.health() == CopyHealth::Unknown)).cloned();
    Choice { copy: copy.or_else(|| least_bad(left())).cloned(), to_probe }
}

/// Prefers a copy of unknown health to one that failed; of those, the one whose pause ends first; at random among equals.
fn least_bad<'a>(copies: impl Iterator<Item = &'a Arc<RemoteCopy>>) -> Option<&'a Arc<RemoteCopy>> {
    copies.min_by_key(|copy| {
        let paused_until = if copy.gauge.is_paused() { copy.gauge.avoided_until_ms() } else { 0 };
        (copy.gauge.health() == CopyHealth::Avoided, paused_until, fastrand::u32(..))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::discovery::{CopyAddress, CopyHint, FoundBy};
    use crate::lan::copies::CopyTable;

    fn hint(cage: &str, copy: u64, address: CopyAddress, found_by: FoundBy) -> CopyHint {
        CopyHint { cage: cage.into(), copy: CopyId(copy), node: "n".into(), address, found_by }
    }

    fn tcp(text: &str) -> CopyAddress {
        CopyAddress::Tcp(text.into())
    }

    /// Copies with ids from 1, each at an address of its own.
    fn known(count: u64) -> Arc<Vec<Arc<RemoteCopy>>> {
        let copies = CopyTable::default();
        for copy in 1..=count {
            assert!(copies.add_hint(&hint("a", copy, tcp(&format!("10.0.0.{copy}:1")), FoundBy::Multicast), 1));
        }
        copies.get("a").unwrap().copies()
    }

    fn proven(count: u64) -> Arc<Vec<Arc<RemoteCopy>>> {
        let copies = known(count);
        copies.iter().for_each(|copy| copy.gauge.set_good());
        copies
    }

    fn chosen(copies: &[Arc<RemoteCopy>], tried: &[u64]) -> Option<u64> {
        let tried: Vec<_> = tried.iter().copied().map(CopyId).collect();
        choose(copies, &tried, true).copy.map(|copy| copy.id.0)
    }

    fn share(copies: &[Arc<RemoteCopy>], of: u64) -> usize {
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
        // When all are avoided, one is chosen nevertheless.
        copies[0].gauge.fail();
        assert!(chosen(&copies, &[]).is_some());
    }

    #[test]
    fn a_copy_of_unknown_health_gets_calls_only_when_there_is_no_other() {
        let copies = known(3);
        assert!((1..=3).all(|copy| share(&copies, copy) > 0), "somebody has to be the first");
        copies[1].gauge.set_good();
        assert_eq!(share(&copies, 2), 1_000);
        let to_probe = choose(&copies, &[], true).to_probe.unwrap();
        assert!(to_probe.gauge.begin_probe());
        assert_ne!(choose(&copies, &[], true).to_probe.unwrap().id, to_probe.id, "one probe at a time");
        to_probe.gauge.set_good();
        assert!(share(&copies, to_probe.id.0) > 0);
    }

    /// A copy that had answered within microseconds once got all calls, since a larger latency was assumed for the other.
    #[test]
    fn a_copy_that_has_not_answered_yet_is_tried() {
        let copies = proven(2);
        copies[0].gauge.answered(Duration::from_nanos(10));
        assert!(share(&copies, 2) > 0);
        let _waiting: Vec<_> = (0..10).map(|_| copies[1].gauge.begin()).collect();
        assert_eq!(share(&copies, 1), 1_000);
    }

    #[test]
    fn copies_of_this_machine_are_preferred_unless_configured_otherwise() {
        let table = CopyTable::default();
        table.add_hint(&hint("a", 1, tcp("10.0.0.1:1"), FoundBy::Multicast), 1);
        table.add_hint(&hint("a", 2, CopyAddress::Unix("/run/x.sock".into()), FoundBy::SameMachine), 1);
        let copies = table.get("a").unwrap().copies();
        copies.iter().for_each(|copy| copy.gauge.set_good());
        assert_eq!(share(&copies, 2), 1_000);
        copies[1].gauge.answered(Duration::from_secs(1));
        assert!((0..1_000).any(|_| choose(&copies, &[], false).copy.unwrap().id == CopyId(1)));
    }
}
