//! The copies that are known by their heartbeats, and which of them a call goes to. Pure: `mod.rs` tells it what was
//! heard and what time it is.
//!
//! A call goes to the cage's queue group, where the server chooses, as long as every copy that was heard of serves. A copy
//! that leaves, or has fallen silent, may still be in the group; calls then go to one of the others by name.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::fabric::CopyId;
use super::packet::Life;
use wasmcage_core::call::Member;

/// How often a copy is heard.
pub(super) const BEAT_INTERVAL: Duration = Duration::from_millis(500);
/// A copy that was not heard for so long gets no calls until it is heard again, as long as there are others.
const SUSPECT_AFTER: Duration = Duration::from_millis(1_200);
/// A copy that was not heard for so long is dead: calls that it has are lost.
pub(super) const SILENCE_MAX: Duration = Duration::from_millis(2_500);
/// How long a dead copy is remembered. The server may take minutes to close the connection of a process that hangs, and
/// chooses it as long.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Of a flock. Later ones are called through their queue group only.
const MEMBERS_MAX: usize = 10_000;

#[derive(Default)]
pub(super) struct Members {
    cages: HashMap<Arc<str>, Vec<Known>>,
    cage_of: HashMap<CopyId, Arc<str>>,
}

struct Known {
    copy: CopyId,
    node: String,
    version: String,
    heard: Instant,
    health: Health,
    in_flight: u32,
    /// Moving average; none before the first answer.
    latency_us: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Serving,
    Leaving,
    Dead,
}

/// Where a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// The server chooses.
    Group,
    Copy(CopyId),
}

/// What a heartbeat did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    New,
    Known,
    Gone,
    /// There are too many, or it speaks for a copy of another cage.
    Ignored,
}

impl Members {
    pub(super) fn beat(
        &mut self,
        now: Instant,
        cage: &str,
        copy: CopyId,
        state: Life,
        node: String,
        version: String,
    ) -> Heard {
        if self.cage_of.get(&copy).is_some_and(|known| **known != *cage) {
            return Heard::Ignored;
        }
        let health = match state {
            Life::Serving => Health::Serving,
            Life::Leaving => Health::Leaving,
            Life::Gone => {
                self.forget(copy);
                return Heard::Gone;
            }
        };
        if let Some(known) = self.get(copy) {
            let new = known.health == Health::Dead;
            (known.heard, known.health, known.node, known.version) = (now, health, node, version);
            return if new { Heard::New } else { Heard::Known };
        }
        if self.cage_of.len() >= MEMBERS_MAX {
            return Heard::Ignored;
        }
        let cage = self.cages.get_key_value(cage).map_or_else(|| cage.into(), |(cage, _)| cage.clone());
        self.cage_of.insert(copy, cage.clone());
        let known = Known { copy, node, version, heard: now, health, in_flight: 0, latency_us: None };
        self.cages.entry(cage).or_default().push(known);
        Heard::New
    }

    /// The server says that nobody listens for that copy. True when it was known.
    pub(super) fn died(&mut self, copy: CopyId) -> bool {
        let known = self.get(copy);
        let was_known = known.is_some();
        if let Some(known) = known {
            known.health = Health::Dead;
        }
        was_known
    }

    /// The copy itself says that it takes nothing new.
    pub(super) fn leaves(&mut self, copy: CopyId) {
        if let Some(known) = self.get(copy).filter(|known| known.health == Health::Serving) {
            known.health = Health::Leaving;
        }
    }

    /// Nothing could be heard until now.
    pub(super) fn excuse(&mut self, now: Instant) {
        for known in self.cages.values_mut().flatten().filter(|known| known.health != Health::Dead) {
            known.heard = now;
        }
    }

