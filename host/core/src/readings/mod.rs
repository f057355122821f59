//! Counters and latency histograms. The request path writes them without a lock; `wasmcage ps` and the performance page read
//! snapshots. Labels come from small sets (interface, module, outcome), never from ids or texts.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use histogram::{AtomicHistogram, Histogram};
use serde::Serialize;

use crate::error::DispatchError;
use crate::lanes::Lanes;

/// How a request or a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Outcome {
    Ok,
    BadRequest,
    NotFound,
    NotPermitted,
    Refused,
    Failed,
    Trapped,
    DeadlineExceeded,
    Lost,
    Unreachable,
    Overloaded,
    Draining,
    HostError,
    /// The caller left before the answer was ready.
    Abandoned,
}

impl Outcome {
    pub const ALL: [Self; 14] = [
        Self::Ok,
        Self::BadRequest,
        Self::NotFound,
        Self::NotPermitted,
        Self::Refused,
        Self::Failed,
        Self::Trapped,
        Self::DeadlineExceeded,
        Self::Lost,
        Self::Unreachable,
        Self::Overloaded,
        Self::Draining,
        Self::HostError,
        Self::Abandoned,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::BadRequest => "bad-request",
            Self::NotFound => "not-found",
            Self::NotPermitted => "not-permitted",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Trapped => "trapped",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::Lost => "lost",
            Self::Unreachable => "unreachable",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::HostError => "host-error",
            Self::Abandoned => "abandoned",
        }
    }

    pub fn of<T>(result: &Result<T, DispatchError>) -> Self {
        result.as_ref().map_or_else(Self::of_error, |_| Self::Ok)
    }

    pub fn of_error(error: &DispatchError) -> Self {
        match error {
            DispatchError::BadRequest(_) => Self::BadRequest,
            DispatchError::NoSuchCage(_) | DispatchError::NoSuchModule(_) | DispatchError::NoSuchFunction(_) => {
                Self::NotFound
            }
            DispatchError::NotPermitted(_) => Self::NotPermitted,
            DispatchError::Refused(_) => Self::Refused,
            DispatchError::Failed(_) => Self::Failed,
            DispatchError::Trap(_) => Self::Trapped,
            DispatchError::DeadlineExceeded(_) => Self::DeadlineExceeded,
            DispatchError::Lost(_) => Self::Lost,
            DispatchError::Unreachable(_) => Self::Unreachable,
            DispatchError::Overloaded(_) => Self::Overloaded,
            DispatchError::Draining => Self::Draining,
            DispatchError::Host(_) => Self::HostError,
        }
    }
}

/// A histogram of durations from 1 µs to 19 hours, with an error of 3 % at most.
struct Latencies(AtomicHistogram);

impl Default for Latencies {
    fn default() -> Self {
        Self(AtomicHistogram::new(5, 36).expect("the parameters are within the library's bounds"))
    }
}

impl Latencies {
    fn record(&self, elapsed: Duration) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).min((1 << 36) - 1);
        // The only error is a value out of range, and the value was clamped above.
        let _ = self.0.increment(micros);
    }
}

/// Readings of one interface or module. Each lane writes its own shard, which is created when it has something to count.
#[derive(Default)]
pub struct Readings {
    shards: [OnceLock<Box<ReadingsShard>>; SHARDS],
}

/// Number of shards. More lanes than this share shards.
const SHARDS: usize = 16;

#[derive(Default)]
struct ReadingsShard {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    begun: AtomicU64,
    /// From the request's arrival to the start of work on it.
    pending: Latencies,
    /// From the start of work to the answer.
    processing: Latencies,
}

impl Readings {
    pub fn begin(&self) {
        self.shard().begun.fetch_add(1, Relaxed);
    }

    pub fn end(&self, outcome: Outcome, pending: Duration, processing: Duration) {
        let shard = self.shard();
        shard.outcomes[outcome as usize].fetch_add(1, Relaxed);
        shard.pending.record(pending);
        shard.processing.record(processing);
    }

    /// Changes the outcome of a request that was counted as `Ok` when its answer began.
    pub fn revise(&self, outcome: Outcome) {
        let shard = self.shard();
        shard.outcomes[outcome as usize].fetch_add(1, Relaxed);
        // Another lane's shard may have counted it; only the sum of all shards is meaningful.
        shard.outcomes[Outcome::Ok as usize].fetch_sub(1, Relaxed);
    }

