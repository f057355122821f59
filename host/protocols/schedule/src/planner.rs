//! Which times get a request, and when: knows the rules, is told the time and what has ended, and does nothing itself.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use super::times::Times;

/// A time that is noticed so much later is on time. Later than that, the cage did not run, or its clock was set forward.
const LATE: SignedDuration = SignedDuration::from_secs(10);
/// A clock that is set back by less will come to the times that were, and they are not repeated. One that is set back by
/// more was wrong before, and the schedule begins anew, without the times that have had their requests.
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

/// Stretches of time that are remembered from before a clock was set; the oldest is forgotten for one more.
const PAST_MAX: usize = 32;

/// How far a schedule has come, whatever its clock did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Since when the clock has gone on without a leap.
    pub since: Timestamp,
    /// All times from `since` up to this one are decided.
    pub seen: Timestamp,
    /// Stretches before the clock leapt, in the order in which they were run through: their times are decided, too.
    pub past: Vec<Stretch>,
}

/// Times after `after`, up to and including `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub after: Timestamp,
    pub to: Timestamp,
}

impl Progress {
    /// Of a schedule that begins now.
    pub(super) fn begin(now: Timestamp) -> Self {
        Self { since: now, seen: now, past: Vec::new() }
    }

    /// The clock leaps: what was run through so far is remembered.
    fn leap(&mut self, since: Timestamp, seen: Timestamp) {
        if self.since < self.seen {
            if self.past.len() >= PAST_MAX {
                self.past.remove(0);
            }
            self.past.push(Stretch { after: self.since, to: self.seen });
        }
        (self.since, self.seen) = (since, seen);
    }

    /// A clock that leaps ahead into or beyond times that were run through before is right again: goes on from there.
    fn resume(&mut self, now: Timestamp) {
        let beyond = |stretch: &Stretch| stretch.to > self.seen && stretch.after < now;
        let latest =
            self.past.iter().enumerate().filter(|(_, stretch)| beyond(stretch)).max_by_key(|(_, past)| past.to);
        if let Some((index, _)) = latest {
            let Stretch { after, to } = self.past.remove(index);
            self.leap(after, to);
        }
    }

    /// The stretch of the past in which this time was decided.
    fn decided(&self, time: Timestamp) -> Option<Stretch> {
        self.past.iter().copied().find(|stretch| stretch.after < time && time <= stretch.to)
    }
}

#[derive(Debug)]
pub(super) struct Planner {
    rules: Rules,
    progress: Progress,
    /// Times that got no request since the last tick.
    left_out: u64,
    /// Ticks that have begun and not ended.
    in_work: usize,
    waiting: VecDeque<Tick>,
}

impl Planner {
    /// Times that are decided are no business of this planner.
    pub(super) fn new(rules: Rules, progress: Progress) -> Self {
        Self { rules, progress, left_out: 0, in_work: 0, waiting: VecDeque::new() }
    }

