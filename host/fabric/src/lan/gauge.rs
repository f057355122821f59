//! How a copy does: calls in flight, latency, and whether it may have calls at all. Knows neither connections nor addresses.
//!
//! A copy gets calls once it is *proven*: a connection to it was greeted. One that fails has to prove itself again after a
//! pause. The proof is a connection made in the background, so that a copy that hangs holds up nobody while there are others.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use wasmcage_core::backoff::doubled;

/// A copy that failed is avoided for so long, twice as long each time, up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// After that its share of the calls grows from little to its full one.
const RETURN: Duration = Duration::from_secs(2);
/// How much dearer it looks when it comes back.
const RETURN_COST: u64 = 16;
/// How fast a measured latency is forgotten while no other comes.
const FADE: Duration = Duration::from_millis(100);

pub(super) struct Gauge {
    epoch: Instant,
    in_flight: AtomicU32,
    /// Moving average in nanoseconds; 0 before the first answer.
    latency: AtomicU64,
    /// Milliseconds since `epoch`.
    answered_at: AtomicU64,
    /// Milliseconds since `epoch`; 0: never.
    avoided_until: AtomicU64,
    /// Since the last answer.
    failures: AtomicU32,
    proven: AtomicBool,
    /// A proof is on its way.
    proving: AtomicBool,
}

/// Whether a copy may have calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Proven,
    /// Nobody knows; a proof may be made now.
    Unproven,
    /// It failed lately, or its proof is on its way.
    Avoided,
}

/// A call that has no answer yet.
pub(super) struct InFlight<'a>(&'a Gauge);

