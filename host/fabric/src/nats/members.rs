//! The copies that are known by their heartbeats, and the choice of the copy for a call. Does no I/O and reads no clock:
//! `mod.rs` passes in the heartbeats and the time.
//!
//! A call goes to the cage's queue group, where the server chooses a copy, as long as every known copy serves. A copy
//! that leaves, or is silent, may still be in the group; then calls go to one of the others by name.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::fabric::CopyId;
use super::packet::BeatState;
use wasmcage_core::call::Member;

/// Interval of a copy's heartbeats.
pub(super) const BEAT_INTERVAL: Duration = Duration::from_millis(500);
/// A copy without a heartbeat for this time gets no calls until its next one, as long as there are others.
const SUSPECT_AFTER: Duration = Duration::from_millis(1_200);
/// A copy without a heartbeat for this time is dead: its calls are lost.
pub(super) const SILENCE_MAX: Duration = Duration::from_millis(2_500);
/// How long a dead copy is remembered. The server may take minutes to close the connection of a process that hangs, and
/// still chooses that copy from the queue group.
const DEAD_COPY_LIFETIME: Duration = Duration::from_secs(600);
/// Known copies of a flock. Others are called through their queue group only.
const MEMBERS_MAX: usize = 10_000;

#[derive(Default)]
pub(super) struct Members {
    cages: HashMap<Arc<str>, Vec<KnownCopy>>,
    cage_of: HashMap<CopyId, Arc<str>>,
}

struct KnownCopy {
    copy: CopyId,
    node: String,
    version: String,
    last_beat: Instant,
    health: MemberHealth,
    in_flight: u32,
    /// Moving average; none before the first answer.
    latency_us: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MemberHealth {
    Serving,
    Leaving,
    Dead,
}

/// The target of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallRecipient {
    /// The queue group of the cage, of which the server chooses a copy.
    Group,
    Copy(CopyId),
}

/// The effect of a heartbeat on the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BeatOutcome {
    New,
    Known,
    Gone,
    /// The table is full, or the copy belongs to another cage.
    Ignored,
}

impl Members {
    pub(super) fn record_beat(
        &mut self,
        now: Instant,
        cage: &str,
        copy: CopyId,
        state: BeatState,
        node: String,
        version: String,
    ) -> BeatOutcome {
        if self.cage_of.get(&copy).is_some_and(|known| **known != *cage) {
            return BeatOutcome::Ignored;
        }
        let health = match state {
            BeatState::Serving => MemberHealth::Serving,
            BeatState::Leaving => MemberHealth::Leaving,
            BeatState::Gone => {
                self.forget(copy);
                return BeatOutcome::Gone;
            }
        };
        if let Some(known) = self.get(copy) {
            let new = known.health == MemberHealth::Dead;
            (known.last_beat, known.health, known.node, known.version) = (now, health, node, version);
            return if new { BeatOutcome::New } else { BeatOutcome::Known };
        }
        if self.cage_of.len() >= MEMBERS_MAX {
            return BeatOutcome::Ignored;
        }
        let cage = self.cages.get_key_value(cage).map_or_else(|| cage.into(), |(cage, _)| cage.clone());
        self.cage_of.insert(copy, cage.clone());
        let known = KnownCopy { copy, node, version, last_beat: now, health, in_flight: 0, latency_us: None };
        self.cages.entry(cage).or_default().push(known);
        BeatOutcome::New
    }

    /// Records that nobody listens for that copy, by the server's reply. Returns whether the copy was known.
    pub(super) fn mark_dead(&mut self, copy: CopyId) -> bool {
        let known = self.get(copy);
        let was_known = known.is_some();
        if let Some(known) = known {
            known.health = MemberHealth::Dead;
        }
        was_known
    }

    /// Records that the copy refuses new calls.
    pub(super) fn mark_leaving(&mut self, copy: CopyId) {
        if let Some(known) = self.get(copy).filter(|known| known.health == MemberHealth::Serving) {
            known.health = MemberHealth::Leaving;
        }
    }

    /// Restarts the silence of all copies: no heartbeat could be received until now.
    pub(super) fn reset_silence(&mut self, now: Instant) {
        for known in self.cages.values_mut().flatten().filter(|known| known.health != MemberHealth::Dead) {
            known.last_beat = now;
        }
    }