    /// Returns the copies that were found to be dead.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<CopyId> {
        let (mut dead, mut forgotten) = (Vec::new(), Vec::new());
        for known in self.cages.values_mut().flatten() {
            let silence = now.saturating_duration_since(known.heard);
            if known.health != Health::Dead && silence > SILENCE_MAX {
                known.health = Health::Dead;
                dead.push(known.copy);
            }
            if silence > REMEMBERED {
                forgotten.push(known.copy);
            }
        }
        forgotten.into_iter().for_each(|copy| self.forget(copy));
        dead
    }

    /// None when every copy that is known was tried, or will not take it. `again`: it was given to the group before, and
    /// nobody has said to have it.
    pub(super) fn route(&self, now: Instant, cage: &str, tried: &[CopyId], again: bool) -> Option<Route> {
        let known = self.cages.get(cage).map(Vec::as_slice).unwrap_or_default();
        let is_well = |known: &Known| known.health == Health::Serving && !known.is_suspect(now);
        if tried.is_empty() && !again && known.iter().all(is_well) {
            return Some(Route::Group);
        }
        let mut fit: Vec<_> = known.iter().filter(|known| known.serves() && !tried.contains(&known.copy)).collect();
        if fit.iter().any(|known| !known.is_suspect(now)) {
            fit.retain(|known| !known.is_suspect(now));
        }
        if fit.is_empty() {
            // One that leaves says so. Where all are dead there may be some that were never heard.
            let leaving = known.iter().find(|known| known.health == Health::Leaving);
            let route = leaving.map_or(Route::Group, |known| Route::Copy(known.copy));
            return tried.is_empty().then_some(route);
        }
        // Of the one that has it, nothing was heard since.
        if again && tried.is_empty() {
            return fit.iter().max_by_key(|known| known.heard).map(|known| Route::Copy(known.copy));
        }
        // The better of two: copies that all see the same load do not all choose the same one.
        let (one, other) = (fit[fastrand::usize(..fit.len())], fit[fastrand::usize(..fit.len())]);
        Some(Route::Copy(if other.is_better_than(one) { other.copy } else { one.copy }))
    }

    pub(super) fn begun(&mut self, copy: CopyId) {
        if let Some(known) = self.get(copy) {
            known.in_flight += 1;
        }
    }

    pub(super) fn ended(&mut self, copy: CopyId) {
        if let Some(known) = self.get(copy) {
            known.in_flight = known.in_flight.saturating_sub(1);
        }
    }

    pub(super) fn answered(&mut self, copy: CopyId, elapsed: Duration) {
        if let Some(known) = self.get(copy) {
            let us = elapsed.as_secs_f64() * 1e6;
            known.latency_us = Some(known.latency_us.map_or(us, |mean| mean + (us - mean) * 0.2));
        }
    }

    /// Copies that serve, other than these.
    pub(super) fn has_others(&self, cage: &str, tried: &[CopyId]) -> bool {
        let known = self.cages.get(cage).into_iter().flatten();
        known.filter(|known| known.serves() && !tried.contains(&known.copy)).nth(1).is_some()
    }

    /// Those that can be called.
    pub(super) fn copies(&self, cage: &str) -> Vec<String> {
        let known = self.cages.get(cage).into_iter().flatten();
        known.filter(|known| known.serves()).map(|known| known.copy.to_string()).collect()
    }

    /// All but the dead; `address` says where a copy is reached.
    pub(super) fn list(&self, now: Instant, address: impl Fn(&str, CopyId) -> String) -> Vec<Member> {
        let known = self.cages.iter().flat_map(|(cage, copies)| copies.iter().map(move |known| (cage, known)));
        let member = |(cage, known): (&Arc<str>, &Known)| Member {
            cage: cage.to_string(),
            copy: known.copy.to_string(),
            node: known.node.clone(),
            version: known.version.clone(),
            addresses: vec![address(cage, known.copy)],
            found: "nats".into(),
            health: known.shown(now).into(),
            in_flight: known.in_flight,
            latency_us: known.latency_us.map(|mean| mean as u64),
        };
        known.filter(|(_, known)| known.health != Health::Dead).map(member).collect()
    }

    fn get(&mut self, copy: CopyId) -> Option<&mut Known> {
        let cage = self.cage_of.get(&copy)?;
        self.cages.get_mut(cage)?.iter_mut().find(|known| known.copy == copy)
    }

    fn forget(&mut self, copy: CopyId) {
        let Some(cage) = self.cage_of.remove(&copy) else { return };
        if let Some(copies) = self.cages.get_mut(&cage) {
            copies.retain(|known| known.copy != copy);
            if copies.is_empty() {
                self.cages.remove(&cage);
            }
        }
    }
}

impl Known {
    fn serves(&self) -> bool {
        self.health == Health::Serving
    }