impl Gauge {
    pub(super) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            avoided_until: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            proven: AtomicBool::new(false),
            proving: AtomicBool::new(false),
        }
    }

    /// Milliseconds since the copy became known.
    pub(super) fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn latency(&self) -> Option<Duration> {
        Some(self.latency.load(Ordering::Relaxed)).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
    }

    pub(super) fn standing(&self) -> Standing {
        if self.proven.load(Ordering::Relaxed) {
            Standing::Proven
        } else if self.is_paused() || self.proving.load(Ordering::Relaxed) {
            Standing::Avoided
        } else {
            Standing::Unproven
        }
    }

    /// It failed, and the pause after that is not over.
    pub(super) fn is_paused(&self) -> bool {
        self.now_ms() < self.avoided_until.load(Ordering::Relaxed)
    }

    /// Milliseconds since the copy became known until which it is avoided; 0: it never failed.
    pub(super) fn avoided_until_ms(&self) -> u64 {
        self.avoided_until.load(Ordering::Relaxed)
    }

    /// A call begins; it ends with one of the others.
    pub(super) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self)
    }

    /// Whether the caller is to make the proof: not while another makes it, or when there is nothing to prove now.
    pub(super) fn begin_proof(&self) -> bool {
        self.standing() == Standing::Unproven && !self.proving.swap(true, Ordering::Relaxed)
    }

    pub(super) fn end_proof(&self) {
        self.proving.store(false, Ordering::Relaxed);
    }

    /// Whether it is still there has to be found out before it gets calls that others could have.
    pub(super) fn doubt(&self) {
        self.proven.store(false, Ordering::Relaxed);
    }

    /// It greeted, or answered.
    pub(super) fn prove(&self) {
        if self.proven.load(Ordering::Relaxed) {
            return;
        }
        if !self.proven.swap(true, Ordering::Relaxed) && self.avoided_until_ms() > 0 {
            // Its return begins now.
            self.avoided_until.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    /// An answer came.
    pub(super) fn answered(&self, elapsed: Duration) {
        self.slow(elapsed);
        self.failures.store(0, Ordering::Relaxed);
        self.prove();
    }

    /// An answer took so long, or longer. Lost updates of two at once do not matter.
    pub(super) fn slow(&self, elapsed: Duration) {
        let (old, new) = (self.latency.load(Ordering::Relaxed), elapsed.as_nanos().max(1) as u64);
        let average = if old == 0 { new } else { old - old / 8 + new / 8 };
        self.latency.store(average.max(1), Ordering::Relaxed);
        self.answered_at.store(self.now_ms(), Ordering::Relaxed);
    }

    /// It could not be reached, broke off, or hung. Further failures in a pause are the same one.
    pub(super) fn fail(&self) {
        self.doubt();
        if self.is_paused() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let pause = doubled(PAUSE_FIRST, PAUSE_LONGEST, failures);
        self.avoided_until.store(self.now_ms() + pause.as_millis() as u64, Ordering::Relaxed);
    }

    /// A small difference is chance, and the one with fewer calls in work gets the next. A copy that has not answered yet is
    /// taken to be as fast as the other: so it is tried, and not by everybody at once.
    pub(super) fn is_better_than(&self, other: &Self) -> bool {
        let (latency, other_latency) = self.latencies(other);
        let (cost, other_cost) = (self.cost(latency), other.cost(other_latency));
        if cost / 2 > other_cost || other_cost / 2 > cost {
            return cost < other_cost;
        }
        self.in_flight() <= other.in_flight()
    }

    /// What the two are compared by, in nanoseconds. What was measured of the slower one counts for half after each `FADE`
    /// without an answer, down to the faster one's and no further: it is tried again, and not preferred for its silence.
    fn latencies(&self, other: &Self) -> (u64, u64) {
        let (own, others) = (self.latency.load(Ordering::Relaxed), other.latency.load(Ordering::Relaxed));
        match (own, others) {
            (0, 0) => (1, 1),
            (0, known) | (known, 0) => (known, known),
            (own, others) => (self.faded(own).max(own.min(others)), other.faded(others).max(own.min(others))),
        }
    }

    fn faded(&self, latency: u64) -> u64 {
        let age_ms = self.now_ms().saturating_sub(self.answered_at.load(Ordering::Relaxed));
        latency >> (age_ms / FADE.as_millis() as u64).min(63)
    }

    /// What one more call would cost, at that latency.
    fn cost(&self, latency: u64) -> u64 {
        let cost = latency.saturating_mul(u64::from(self.in_flight()) + 1);
        let return_ms = RETURN.as_millis() as u64;
        let returned = match self.avoided_until_ms() {
            0 => return_ms,
            until => self.now_ms().saturating_sub(until),
        };
        cost.saturating_mul(1 + RETURN_COST * return_ms.saturating_sub(returned) / return_ms)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proven() -> Gauge {
        let gauge = Gauge::new();
        gauge.prove();
        gauge
    }

    /// Time goes on, for these.
    fn wait(gauges: &mut [&mut Gauge], time: Duration) {
        gauges.iter_mut().for_each(|gauge| gauge.epoch -= time);
    }

    #[test]
    fn a_copy_that_failed_gets_calls_again_only_when_it_has_proven_itself() {
        let mut gauge = proven();
        assert_eq!(gauge.standing(), Standing::Proven);
        gauge.fail();
        gauge.fail();
        assert_eq!(gauge.standing(), Standing::Avoided);
        assert!(!gauge.begin_proof());
        wait(&mut [&mut gauge], PAUSE_FIRST);
        assert_eq!(gauge.standing(), Standing::Unproven);
        assert!(gauge.begin_proof());
        assert!(!gauge.begin_proof() && gauge.standing() == Standing::Avoided);
        gauge.fail();
        gauge.end_proof();
        wait(&mut [&mut gauge], PAUSE_FIRST);
        assert_eq!(gauge.standing(), Standing::Avoided, "the second pause is twice as long");
        wait(&mut [&mut gauge], PAUSE_FIRST);
        assert!(gauge.begin_proof());
        gauge.end_proof();
        gauge.prove();
        assert_eq!(gauge.standing(), Standing::Proven);
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let mut gauge = Gauge::new();
        for _ in 0..8 {
            gauge.fail();
            wait(&mut [&mut gauge], PAUSE_LONGEST);
            assert_eq!(gauge.standing(), Standing::Unproven);
        }
    }

    /// A copy that was silent for seconds once looked cheaper than any that answered, and got every call.
    #[test]
    fn silence_makes_no_copy_look_fast() {
        let (mut hung, mut well) = (proven(), proven());
        hung.answered(Duration::from_millis(1));
        hung.fail();
        wait(&mut [&mut hung, &mut well], Duration::from_secs(60));
        well.answered(Duration::from_millis(1));
        assert_eq!(hung.latencies(&well), well.latencies(&hung));
        hung.prove();
        assert!(well.is_better_than(&hung) && !hung.is_better_than(&well), "it comes back with little");
        wait(&mut [&mut hung, &mut well], RETURN);
        assert!(hung.is_better_than(&well), "and has its share in the end");
    }

    #[test]
    fn a_copy_that_was_slow_once_is_tried_again() {
        let (mut slow, mut quick) = (proven(), proven());
        slow.answered(Duration::from_millis(500));
        quick.answered(Duration::from_millis(1));
        assert!(quick.is_better_than(&slow) && !slow.is_better_than(&quick));
        wait(&mut [&mut slow, &mut quick], FADE * 20);
        quick.answered(Duration::from_millis(1));
        assert!(slow.is_better_than(&quick));
    }
}
