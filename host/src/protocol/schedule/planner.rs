//! Which times get a request, and when: knows the rules, is told the time and what has ended, and does nothing itself.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use super::times::Times;

/// A time that is noticed so much later is on time. Later than that, the cage did not run, or its clock was set forward.
const LATE: SignedDuration = SignedDuration::from_secs(10);
/// A clock that is set back by less will come to the times that were, and they are not repeated. One that is set back by
/// more was wrong before, and the schedule begins anew.
const BACK: SignedDuration = SignedDuration::from_hours(24);
const SECOND: SignedDuration = SignedDuration::from_secs(1);
/// Times of a downtime that are counted; what is beyond is not told.
const MISSED_COUNTED_MAX: u64 = 10_000;

#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub times: Times,
    pub overlap: Overlap,
    pub queue_max: usize,
    pub catch_up: CatchUp,
    pub catch_up_max: usize,
}

/// What becomes of a time that comes while an earlier one's request is in work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overlap {
    Allow,
    Skip,
    Queue,
}

/// What becomes of the times that passed while the cage did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CatchUp {
    None,
    /// The last of them.
    Once,
    /// The last `catch_up_max` of them.
    All,
}

/// A request that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tick {
    pub time: Timestamp,
    /// So many times before this one got no request.
    pub missed: u64,
}

#[derive(Debug)]
pub(super) struct Planner {
    rules: Rules,
    /// All times up to this one are decided.
    seen: Timestamp,
    /// Times that got no request since the last tick.
    left_out: u64,
    /// Ticks that have begun and not ended.
    in_work: usize,
    waiting: VecDeque<Tick>,
}

impl Planner {
    /// Times up to `seen` are no business of this planner.
    pub(super) fn new(rules: Rules, seen: Timestamp) -> Self {
        Self { rules, seen, left_out: 0, in_work: 0, waiting: VecDeque::new() }
    }

    /// Decides about all times up to `now`, and returns the ticks that begin now.
    pub(super) fn look(&mut self, now: Timestamp) -> Vec<Tick> {
        let mut begin = Vec::new();
        if now < self.seen {
            if self.seen.duration_since(now) > BACK {
                self.seen = now;
            }
            return begin;
        }
        if let Ok(late) = now.checked_sub(LATE)
            && self.seen < late
        {
            self.catch_up(late, &mut begin);
        }
        while let Some(time) = self.next().filter(|time| *time <= now) {
            self.seen = time;
            if self.rules.overlap == Overlap::Allow || (self.in_work == 0 && self.waiting.is_empty()) {
                begin.push(self.tick(time));
                self.in_work += 1;
            } else if self.rules.overlap == Overlap::Queue && self.waiting.len() < self.rules.queue_max {
                let tick = self.tick(time);
                self.waiting.push_back(tick);
            } else {
                self.left_out = self.left_out.saturating_add(1);
            }
        }
        self.seen = now;
        begin
    }

    /// A tick in work has ended: returns one that begins now.
    pub(super) fn ended(&mut self) -> Option<Tick> {
        self.in_work = self.in_work.saturating_sub(1);
        self.begin_waiting()
    }

