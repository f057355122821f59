//! Limits how often repeated events are logged, above all those that outside parties can cause. What is left out is counted,
//! and the next line has the number.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The limit of one kind of event: at most so many in an interval.
#[derive(Debug)]
pub struct Throttle {
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

impl Throttle {
    pub const fn new(events_max: u64, interval: Duration) -> Self {
        Self { events_max, interval, window: Mutex::new(Window { began: None, passed: 0, suppressed: 0 }) }
    }

    /// The usual limit for events that outside parties can cause at will: one in ten seconds.
    pub const fn seldom() -> Self {
        Self::new(1, Duration::from_secs(10))
    }

    /// Counts an event. None if it is not to be logged; otherwise the number of events suppressed since the last one that was.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    /// As `pass`, and logs the event by `write`, which gets the number of suppressed events as a field that is left out when
    /// there were none.
    pub fn log(&self, write: impl FnOnce(Option<u64>)) {
        self.log_at(Instant::now(), write);
    }

    fn log_at(&self, now: Instant, write: impl FnOnce(Option<u64>)) {
        if let Some(suppressed) = self.pass_at(now) {
            write((suppressed > 0).then_some(suppressed));
        }
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

/// Limits of events that differ by a key, such as a peer and a reason: one event of each key in an interval. The number of keys
/// is limited, too; events of further keys share one limit.
#[derive(Debug)]
pub struct KeyedThrottle<K> {
    keys_max: usize,
    interval: Duration,
    keys: Mutex<HashMap<K, LastEvent>>,
    others: Throttle,
}

#[derive(Debug)]
struct LastEvent {
    logged: Instant,
    /// Since then.
    suppressed: u64,
}

impl<K: Eq + Hash> KeyedThrottle<K> {
    /// `others` is the limit of all events whose keys are not among the first `keys_max`.
    pub fn new(keys_max: usize, interval: Duration, others: Throttle) -> Self {
        Self { keys_max, interval, keys: Mutex::default(), others }
    }

    /// Counts an event. None if it is not to be logged; otherwise the number of events with this key suppressed since the last
    /// one that was.
    pub fn pass(&self, key: K) -> Option<u64> {
        self.pass_at(key, Instant::now())
    }

    fn pass_at(&self, key: K, now: Instant) -> Option<u64> {
        let is_recent = |last: &LastEvent| now.saturating_duration_since(last.logged) < self.interval;
        let mut keys = self.keys.lock();
        if keys.len() >= self.keys_max {
            keys.retain(|_, last| is_recent(last));
        }
        if let Some(last) = keys.get_mut(&key) {
            if is_recent(last) {
                last.suppressed += 1;
                return None;
            }
            last.logged = now;
            return Some(std::mem::take(&mut last.suppressed));
        }
        if keys.len() >= self.keys_max {
            return self.others.pass_at(now);
        }
        keys.insert(key, LastEvent { logged: now, suppressed: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_beyond_the_limit_are_counted_and_reported_by_the_next() {
        let throttle = Throttle::new(2, Duration::from_secs(1));
        let start = Instant::now();
        let check = |after_ms, expected| {
            assert_eq!(throttle.pass_at(start + Duration::from_millis(after_ms)), expected, "after {after_ms} ms");
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
    fn a_limit_of_none_lets_nothing_pass() {
        let throttle = Throttle::new(0, Duration::from_secs(1));
        assert_eq!(throttle.pass(), None);
        throttle.log(|_| panic!("it is not logged"));
    }

    #[test]
    fn the_number_of_suppressed_events_is_left_out_when_there_were_none() {
        let throttle = Throttle::seldom();
        let (start, mut logged) = (Instant::now(), Vec::new());
        for after_s in [0, 1, 9, 10, 20] {
            throttle.log_at(start + Duration::from_secs(after_s), |suppressed| logged.push(suppressed));
        }
        assert_eq!(logged, [None, Some(2), None]);
    }

    #[test]
    fn each_key_has_a_limit_of_its_own() {
        let throttle = KeyedThrottle::new(10, Duration::from_secs(60), Throttle::seldom());
        let start = Instant::now();
        let check = |key, after_s, expected| {
            assert_eq!(
                throttle.pass_at(key, start + Duration::from_secs(after_s)),
                expected,
                "{key} after {after_s} s"
            );
        };
        check("a", 0, Some(0));
        check("b", 0, Some(0));
        check("a", 1, None);
        check("a", 59, None);
        check("a", 60, Some(2));
        check("a", 61, None);
        check("b", 61, Some(0));
    }

    #[test]
    fn keys_beyond_the_limit_share_one_until_others_are_over() {
        let throttle = KeyedThrottle::new(2, Duration::from_secs(60), Throttle::new(1, Duration::from_secs(10)));
        let start = Instant::now();
        let check = |key, after_s, expected| {
            assert_eq!(
                throttle.pass_at(key, start + Duration::from_secs(after_s)),
                expected,
                "{key} after {after_s} s"
            );
        };
        check("a", 0, Some(0));
        check("b", 0, Some(0));
        check("c", 0, Some(0));
        check("d", 1, None);
        check("c", 9, None);
        check("a", 9, None);
        check("e", 10, Some(2));
        check("f", 60, Some(0));
        assert_eq!(throttle.keys.lock().len(), 1, "those of the first minute are over");
    }
}
