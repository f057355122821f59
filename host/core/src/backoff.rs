//! Pauses between attempts that keep failing: they double after each failure, up to the longest.

use std::time::Duration;

/// Counts failures in a row and computes the pauses after them.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    first_at_once: bool,
    failures: u32,
}

impl Backoff {
    /// After running for so long, a failure counts as a first one.
    pub const STABLE_AFTER: Duration = Duration::from_secs(60);

    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, first_at_once: false, failures: 0 }
    }

    /// Changes it so that there is no pause after the first failure, and the first pause comes after the second.
    pub const fn first_at_once(self) -> Self {
        Self { first_at_once: true, ..self }
    }

    /// Counts a failure and returns the pause after it.
    pub fn pause(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        doubled(self.first, self.longest, self.failures - u32::from(self.first_at_once))
    }

    /// As `pause`, for something that ran for a time before it failed.
    pub fn pause_after(&mut self, ran: Duration) -> Duration {
        if ran >= Self::STABLE_AFTER {
            self.reset();
        }
        self.pause()
    }

    /// The last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Records a success: the next failure counts as a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Returns the pause after so many failures in a row; zero after none.
pub fn doubled(first: Duration, longest: Duration, failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        // A larger factor does not fit in 32 bits; this one makes two seconds of a nanosecond.
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
        assert_eq!(backoff.pause_after(Backoff::STABLE_AFTER - FIRST), 2 * FIRST);
        assert_eq!(backoff.pause_after(Backoff::STABLE_AFTER), FIRST);
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
