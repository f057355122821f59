//! How many bytes a log may write in a day, so that no module fills the disk in the cage's name. The last quarter is for the
//! lines of the host: what happens to a cage is told also on a day on which one of its modules has talked too much.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::clock::Day;

#[derive(Debug)]
pub(super) struct DayBudget {
    max: AtomicU64,
    day: AtomicU32,
    used: AtomicU64,
    /// Lines that were dropped on that day.
    dropped: AtomicU64,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Write,
    /// The first of a day; on the day before so many were dropped.
    WriteAfter(u64),
    /// With this one so many are dropped.
    Drop(u64),
}

impl DayBudget {
    pub(super) fn new(max: u64) -> Self {
        Self { max: AtomicU64::new(max), day: AtomicU32::new(0), used: AtomicU64::new(0), dropped: AtomicU64::new(0) }
    }

    pub(super) fn set_max(&self, max: u64) {
        self.max.store(max, Relaxed);
    }

    /// So much is in the day's file, whoever wrote it.
    pub(super) fn file_has(&self, day: Day, bytes: u64) {
        if self.day.load(Relaxed) == day {
            self.used.fetch_max(bytes, Relaxed);
        }
    }

    pub(super) fn take(&self, day: Day, bytes: usize, guest: bool) -> Verdict {
        let missed = self.begin(day);
        let max = self.max.load(Relaxed);
        let max = if guest { max - max / 4 } else { max };
        let bytes = bytes as u64;
        if self.used.fetch_add(bytes, Relaxed).saturating_add(bytes) > max {
            self.used.fetch_sub(bytes, Relaxed);
            return Verdict::Drop(self.dropped.fetch_add(1, Relaxed) + 1);
        }
        if missed > 0 { Verdict::WriteAfter(missed) } else { Verdict::Write }
    }

    /// Starts anew on another day; returns what was dropped on the day before.
    fn begin(&self, day: Day) -> u64 {
        if self.day.load(Relaxed) == day || self.day.swap(day, Relaxed) == day {
            return 0;
        }
        self.used.store(0, Relaxed);
        self.dropped.swap(0, Relaxed)
    }
}

/// Whether so many dropped lines are told: 1, 10, 100 and so on, so that telling needs no room to speak of.
pub(super) fn is_told(dropped: u64) -> bool {
    dropped > 0 && 10_u64.checked_pow(dropped.ilog10()) == Some(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_leave_a_quarter_to_the_host_and_each_day_starts_anew() {
        let budget = DayBudget::new(100);
        assert_eq!(budget.take(1, 75, true), Verdict::Write);
        assert_eq!(budget.take(1, 1, true), Verdict::Drop(1));
        assert_eq!(budget.take(1, 25, false), Verdict::Write);
        assert_eq!(budget.take(1, 1, false), Verdict::Drop(2));
        assert_eq!(budget.take(2, 1, true), Verdict::WriteAfter(2));
        assert_eq!(budget.take(2, 74, true), Verdict::Write);
        budget.set_max(200);
        assert_eq!(budget.take(2, 75, true), Verdict::Write);
    }

    #[test]
    fn what_is_in_the_file_already_counts() {
        let budget = DayBudget::new(100);
        assert_eq!(budget.take(1, 1, false), Verdict::Write);
        budget.file_has(1, 99);
        budget.file_has(2, 1_000);
        assert_eq!(budget.take(1, 2, false), Verdict::Drop(1));
        assert_eq!(budget.take(1, 1, false), Verdict::Write);
    }

    #[test]
    fn powers_of_ten_are_told() {
        let told: Vec<_> = (0..=2_000).filter(|dropped| is_told(*dropped)).collect();
        assert_eq!(told, [1, 10, 100, 1_000]);
    }
}
