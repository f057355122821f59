//! Load and health of one copy: calls in flight, latency, and whether it may get calls. Knows neither connections nor
//! addresses.
//!
//! A copy gets calls once its health is good: it greeted on a connection. After a failure it is avoided for a pause, and
//! then probed: a connection is made in the background, so that a copy that hangs delays no call while there are others.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use wasmcage_core::backoff::doubled;

/// A copy that failed is avoided for this time, doubled at each further failure up to `PAUSE_LONGEST`.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// A recovered copy gets its full share of the calls only after this time; until then its cost counts more.
const WARM_UP: Duration = Duration::from_secs(2);
/// At the beginning of its warm-up, a copy's cost grows by this many times.
const WARM_UP_COST: u64 = 16;
/// Half-life of a measured latency while no answer comes.
const LATENCY_HALF_LIFE: Duration = Duration::from_millis(100);

pub(super) struct Gauge {
    epoch: Instant,
    in_flight: AtomicU32,
    /// Moving average in nanoseconds; 0 before the first answer.
    latency: AtomicU64,
    /// Milliseconds since `epoch`.
    answered_at: AtomicU64,
    /// Milliseconds since `epoch`; 0: the copy never failed.
    avoided_until: AtomicU64,
    /// Number of failures since the last answer.
    failures: AtomicU32,
    good: AtomicBool,
    /// A probe is running.
    probing: AtomicBool,
}

/// The health of a copy, which decides whether it gets calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyHealth {
    Good,
    /// The copy may be probed now.
    Unknown,
    /// The copy failed lately, or a probe is running.
    Avoided,
}

