//! Limits the bytes that a log writes in a day, so that no module can fill the disk. The last quarter is reserved for lines of
//! the host, so that events of the cage are logged even on a day on which a module has logged too much.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::clock::Day;

#[derive(Debug)]
pub(super) struct DayBudget {
    max: AtomicU64,
    day: AtomicU32,
    used: AtomicU64,
    /// Lines that were dropped on `day`.
    dropped: AtomicU64,
}

/// Whether a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BudgetDecision {
    Write,
    /// It is written; it is the first line of a day, and so many were dropped on the day before.
    WriteAfterDrops(u64),
    /// It is dropped; with it, so many were dropped on this day.
    Drop(u64),
}

impl DayBudget {
    pub(super) fn new(max: u64) -> Self {
        Self { max: AtomicU64::new(max), day: AtomicU32::new(0), used: AtomicU64::new(0), dropped: AtomicU64::new(0) }
    }

    pub(super) fn set_max(&self, max: u64) {
        self.max.store(max, Relaxed);
    }

    /// Raises the used bytes to the size of the day's file, which other processes write, too.
    pub(super) fn file_has(&self, day: Day, bytes: u64) {
        if self.day.load(Relaxed) == day {
            self.used.fetch_max(bytes, Relaxed);
        }
    }

    /// Decides about a line of so many bytes, and counts it.
    pub(super) fn take(&self, day: Day, bytes: usize, guest: bool) -> BudgetDecision {
        let dropped = self.start_day(day);
        let max = self.max.load(Relaxed);
        let max = if guest { max - max / 4 } else { max };
        let bytes = bytes as u64;
        if self.used.fetch_add(bytes, Relaxed).saturating_add(bytes) > max {
            self.used.fetch_sub(bytes, Relaxed);
            return BudgetDecision::Drop(self.dropped.fetch_add(1, Relaxed) + 1);
        }
        if dropped > 0 { BudgetDecision::WriteAfterDrops(dropped) } else { BudgetDecision::Write }
    }

    /// Resets the counts when the day has changed. Returns how many lines were dropped on the day before.
    fn start_day(&self, day: Day) -> u64 {
        if self.day.load(Relaxed) == day || self.day.swap(day, Relaxed) == day {
            return 0;
        }
        self.used.store(0, Relaxed);
        self.dropped.swap(0, Relaxed)
    }
}

/// Returns whether this number of dropped lines is logged: 1, 10, 100 and so on, so that these lines take little room.
pub(super) fn is_reported(dropped: u64) -> bool {
    dropped > 0 && 10_u64.checked_pow(dropped.ilog10()) == Some(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_leave_a_quarter_to_the_host_and_each_day_starts_anew() {
        let budget = DayBudget::new(100);
        assert_eq!(budget.take(1, 75, true), BudgetDecision::Write);
        assert_eq!(budget.take(1, 1, true), BudgetDecision::Drop(1));
        assert_eq!(budget.take(1, 25, false), BudgetDecision::Write);
        assert_eq!(budget.take(1, 1, false), BudgetDecision::Drop(2));
        assert_eq!(budget.take(2, 1, true), BudgetDecision::WriteAfterDrops(2));
        assert_eq!(budget.take(2, 74, true), BudgetDecision::Write);
        budget.set_max(200);
        assert_eq!(budget.take(2, 75, true), BudgetDecision::Write);
    }

    #[test]
    fn what_is_in_the_file_already_counts() {
        let budget = DayBudget::new(100);
        assert_eq!(budget.take(1, 1, false), BudgetDecision::Write);
        budget.file_has(1, 99);
        budget.file_has(2, 1_000);
        assert_eq!(budget.take(1, 2, false), BudgetDecision::Drop(1));
        assert_eq!(budget.take(1, 1, false), BudgetDecision::Write);
    }

    #[test]
    fn powers_of_ten_are_reported() {
        let reported: Vec<_> = (0..=2_000).filter(|dropped| is_reported(*dropped)).collect();
        assert_eq!(reported, [1, 10, 100, 1_000]);
    }
}
