//! Pauses between attempts that go on failing: the first, doubled after each failure, up to the longest.

use std::time::Duration;

/// Failures in a row, and the pauses after them.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    first_at_once: bool,
    failures: u32,
}

impl Backoff {
    /// What ran for so long was well: its next failure is a first one.
    pub const WELL_AFTER: Duration = Duration::from_secs(60);

    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, first_at_once: false, failures: 0 }
    }

    /// There is no pause after the first failure, and the first one after the second.
    pub const fn first_at_once(self) -> Self {
        Self { first_at_once: true, ..self }
    }

    /// The pause after one more failure.
    pub fn pause(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        doubled(self.first, self.longest, self.failures - u32::from(self.first_at_once))
    }

    /// The same of something that was well for a time before it failed.
    pub fn pause_after(&mut self, ran: Duration) -> Duration {
        if ran >= Self::WELL_AFTER {
            self.reset();
        }
        self.pause()
    }

    /// The last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// It went well: the next failure is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// The pause after so many failures in a row: none after none.
pub fn doubled(first: Duration, longest: Duration, failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        // A factor beyond this does not fit, and makes two seconds of a nanosecond.
        failures => first.saturating_mul(1 << (failures - 1).min(31)).min(longest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        let pauses: Vec<_> = (0..5).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1_000, 1_000]);
        assert!(backoff.is_failing());
        backoff.reset();
        assert!(!backoff.is_failing());
        assert_eq!(backoff.pause(), FIRST);
    }

    #[test]
    fn a_failure_after_a_good_time_is_a_first_one() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        backoff.pause();
        assert_eq!(backoff.pause_after(Backoff::WELL_AFTER - FIRST), 2 * FIRST);
        assert_eq!(backoff.pause_after(Backoff::WELL_AFTER), FIRST);
    }

    #[test]
    fn no_number_of_failures_is_too_large() {
        let mut backoff = Backoff { failures: u32::MAX, ..Backoff::new(FIRST, LONGEST) };
        assert_eq!(backoff.pause(), LONGEST);
        for failures in [31, 32, 33, u32::MAX] {
            assert_eq!(doubled(FIRST, LONGEST, failures), LONGEST);
            assert_eq!(doubled(Duration::MAX, Duration::MAX, failures), Duration::MAX);
        }
        assert_eq!(doubled(FIRST, LONGEST, 0), Duration::ZERO);
        assert_eq!(doubled(LONGEST, FIRST, 1), FIRST, "the longest holds for the first, too");
    }
}