/// Counts a call in flight until it is dropped.
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
            good: AtomicBool::new(false),
            probing: AtomicBool::new(false),
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

    pub(super) fn health(&self) -> CopyHealth {
        if self.good.load(Ordering::Relaxed) {
            CopyHealth::Good
        } else if self.is_paused() || self.probing.load(Ordering::Relaxed) {
            CopyHealth::Avoided
        } else {
            CopyHealth::Unknown
        }
    }

    /// Returns whether the pause after the last failure is not over.
    pub(super) fn is_paused(&self) -> bool {
        self.now_ms() < self.avoided_until.load(Ordering::Relaxed)
    }

    /// The end of the pause in milliseconds since the copy became known; 0: the copy never failed.
    pub(super) fn avoided_until_ms(&self) -> u64 {
        self.avoided_until.load(Ordering::Relaxed)
    }

    /// Counts a call in. Its outcome is then recorded by `answered`, `slow` or `fail`.
    pub(super) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self)
    }

    /// Returns whether the caller has to probe the copy: its health is unknown and no other probe is running.
    pub(super) fn begin_probe(&self) -> bool {
        self.health() == CopyHealth::Unknown && !self.probing.swap(true, Ordering::Relaxed)
    }

    pub(super) fn end_probe(&self) {
        self.probing.store(false, Ordering::Relaxed);
    }

    /// Requires a probe before the copy gets calls that others could get.
    pub(super) fn set_unknown(&self) {
        self.good.store(false, Ordering::Relaxed);
    }

    /// Records that the copy greeted or answered.
    pub(super) fn set_good(&self) {
        if self.good.load(Ordering::Relaxed) {
            return;
        }
        if !self.good.swap(true, Ordering::Relaxed) && self.avoided_until_ms() > 0 {
            // The warm-up begins now.
            self.avoided_until.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    /// Records an answer and its latency.
    pub(super) fn answered(&self, elapsed: Duration) {
        self.slow(elapsed);
        self.failures.store(0, Ordering::Relaxed);
        self.set_good();
    }

    /// Records that an answer took at least this long. Two updates at once may lose one, which does not matter.
    pub(super) fn slow(&self, elapsed: Duration) {
        let (old, new) = (self.latency.load(Ordering::Relaxed), elapsed.as_nanos().max(1) as u64);
        let average = if old == 0 { new } else { old - old / 8 + new / 8 };
        self.latency.store(average.max(1), Ordering::Relaxed);
        self.answered_at.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Records that the copy could not be reached, closed the connection or hung. Failures during a pause count as one.
    pub(super) fn fail(&self) {
        self.set_unknown();
        if self.is_paused() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let pause = doubled(PAUSE_FIRST, PAUSE_LONGEST, failures);
        self.avoided_until.store(self.now_ms() + pause.as_millis() as u64, Ordering::Relaxed);
    }

    /// Compares by cost. Costs that differ by less than a factor of two count as equal, and the copy with fewer calls in
    /// flight is better. A copy without an answer yet is assumed to be as fast as the other, so that it is tried, but
    /// not by all callers at once.
    pub(super) fn is_better_than(&self, other: &Self) -> bool {
        let (latency, other_latency) = self.latencies(other);
        let (cost, other_cost) = (self.cost(latency), other.cost(other_latency));
        if cost / 2 > other_cost || other_cost / 2 > cost {
            return cost < other_cost;
        }
        self.in_flight() <= other.in_flight()
    }

    /// Returns the latencies by which the two are compared, in nanoseconds. A latency halves with each
    /// `LATENCY_HALF_LIFE` without an answer, but not below the smaller of the two: a slow copy is tried again, and none
    /// is preferred because it was not called.
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
        latency >> (age_ms / LATENCY_HALF_LIFE.as_millis() as u64).min(63)
    }

    /// Returns the cost of one more call at that latency.
    fn cost(&self, latency: u64) -> u64 {
        let cost = latency.saturating_mul(u64::from(self.in_flight()) + 1);
        let warm_up_ms = WARM_UP.as_millis() as u64;
        let warm_ms = match self.avoided_until_ms() {
            0 => warm_up_ms,
            until => self.now_ms().saturating_sub(until),
        };
        cost.saturating_mul(1 + WARM_UP_COST * warm_up_ms.saturating_sub(warm_ms) / warm_up_ms)
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
        gauge.set_good();
        gauge
    }

    /// Moves the clocks of these gauges forward.
    fn wait(gauges: &mut [&mut Gauge], time: Duration) {
        gauges.iter_mut().for_each(|gauge| gauge.epoch -= time);
    }

    #[test]
    fn a_copy_that_failed_gets_calls_again_only_after_a_probe() {
        let mut gauge = proven();
        assert_eq!(gauge.health(), CopyHealth::Good);
        gauge.fail();
        gauge.fail();
        assert_eq!(gauge.health(), CopyHealth::Avoided);
        assert!(!gauge.begin_probe());
        wait(&mut [&mut gauge], PAUSE_FIRST);
        assert_eq!(gauge.health(), CopyHealth::Unknown);
        assert!(gauge.begin_probe());
        assert!(!gauge.begin_probe() && gauge.health() == CopyHealth::Avoided);
        gauge.fail();
        gauge.end_probe();
        wait(&mut [&mut gauge], PAUSE_FIRST);
        assert_eq!(gauge.health(), CopyHealth::Avoided, "the second pause is twice as long");
        wait(&mut [&mut gauge], PAUSE_FIRST);
        assert!(gauge.begin_probe());
        gauge.end_probe();
        gauge.set_good();
        assert_eq!(gauge.health(), CopyHealth::Good);
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let mut gauge = Gauge::new();
        for _ in 0..8 {
            gauge.fail();
            wait(&mut [&mut gauge], PAUSE_LONGEST);
            assert_eq!(gauge.health(), CopyHealth::Unknown);
        }
    }

    /// A copy that had been silent for seconds once seemed faster than those that answered, and got every call.
    #[test]
    fn silence_makes_no_copy_look_fast() {
        let (mut hung, mut well) = (proven(), proven());
        hung.answered(Duration::from_millis(1));
        hung.fail();
        wait(&mut [&mut hung, &mut well], Duration::from_secs(60));
        well.answered(Duration::from_millis(1));
        assert_eq!(hung.latencies(&well), well.latencies(&hung));
        hung.set_good();
        assert!(well.is_better_than(&hung) && !hung.is_better_than(&well), "it comes back with little");
        wait(&mut [&mut hung, &mut well], WARM_UP);
        assert!(hung.is_better_than(&well), "and has its share in the end");
    }

    #[test]
    fn a_copy_that_was_slow_once_is_tried_again() {
        let (mut slow, mut quick) = (proven(), proven());
        slow.answered(Duration::from_millis(500));
        quick.answered(Duration::from_millis(1));
        assert!(quick.is_better_than(&slow) && !slow.is_better_than(&quick));
        wait(&mut [&mut slow, &mut quick], LATENCY_HALF_LIFE * 20);
        quick.answered(Duration::from_millis(1));
        assert!(slow.is_better_than(&quick));
    }
}