    /// The first time that is not decided.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.rules.times.after(self.seen)
    }

    /// All times up to this one have got their requests, or get none.
    pub(super) fn settled(&self) -> Timestamp {
        match self.waiting.front() {
            Some(tick) => tick.time.checked_sub(SECOND).unwrap_or(Timestamp::MIN),
            None => self.seen,
        }
    }

    /// Ticks that wait for an earlier one's end.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Decides about what passed up to `late`. Unless ticks may overlap, what is caught up goes one by one.
    fn catch_up(&mut self, late: Timestamp, begin: &mut Vec<Tick>) {
        let kept_max = match self.rules.catch_up {
            CatchUp::None => 0,
            CatchUp::Once => 1,
            CatchUp::All => self.rules.catch_up_max,
        };
        let whole = Timestamp::from_second(late.as_second()).unwrap_or(late);
        let (mut kept, mut counted, mut up_to) = (VecDeque::new(), 0, Some(whole));
        while let Some(time) = up_to.and_then(|up_to| self.rules.times.up_to(up_to)).filter(|time| *time > self.seen)
            && counted < MISSED_COUNTED_MAX
        {
            counted += 1;
            if kept.len() < kept_max {
                kept.push_front(time);
            }
            up_to = time.checked_sub(SECOND).ok();
        }
        self.left_out = self.left_out.saturating_add(counted - kept.len() as u64);
        for time in kept {
            let tick = self.tick(time);
            match self.rules.overlap {
                Overlap::Allow => {
                    begin.push(tick);
                    self.in_work += 1;
                }
                Overlap::Skip | Overlap::Queue => self.waiting.push_back(tick),
            }
        }
        // Clocks are set forward again and again, but no more than one downtime's worth waits.
        while self.waiting.len() > self.rules.catch_up_max.max(self.rules.queue_max) {
            self.waiting.pop_front();
            self.left_out = self.left_out.saturating_add(1);
        }
        self.seen = late;
        begin.extend(self.begin_waiting());
    }

    fn begin_waiting(&mut self) -> Option<Tick> {
        if self.in_work > 0 {
            return None;
        }
        let tick = self.waiting.pop_front()?;
        self.in_work = 1;
        Some(tick)
    }

    fn tick(&mut self, time: Timestamp) -> Tick {
        Tick { time, missed: std::mem::take(&mut self.left_out) }
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::super::times::Pattern;
    use super::*;

    /// Minutes of one day.
    fn at(minute: i64) -> Timestamp {
        "2026-11-21T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_mins(minute)
    }

    /// Every minute.
    fn planner(overlap: Overlap, catch_up: CatchUp) -> Planner {
        let times = Times { pattern: Pattern::Every(60), zone: TimeZone::UTC, written: String::new() };
        Planner::new(Rules { times, overlap, queue_max: 1, catch_up, catch_up_max: 3 }, at(0))
    }

    #[track_caller]
    fn check(ticks: impl IntoIterator<Item = Tick>, expected: &[(i64, u64)]) {
        let expected: Vec<_> =
            expected.iter().map(|(minute, missed)| Tick { time: at(*minute), missed: *missed }).collect();
        assert_eq!(ticks.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_time_fires_once_however_often_one_looks() {
        let mut planner = planner(Overlap::Allow, CatchUp::None);
        check(planner.look(at(0)), &[]);
        assert_eq!(planner.next(), Some(at(1)));
        check(planner.look(at(1) - SignedDuration::from_nanos(1)), &[]);
        check(planner.look(at(1)), &[(1, 0)]);
        check(planner.look(at(1)), &[]);
        check(planner.look(at(1) + SignedDuration::from_millis(1)), &[]);
        assert_eq!(planner.next(), Some(at(2)));
        // Noticed late, but on time.
        check(planner.look(at(2) + SignedDuration::from_secs(9)), &[(2, 0)]);
    }

    #[test]
    fn ticks_overlap_are_left_out_or_wait() {
        let mut allow = planner(Overlap::Allow, CatchUp::None);
        check(allow.look(at(1)), &[(1, 0)]);
        check(allow.look(at(2)), &[(2, 0)]);

        let mut skip = planner(Overlap::Skip, CatchUp::None);
        check(skip.look(at(1)), &[(1, 0)]);
        check(skip.look(at(2)), &[]);
        check(skip.look(at(3)), &[]);
        check(skip.ended(), &[]);
        check(skip.look(at(4)), &[(4, 2)]);

        let mut queue = planner(Overlap::Queue, CatchUp::None);
        check(queue.look(at(1)), &[(1, 0)]);
        check(queue.look(at(2)), &[]);
        assert_eq!((queue.waiting(), queue.settled()), (1, at(2) - SECOND));
        check(queue.look(at(3)), &[]);
        check(queue.ended(), &[(2, 0)]);
        assert_eq!(queue.settled(), at(3));
        check(queue.look(at(4)), &[]);
        check(queue.ended(), &[(4, 1)]);
        check(queue.ended(), &[]);
    }

    #[test]
    fn a_downtime_is_caught_up_not_at_all_or_once_or_up_to_a_bound() {
        for overlap in [Overlap::Allow, Overlap::Skip, Overlap::Queue] {
            let mut none = planner(overlap, CatchUp::None);
            check(none.look(at(10) + LATE + SECOND), &[]);
            check(none.look(at(11)), &[(11, 10)]);
            let mut once = planner(overlap, CatchUp::Once);
            check(once.look(at(10) + LATE + SECOND), &[(10, 9)]);
            // What is due just now is on time.
            let mut just = planner(Overlap::Allow, CatchUp::Once);
            check(just.look(at(10)), &[(9, 8), (10, 0)]);
        }
        let mut all = planner(Overlap::Allow, CatchUp::All);
        check(all.look(at(5) + LATE + SECOND), &[(3, 2), (4, 0), (5, 0)]);
        let mut all = planner(Overlap::Skip, CatchUp::All);
        check(all.look(at(5) + LATE + SECOND), &[(3, 2)]);
        // Times that come meanwhile are left out as ever, what is caught up is not.
        check(all.look(at(6)), &[]);
        check(all.ended(), &[(4, 0)]);
        check(all.ended(), &[(5, 0)]);
        check(all.ended(), &[]);
        check(all.look(at(7)), &[(7, 1)]);
    }

    #[test]
    fn a_long_downtime_costs_no_more_than_a_short_one() {
        let times = Times { pattern: Pattern::Every(1), zone: TimeZone::UTC, written: String::new() };
        let rules = Rules { times, overlap: Overlap::Allow, queue_max: 1, catch_up: CatchUp::Once, catch_up_max: 1 };
        let mut planner = Planner::new(rules, Timestamp::UNIX_EPOCH);
        let ticks = planner.look(at(0));
        assert_eq!(ticks.first().unwrap().missed, MISSED_COUNTED_MAX - 1);
        assert_eq!(ticks.len(), 11);
    }

    #[test]
    fn a_clock_set_back_repeats_nothing() {
        let mut planner = planner(Overlap::Allow, CatchUp::All);
        check(planner.look(at(60)), &[(57, 56), (58, 0), (59, 0), (60, 0)]);
        // An hour back, and forth again minute by minute.
        for minute in 0..=60 {
            check(planner.look(at(minute)), &[]);
            assert_eq!(planner.next(), Some(at(61)));
        }
        check(planner.look(at(61)), &[(61, 0)]);
    }

    #[test]
    fn a_clock_that_was_days_ahead_does_not_silence_the_schedule() {
        let mut planner = planner(Overlap::Allow, CatchUp::None);
        check(planner.look(at(3 * 24 * 60)), &[(3 * 24 * 60, 3 * 24 * 60 - 1)]);
        check(planner.look(at(1)), &[]);
        check(planner.look(at(2)), &[(2, 0)]);
    }

    #[test]
    fn what_waits_is_bounded_however_often_the_clock_jumps() {
        let mut planner = planner(Overlap::Queue, CatchUp::All);
        for jump in 1..10 {
            planner.look(at(jump * 10));
            assert!(planner.waiting() <= 4, "{}", planner.waiting());
        }
    }
}