    /// Decides about all times up to `now`, and returns the ticks that begin now.
    pub(super) fn look(&mut self, now: Timestamp) -> Vec<Tick> {
        let mut begin = Vec::new();
        if now.duration_since(self.progress.seen) > BACK {
            self.progress.resume(now);
        }
        if now < self.progress.seen {
            if self.progress.seen.duration_since(now) > BACK {
                self.progress.leap(now, now);
            }
            return begin;
        }
        if let Ok(late) = now.checked_sub(LATE)
            && self.progress.seen < late
        {
            self.catch_up(late, &mut begin);
        }
        while let Some(time) = self.next().filter(|time| *time <= now) {
            self.progress.seen = time;
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
        self.progress.seen = now;
        begin
    }

    /// A tick in work has ended: returns one that begins now.
    pub(super) fn ended(&mut self) -> Option<Tick> {
        self.in_work = self.in_work.saturating_sub(1);
        self.begin_waiting()
    }

    /// The first time that is not decided.
    pub(super) fn next(&self) -> Option<Timestamp> {
        let mut time = self.rules.times.after(self.progress.seen)?;
        while let Some(stretch) = self.progress.decided(time) {
            time = self.rules.times.after(stretch.to)?;
        }
        Some(time)
    }

    /// What has got its request, or gets none; ticks that wait are not among it.
    pub(super) fn settled(&self) -> Progress {
        let mut settled = self.progress.clone();
        if let Some(tick) = self.waiting.front() {
            settled.seen = tick.time.checked_sub(SECOND).unwrap_or(Timestamp::MIN).min(settled.seen);
            settled.since = settled.since.min(settled.seen);
        }
        settled
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
        while let Some(time) =
            up_to.and_then(|up_to| self.rules.times.up_to(up_to)).filter(|time| *time > self.progress.seen)
            && counted < MISSED_COUNTED_MAX
        {
            if let Some(stretch) = self.progress.decided(time) {
                up_to = Timestamp::from_second(stretch.after.as_second()).ok();
                continue;
            }
            counted += 1;
            if kept.len() < kept_max {
                kept.push_front(time);
            }
            up_to = time.checked_sub(SECOND).ok();
        }
        self.left_out = self.left_out.saturating_add(counted - kept.len() as u64);
        if late.duration_since(self.progress.seen) > BACK {
            // Times that were left out are not decided for a clock that is set back to before them.
            let since = kept.front().and_then(|first| first.checked_sub(SECOND).ok()).unwrap_or(late);
            self.progress.leap(since, late);
        } else {
            self.progress.seen = late;
        }
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
        Planner::new(Rules { times, overlap, queue_max: 1, catch_up, catch_up_max: 3 }, Progress::begin(at(0)))
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
        assert_eq!((queue.waiting(), queue.settled().seen), (1, at(2) - SECOND));
        check(queue.look(at(3)), &[]);
        check(queue.ended(), &[(2, 0)]);
        assert_eq!(queue.settled().seen, at(3));
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
        let mut planner = Planner::new(rules, Progress::begin(Timestamp::UNIX_EPOCH));
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

    /// Minutes that fire while the clock goes on from `from` to `to`, a look each half minute.
    fn run(planner: &mut Planner, from: i64, to: i64) -> Vec<i64> {
        let mut fired = Vec::new();
        for half in from * 2..=to * 2 {
            let now = at(0) + SignedDuration::from_secs(half * 30);
            fired.extend(planner.look(now).iter().map(|tick| tick.time.duration_since(at(0)).as_mins()));
            while planner.in_work > 0 {
                fired.extend(planner.ended().iter().map(|tick| tick.time.duration_since(at(0)).as_mins()));
            }
        }
        fired
    }

    #[test]
    fn a_clock_set_back_by_decades_and_forth_again_repeats_nothing() {
        const DECADES: i64 = 54 * 365 * 24 * 60;
        for catch_up in [CatchUp::None, CatchUp::Once, CatchUp::All] {
            for restarts in [false, true] {
                let mut planner = planner(Overlap::Allow, catch_up);
                let restarted = |planner: &mut Planner| {
                    if restarts {
                        *planner = Planner::new(planner.rules.clone(), planner.settled());
                    }
                };
                assert_eq!(run(&mut planner, 0, 20), (1..=20).collect::<Vec<_>>());
                restarted(&mut planner);
                // Where the clock is wrong, it has times of its own.
                assert_eq!(run(&mut planner, -DECADES, 5 - DECADES).len(), 5);
                restarted(&mut planner);
                // Right again, a little before the time that was reached, and then on.
                assert_eq!(run(&mut planner, 19, 23), [21, 22, 23], "{catch_up:?}");
                // The same once more, right again after half an hour.
                assert_eq!(run(&mut planner, 5 - DECADES, 7 - DECADES).len(), 2);
                restarted(&mut planner);
                let back = run(&mut planner, 53, 55);
                let expected: &[i64] = match catch_up {
                    CatchUp::None => &[53, 54, 55],
                    CatchUp::Once => &[52, 53, 54, 55],
                    CatchUp::All => &[50, 51, 52, 53, 54, 55],
                };
                assert_eq!(back, expected, "{catch_up:?}");
            }
        }
    }

    #[test]
    fn times_that_fired_while_the_clock_was_ahead_do_not_fire_again_when_they_come() {
        const DAYS: i64 = 3 * 24 * 60;
        let mut planner = planner(Overlap::Skip, CatchUp::None);
        assert_eq!(run(&mut planner, 0, 2), [1, 2]);
        assert_eq!(run(&mut planner, DAYS, DAYS + 2), [DAYS, DAYS + 1, DAYS + 2]);
        let fired = run(&mut planner, 3, DAYS + 4);
        let expected: Vec<_> = (4..DAYS).chain([DAYS + 3, DAYS + 4]).collect();
        assert_eq!(fired, expected);
    }

    #[test]
    fn what_is_remembered_of_the_past_is_bounded() {
        let mut planner = planner(Overlap::Skip, CatchUp::All);
        for jump in 1..200 {
            planner.look(at(jump * 7 * 24 * 60));
            planner.look(at(jump));
        }
        assert!(planner.settled().past.len() <= PAST_MAX);
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