    fn is_suspect(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) > SUSPECT_AFTER
    }

    fn shown(&self, now: Instant) -> &'static str {
        match self.health {
            Health::Serving if self.is_suspect(now) => "silent",
            Health::Serving => "connected",
            Health::Leaving | Health::Dead => "draining",
        }
    }

    /// A copy that has not answered yet is taken to be as fast as the other.
    fn is_better_than(&self, other: &Self) -> bool {
        let known = self.latency_us.or(other.latency_us).unwrap_or(1.0);
        self.cost(known) < other.cost(known)
    }

    fn cost(&self, unmeasured_us: f64) -> f64 {
        f64::from(self.in_flight + 1) * self.latency_us.unwrap_or(unmeasured_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(copies: u64) -> (Members, Instant) {
        let (mut members, now) = (Members::default(), Instant::now());
        for copy in 1..=copies {
            assert_eq!(beat(&mut members, now, copy, Life::Serving), Heard::New);
        }
        (members, now)
    }

    fn beat(members: &mut Members, now: Instant, copy: u64, state: Life) -> Heard {
        members.beat(now, "worker", CopyId(copy), state, "node-1".into(), "0.1.0".into())
    }

    #[test]
    fn the_server_chooses_until_a_copy_falls_silent_or_leaves() {
        let (mut members, now) = members(2);
        assert_eq!(members.route(now, "worker", &[], false), Some(Route::Group));
        assert_eq!(members.route(now, "unheard", &[], false), Some(Route::Group));
        let later = now + SUSPECT_AFTER + BEAT_INTERVAL;
        beat(&mut members, later, 2, Life::Serving);
        assert_eq!(members.sweep(later), []);
        assert_eq!(members.route(later, "worker", &[], false), Some(Route::Copy(CopyId(2))), "the other is silent");
        let later = now + SILENCE_MAX + BEAT_INTERVAL;
        let now = later;
        beat(&mut members, later, 2, Life::Serving);
        assert_eq!(members.sweep(later), [CopyId(1)]);
        assert_eq!(members.sweep(later), []);
        assert_eq!(members.copies("worker"), [CopyId(2).to_string()]);
        assert_eq!(members.route(now, "worker", &[], false), Some(Route::Copy(CopyId(2))));
        assert_eq!(beat(&mut members, later, 1, Life::Serving), Heard::New);
        assert_eq!(members.route(now, "worker", &[], false), Some(Route::Group));
        beat(&mut members, later, 2, Life::Leaving);
        assert_eq!(members.route(now, "worker", &[], false), Some(Route::Copy(CopyId(1))));
        assert_eq!(members.route(now, "worker", &[CopyId(1)], false), None);
        beat(&mut members, later, 1, Life::Gone);
        assert_eq!(members.route(now, "worker", &[], false), Some(Route::Copy(CopyId(2))));
        beat(&mut members, later, 2, Life::Gone);
        assert_eq!(members.route(now, "worker", &[], false), Some(Route::Group));
        beat(&mut members, later, 1, Life::Serving);
        members.sweep(later + REMEMBERED + BEAT_INTERVAL);
        assert!(members.cages.is_empty() && members.cage_of.is_empty());
    }

    /// It was once credited with a microsecond, so that everybody called it at once.
    #[test]
    fn a_copy_that_has_not_answered_yet_is_taken_to_be_as_fast_as_the_other() {
        let (mut members, now) = members(2);
        members.answered(CopyId(1), Duration::from_millis(10));
        members.begun(CopyId(2));
        // One that leaves, so that calls go by name.
        beat(&mut members, now, 3, Life::Leaving);
        let chosen = |members: &Members| {
            (0..1_000).filter(|_| members.route(now, "worker", &[], false) == Some(Route::Copy(CopyId(1)))).count()
        };
        assert!(chosen(&members) > 600, "the one with fewer calls");
        members.ended(CopyId(2));
        members.begun(CopyId(1));
        assert!(chosen(&members) < 400);
    }

    #[test]
    fn a_silence_of_the_server_is_nobodys_fault() {
        let (mut members, now) = members(1);
        let later = now + Duration::from_secs(60);
        members.excuse(later);
        assert_eq!(members.sweep(later), []);
        assert_eq!(members.copies("worker").len(), 1);
        members.died(CopyId(1));
        assert!(members.copies("worker").is_empty());
    }

    #[test]
    fn members_are_bounded_and_keep_their_cage() {
        let (mut members, now) = members(MEMBERS_MAX as u64);
        assert_eq!(beat(&mut members, now, u64::MAX, Life::Serving), Heard::Ignored);
        let stolen = members.beat(now, "mallory", CopyId(1), Life::Gone, String::new(), String::new());
        assert_eq!(stolen, Heard::Ignored);
        assert_eq!(members.copies("worker").len(), MEMBERS_MAX);
    }

    #[test]
    fn the_less_loaded_of_two_is_called() {
        let (mut members, now) = members(3);
        beat(&mut members, now, 3, Life::Leaving);
        for _ in 0..10 {
            members.begun(CopyId(1));
        }
        members.answered(CopyId(1), Duration::from_millis(2));
        members.answered(CopyId(2), Duration::from_millis(1));
        let chosen =
            (0..100).filter(|_| members.route(now, "worker", &[], false) == Some(Route::Copy(CopyId(2)))).count();
        assert!(chosen > 50, "{chosen} of 100");
        for _ in 0..11 {
            members.ended(CopyId(1));
        }
        let list = members.list(now, |cage, copy| format!("{cage}/{copy}"));
        assert!(list.len() == 3 && list.iter().all(|member| member.in_flight == 0));
    }
}
