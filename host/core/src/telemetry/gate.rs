//! A bound on how often something may be logged that outside parties can cause.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// At most so many events per interval; the others are counted.
#[derive(Debug)]
pub struct Gate {
    events_max: u64,
    interval: Duration,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    /// None before the first event.
    began: Option<Instant>,
    passed: u64,
    suppressed: u64,
}

impl Gate {
    pub const fn new(events_max: u64, interval: Duration) -> Self {
        Self { events_max, interval, window: Mutex::new(Window { began: None, passed: 0, suppressed: 0 }) }
    }

    /// None: too many, say nothing. Otherwise the number of events suppressed since the last one that passed.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock();
        if window.began.is_none_or(|began| now.saturating_duration_since(began) >= self.interval) {
            window.began = Some(now);
            window.passed = 0;
        }
        if window.passed >= self.events_max {
            window.suppressed += 1;
            return None;
        }
        window.passed += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_limit_is_counted_and_told_by_the_next() {
        let gate = Gate::new(2, Duration::from_secs(1));
        let start = Instant::now();
        let check = |after_ms, expected| {
            assert_eq!(gate.pass_at(start + Duration::from_millis(after_ms)), expected, "after {after_ms} ms");
        };
        check(0, Some(0));
        check(1, Some(0));
        check(2, None);
        check(999, None);
        check(1_000, Some(2));
        check(1_001, Some(0));
        check(1_002, None);
        check(5_000, Some(1));
    }

    #[test]
    fn a_gate_of_none_lets_nothing_pass() {
        let gate = Gate::new(0, Duration::from_secs(1));
        assert_eq!(gate.pass(), None);
    }
}