    /// Marks silent copies as dead, and forgets old ones. Returns those that have died since the last sweep.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<CopyId> {
        let (mut dead, mut forgotten) = (Vec::new(), Vec::new());
        for known in self.cages.values_mut().flatten() {
            let silence = now.saturating_duration_since(known.last_beat);
            if known.health != MemberHealth::Dead && silence > SILENCE_MAX {
                known.health = MemberHealth::Dead;
                dead.push(known.copy);
            }
            if silence > DEAD_COPY_LIFETIME {
                forgotten.push(known.copy);
            }
        }
        forgotten.into_iter().for_each(|copy| self.forget(copy));
        dead
    }

    /// Chooses the target of a call; none when no copy is left to try. `again` says that an attempt through the group was
    /// lost before any copy acknowledged it.
    pub(super) fn target(&self, now: Instant, cage: &str, tried: &[CopyId], again: bool) -> Option<CallRecipient> {
        let known = self.cages.get(cage).map(Vec::as_slice).unwrap_or_default();
        let is_well = |known: &KnownCopy| known.health == MemberHealth::Serving && !known.is_suspect(now);
        if tried.is_empty() && !again && known.iter().all(is_well) {
            return Some(CallRecipient::Group);
        }
        let mut fit: Vec<_> = known.iter().filter(|known| known.serves() && !tried.contains(&known.copy)).collect();
        if fit.iter().any(|known| !known.is_suspect(now)) {
            fit.retain(|known| !known.is_suspect(now));
        }
        if fit.is_empty() {
            // A leaving copy refuses the call itself. If all are dead, the group may have copies without a heartbeat yet.
            let leaving = known.iter().find(|known| known.health == MemberHealth::Leaving);
            let target = leaving.map_or(CallRecipient::Group, |known| CallRecipient::Copy(known.copy));
            return tried.is_empty().then_some(target);
        }
        // The copy that got the first attempt has probably sent no heartbeat since: the most recent one is another.
        if again && tried.is_empty() {
            return fit.iter().max_by_key(|known| known.last_beat).map(|known| CallRecipient::Copy(known.copy));
        }
        // The better of two random ones, so that callers that see the same load do not all choose the same copy.
        let (one, other) = (fit[fastrand::usize(..fit.len())], fit[fastrand::usize(..fit.len())]);
        Some(CallRecipient::Copy(if other.is_better_than(one) { other.copy } else { one.copy }))
    }

    pub(super) fn call_begun(&mut self, copy: CopyId) {
        if let Some(known) = self.get(copy) {
            known.in_flight += 1;
        }
    }

    pub(super) fn call_ended(&mut self, copy: CopyId) {
        if let Some(known) = self.get(copy) {
            known.in_flight = known.in_flight.saturating_sub(1);
        }
    }

    pub(super) fn record_answer(&mut self, copy: CopyId, elapsed: Duration) {
        if let Some(known) = self.get(copy) {
            let us = elapsed.as_secs_f64() * 1e6;
            known.latency_us = Some(known.latency_us.map_or(us, |mean| mean + (us - mean) * 0.2));
        }
    }

    /// Returns whether at least two copies serve that were not tried.
    pub(super) fn has_others(&self, cage: &str, tried: &[CopyId]) -> bool {
        let known = self.cages.get(cage).into_iter().flatten();
        known.filter(|known| known.serves() && !tried.contains(&known.copy)).nth(1).is_some()
    }

    /// Returns the copies that serve.
    pub(super) fn copies(&self, cage: &str) -> Vec<String> {
        let known = self.cages.get(cage).into_iter().flatten();
        known.filter(|known| known.serves()).map(|known| known.copy.to_string()).collect()
    }

    /// Lists all copies but the dead; `address` returns the address of a copy.
    pub(super) fn list(&self, now: Instant, address: impl Fn(&str, CopyId) -> String) -> Vec<Member> {
        let known = self.cages.iter().flat_map(|(cage, copies)| copies.iter().map(move |known| (cage, known)));
        let member = |(cage, known): (&Arc<str>, &KnownCopy)| Member {
            cage: cage.to_string(),
            copy: known.copy.to_string(),
            node: known.node.clone(),
            version: known.version.clone(),
            addresses: vec![address(cage, known.copy)],
            found: "nats".into(),
            health: known.health_text(now).into(),
            in_flight: known.in_flight,
            latency_us: known.latency_us.map(|mean| mean as u64),
        };
        known.filter(|(_, known)| known.health != MemberHealth::Dead).map(member).collect()
    }

    fn get(&mut self, copy: CopyId) -> Option<&mut KnownCopy> {
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

impl KnownCopy {
    fn serves(&self) -> bool {
        self.health == MemberHealth::Serving
    }

    fn is_suspect(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_beat) > SUSPECT_AFTER
    }

    fn health_text(&self, now: Instant) -> &'static str {
        match self.health {
            MemberHealth::Serving if self.is_suspect(now) => "silent",
            MemberHealth::Serving => "connected",
            MemberHealth::Leaving | MemberHealth::Dead => "draining",
        }
    }

    /// Compares by cost. A copy that has not answered yet is assumed to be as fast as the other.
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
            assert_eq!(beat(&mut members, now, copy, BeatState::Serving), BeatOutcome::New);
        }
        (members, now)
    }

    fn beat(members: &mut Members, now: Instant, copy: u64, state: BeatState) -> BeatOutcome {
        members.record_beat(now, "worker", CopyId(copy), state, "node-1".into(), "0.1.0".into())
    }

    #[test]
    fn the_server_chooses_until_a_copy_falls_silent_or_leaves() {
        let (mut members, now) = members(2);
        assert_eq!(members.target(now, "worker", &[], false), Some(CallRecipient::Group));
        assert_eq!(members.target(now, "unheard", &[], false), Some(CallRecipient::Group));
        let later = now + SUSPECT_AFTER + BEAT_INTERVAL;
        beat(&mut members, later, 2, BeatState::Serving);
        assert_eq!(members.sweep(later), []);
        assert_eq!(
            members.target(later, "worker", &[], false),
            Some(CallRecipient::Copy(CopyId(2))),
            "the other is silent"
        );
        let later = now + SILENCE_MAX + BEAT_INTERVAL;
        let now = later;
        beat(&mut members, later, 2, BeatState::Serving);
        assert_eq!(members.sweep(later), [CopyId(1)]);
        assert_eq!(members.sweep(later), []);
        assert_eq!(members.copies("worker"), [CopyId(2).to_string()]);
        assert_eq!(members.target(now, "worker", &[], false), Some(CallRecipient::Copy(CopyId(2))));
        assert_eq!(beat(&mut members, later, 1, BeatState::Serving), BeatOutcome::New);
        assert_eq!(members.target(now, "worker", &[], false), Some(CallRecipient::Group));
        beat(&mut members, later, 2, BeatState::Leaving);
        assert_eq!(members.target(now, "worker", &[], false), Some(CallRecipient::Copy(CopyId(1))));
        assert_eq!(members.target(now, "worker", &[CopyId(1)], false), None);
        beat(&mut members, later, 1, BeatState::Gone);
        assert_eq!(members.target(now, "worker", &[], false), Some(CallRecipient::Copy(CopyId(2))));
        beat(&mut members, later, 2, BeatState::Gone);
        assert_eq!(members.target(now, "worker", &[], false), Some(CallRecipient::Group));
        beat(&mut members, later, 1, BeatState::Serving);
        members.sweep(later + DEAD_COPY_LIFETIME + BEAT_INTERVAL);
        assert!(members.cages.is_empty() && members.cage_of.is_empty());
    }

    /// A latency of a microsecond was once assumed for such a copy, so that all callers called it at once.
    #[test]
    fn a_copy_that_has_not_answered_yet_is_taken_to_be_as_fast_as_the_other() {
        let (mut members, now) = members(2);
        members.record_answer(CopyId(1), Duration::from_millis(10));
        members.call_begun(CopyId(2));
        // With a leaving copy, calls go to copies by name.
        beat(&mut members, now, 3, BeatState::Leaving);
        let chosen = |members: &Members| {
            (0..1_000)
                .filter(|_| members.target(now, "worker", &[], false) == Some(CallRecipient::Copy(CopyId(1))))
                .count()
        };
        assert!(chosen(&members) > 600, "the one with fewer calls");
        members.call_ended(CopyId(2));
        members.call_begun(CopyId(1));
        assert!(chosen(&members) < 400);
    }

    #[test]
    fn a_missing_server_makes_no_copy_dead() {
        let (mut members, now) = members(1);
        let later = now + Duration::from_secs(60);
        members.reset_silence(later);
        assert_eq!(members.sweep(later), []);
        assert_eq!(members.copies("worker").len(), 1);
        members.mark_dead(CopyId(1));
        assert!(members.copies("worker").is_empty());
    }

    #[test]
    fn members_are_bounded_and_keep_their_cage() {
        let (mut members, now) = members(MEMBERS_MAX as u64);
        assert_eq!(beat(&mut members, now, u64::MAX, BeatState::Serving), BeatOutcome::Ignored);
        let stolen = members.record_beat(now, "mallory", CopyId(1), BeatState::Gone, String::new(), String::new());
        assert_eq!(stolen, BeatOutcome::Ignored);
        assert_eq!(members.copies("worker").len(), MEMBERS_MAX);
    }

    #[test]
    fn the_less_loaded_of_two_is_called() {
        let (mut members, now) = members(3);
        beat(&mut members, now, 3, BeatState::Leaving);
        for _ in 0..10 {
            members.call_begun(CopyId(1));
        }
        members.record_answer(CopyId(1), Duration::from_millis(2));
        members.record_answer(CopyId(2), Duration::from_millis(1));
        let chosen = (0..100)
            .filter(|_| members.target(now, "worker", &[], false) == Some(CallRecipient::Copy(CopyId(2))))
            .count();
        assert!(chosen > 50, "{chosen} of 100");
        for _ in 0..11 {
            members.call_ended(CopyId(1));
        }
        let list = members.list(now, |cage, copy| format!("{cage}/{copy}"));
        assert!(list.len() == 3 && list.iter().all(|member| member.in_flight == 0));
    }
}