    pub fn count(&self, outcome: Outcome) -> u64 {
        let counts = self.created_shards().map(|shard| shard.outcomes[outcome as usize].load(Relaxed));
        // The shards are read one after the other, so that the sum may be below zero for a moment.
        counts.fold(0, u64::wrapping_add).cast_signed().max(0).cast_unsigned()
    }

    pub fn snapshot(&self) -> ReadingsSnapshot {
        let ended: u64 = Outcome::ALL.into_iter().map(|outcome| self.count(outcome)).sum();
        let begun: u64 = self.created_shards().map(|shard| shard.begun.load(Relaxed)).sum();
        let counts = Outcome::ALL.into_iter().map(|outcome| (outcome.name(), self.count(outcome)));
        ReadingsSnapshot {
            requests: ended,
            // The two are read one after the other, so a request may end in between.
            in_work: begun.saturating_sub(ended),
            outcomes: counts.filter(|(_, count)| *count > 0).collect(),
            pending: LatencySnapshot::of(self.created_shards().map(|shard| &shard.pending)),
            processing: LatencySnapshot::of(self.created_shards().map(|shard| &shard.processing)),
        }
    }

    fn shard(&self) -> &ReadingsShard {
        self.shards[Lanes::current() % SHARDS].get_or_init(Box::default)
    }

    fn created_shards(&self) -> impl Iterator<Item = &ReadingsShard> {
        self.shards.iter().filter_map(|shard| Some(&**shard.get()?))
    }
}

/// Readings of one interface or module since the cage started, for operators.
#[derive(Debug, Serialize)]
pub struct ReadingsSnapshot {
    pub requests: u64,
    pub in_work: u64,
    /// Only the outcomes that occurred.
    pub outcomes: std::collections::BTreeMap<&'static str, u64>,
    pub pending: LatencySnapshot,
    pub processing: LatencySnapshot,
}

/// Latencies in microseconds, each the upper end of a bucket that is 3 % wide; 0 when nothing was measured.
#[derive(Debug, Serialize)]
pub struct LatencySnapshot {
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

impl LatencySnapshot {
    fn of<'a>(shards: impl Iterator<Item = &'a Latencies>) -> Self {
        let histograms: Vec<_> = shards.map(|latencies| latencies.0.load()).collect();
        let histograms: Vec<_> = histograms.iter().collect();
        let all = Histogram::checked_sum(&histograms).ok();
        let at = |quantile: f64| {
            let bucket = all.as_ref().and_then(|all| all.quantile_bucket(quantile).ok().flatten());
            bucket.map_or(0, |bucket| bucket.end())
        };
        Self { p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99), max_us: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket() {
        let readings = Readings::default();
        for micros in 1..=1_000 {
            readings.begin();
            readings.end(Outcome::Ok, Duration::ZERO, Duration::from_micros(micros));
        }
        readings.begin();
        let snapshot = readings.snapshot();
        assert_eq!((snapshot.requests, snapshot.in_work), (1_000, 1));
        assert!((500..=516).contains(&snapshot.processing.p50_us), "{snapshot:?}");
        assert!((990..=1_023).contains(&snapshot.processing.p99_us), "{snapshot:?}");
        assert_eq!(snapshot.outcomes.get("ok"), Some(&1_000));
    }

    #[test]
    fn an_answer_that_broke_off_is_not_a_good_one() {
        let readings = Readings::default();
        for _ in 0..2 {
            readings.begin();
            readings.end(Outcome::Ok, Duration::ZERO, Duration::ZERO);
        }
        readings.revise(Outcome::Failed);
        assert_eq!((readings.count(Outcome::Ok), readings.count(Outcome::Failed)), (1, 1));
        // Another lane's shard may be the only one that was read so far.
        readings.revise(Outcome::Trapped);
        readings.revise(Outcome::Trapped);
        assert_eq!(readings.count(Outcome::Ok), 0);
    }

    #[test]
    fn absurd_durations_are_counted() {
        let readings = Readings::default();
        readings.end(Outcome::Failed, Duration::MAX, Duration::MAX);
        assert!(readings.snapshot().processing.max_us > 0);
    }
}
