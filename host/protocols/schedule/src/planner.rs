//! Decides which times get a request, and when. It is pure: the interface passes in the time and the ends of requests,
//! and makes the requests.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use super::times::ScheduleTimes;

/// A time that is noticed within this is on time. If it is later, the cage did not run, or its clock was set forward.
const ON_TIME: SignedDuration = SignedDuration::from_secs(10);
/// If a clock is set back by less than this, it passes the same times again, and they are not repeated. If it is set
/// back by more, it was wrong before, and the schedule goes on from the new time, except for times that have had their
/// requests.
const CLOCK_JUMP: SignedDuration = SignedDuration::from_hours(24);
const SECOND: SignedDuration = SignedDuration::from_secs(1);
/// The most times of a downtime that are counted.
const MISSED_COUNTED_MAX: u64 = 10_000;

/// The configuration of a schedule.
#[derive(Clone, Debug)]
pub(super) struct ScheduleRules {
    pub times: ScheduleTimes,
    pub overlap: Overlap,
    pub queue_max: usize,
    pub catch_up: CatchUp,
    pub catch_up_max: usize,
}

/// The rule for a time that comes while the request of an earlier one is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overlap {
    Allow,
    Skip,
    Queue,
}

/// The rule for the times that passed while the cage did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CatchUp {
    None,
    /// The last of them gets a request.
    Once,
    /// The last `catch_up_max` of them get requests.
    All,
}

/// A request that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tick {
    pub time: Timestamp,
    /// How many times before this one got no request.
    pub missed: u64,
}

/// The most ranges that are remembered from before the clock jumped; the oldest is dropped for a further one.
const PAST_MAX: usize = 32;

/// Which times of a schedule are decided. A decided time is never decided again, even if the clock jumps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// The time from which the clock has advanced without a jump.
    pub since: Timestamp,
    /// All times from `since` up to this one are decided.
    pub decided_to: Timestamp,
    /// Ranges from before the clock jumped, in the order in which it passed them: their times are decided, too.
    pub past: Vec<TimeRange>,
}

/// Times after `after`, up to and including `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeRange {
    pub after: Timestamp,
    pub to: Timestamp,
}

impl Progress {
    /// The progress of a schedule that begins now.
    pub(super) fn begin(now: Timestamp) -> Self {
        Self { since: now, decided_to: now, past: Vec::new() }
    }

    /// Records a jump of the clock: the range up to now is remembered.
    fn jump(&mut self, since: Timestamp, decided_to: Timestamp) {
        if self.since < self.decided_to {
            if self.past.len() >= PAST_MAX {
                self.past.remove(0);
            }
            self.past.push(TimeRange { after: self.since, to: self.decided_to });
        }
        (self.since, self.decided_to) = (since, decided_to);
    }

    /// Continues the latest range that the clock jumps into or beyond, since it is right again then.
    fn resume(&mut self, now: Timestamp) {
        let beyond = |range: &TimeRange| range.to > self.decided_to && range.after < now;
        let latest = self.past.iter().enumerate().filter(|(_, range)| beyond(range)).max_by_key(|(_, past)| past.to);
        if let Some((index, _)) = latest {
            let TimeRange { after, to } = self.past.remove(index);
            self.jump(after, to);
        }
    }

    /// The past range in which this time was decided.
    fn range_of(&self, time: Timestamp) -> Option<TimeRange> {
        self.past.iter().copied().find(|range| range.after < time && time <= range.to)
    }
}

/// Decides about times, one after the other.
#[derive(Debug)]
pub(super) struct Planner {
    rules: ScheduleRules,
    progress: Progress,
    /// How many times got no request since the last tick.
    missed: u64,
    /// How many ticks have begun and not ended.
    in_flight: usize,
    waiting: VecDeque<Tick>,
}

impl Planner {
    /// Continues from `progress`: times that are decided there get no request.
    pub(super) fn new(rules: ScheduleRules, progress: Progress) -> Self {
        Self { rules, progress, missed: 0, in_flight: 0, waiting: VecDeque::new() }
    }

    /// Decides about all times up to `now`, and returns the ticks that begin now.
    pub(super) fn decide(&mut self, now: Timestamp) -> Vec<Tick> {
        let mut begin = Vec::new();
        if now.duration_since(self.progress.decided_to) > CLOCK_JUMP {
            self.progress.resume(now);
        }
        if now < self.progress.decided_to {
            if self.progress.decided_to.duration_since(now) > CLOCK_JUMP {
                self.progress.jump(now, now);
            }
            return begin;
        }
        if let Ok(late) = now.checked_sub(ON_TIME)
            && self.progress.decided_to < late
        {
            self.catch_up(late, &mut begin);
        }
        while let Some(time) = self.next().filter(|time| *time <= now) {
            self.progress.decided_to = time;
            if self.rules.overlap == Overlap::Allow || (self.in_flight == 0 && self.waiting.is_empty()) {
                begin.push(self.tick(time));
                self.in_flight += 1;
            } else if self.rules.overlap == Overlap::Queue && self.waiting.len() < self.rules.queue_max {
                let tick = self.tick(time);
                self.waiting.push_back(tick);
            } else {
                self.missed = self.missed.saturating_add(1);
            }
        }
        self.progress.decided_to = now;
        begin
    }

    /// Records that a tick has ended, and returns one that begins now.
    pub(super) fn tick_ended(&mut self) -> Option<Tick> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.begin_waiting()
    }

    /// The first time that is not decided.
    pub(super) fn next(&self) -> Option<Timestamp> {
        let mut time = self.rules.times.after(self.progress.decided_to)?;
        while let Some(range) = self.progress.range_of(time) {
            time = self.rules.times.after(range.to)?;
        }
        Some(time)
    }

    /// The progress to store: the times that have got their request or get none. Waiting ticks are not part of it.
    pub(super) fn settled(&self) -> Progress {
        let mut settled = self.progress.clone();
        if let Some(tick) = self.waiting.front() {
            settled.decided_to = tick.time.checked_sub(SECOND).unwrap_or(Timestamp::MIN).min(settled.decided_to);
            settled.since = settled.since.min(settled.decided_to);
        }
        settled
    }

    /// How many ticks wait for the end of an earlier one.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Decides about the times up to `late`. Unless ticks may overlap, the caught-up ones begin one after the other.
    fn catch_up(&mut self, late: Timestamp, begin: &mut Vec<Tick>) {
        let kept_max = match self.rules.catch_up {
            CatchUp::None => 0,
            CatchUp::Once => 1,
            CatchUp::All => self.rules.catch_up_max,
        };
        let whole = Timestamp::from_second(late.as_second()).unwrap_or(late);
        let (mut kept, mut counted, mut up_to) = (VecDeque::new(), 0, Some(whole));
        while let Some(time) =
            up_to.and_then(|up_to| self.rules.times.up_to(up_to)).filter(|time| *time > self.progress.decided_to)
            && counted < MISSED_COUNTED_MAX
        {
            if let Some(range) = self.progress.range_of(time) {
                up_to = Timestamp::from_second(range.after.as_second()).ok();
                continue;
            }
            counted += 1;
            if kept.len() < kept_max {
                kept.push_front(time);
            }
            up_to = time.checked_sub(SECOND).ok();
        }
        self.missed = self.missed.saturating_add(counted - kept.len() as u64);
        if late.duration_since(self.progress.decided_to) > CLOCK_JUMP {
            // Missed times do not count as decided, in case the clock is set back to before them.
            let since = kept.front().and_then(|first| first.checked_sub(SECOND).ok()).unwrap_or(late);
            self.progress.jump(since, late);
        } else {
            self.progress.decided_to = late;
        }
        for time in kept {
            let tick = self.tick(time);
            match self.rules.overlap {
                Overlap::Allow => {
                    begin.push(tick);
                    self.in_flight += 1;
                }
                Overlap::Skip | Overlap::Queue => self.waiting.push_back(tick),
            }
        }
        // A clock may be set forward again and again; no more ticks wait than for one downtime.
        while self.waiting.len() > self.rules.catch_up_max.max(self.rules.queue_max) {
            self.waiting.pop_front();
            self.missed = self.missed.saturating_add(1);
        }
        begin.extend(self.begin_waiting());
    }

    fn begin_waiting(&mut self) -> Option<Tick> {
        if self.in_flight > 0 {
            return None;
        }
        let tick = self.waiting.pop_front()?;
        self.in_flight = 1;
        Some(tick)
    }

    fn tick(&mut self, time: Timestamp) -> Tick {
        Tick { time, missed: std::mem::take(&mut self.missed) }
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::super::times::TimePattern;
    use super::*;

    /// The time at this minute of a day.
    fn at(minute: i64) -> Timestamp {
        "2026-11-21T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_mins(minute)
    }

    /// A planner for every minute.
    fn planner(overlap: Overlap, catch_up: CatchUp) -> Planner {
        let times = ScheduleTimes { pattern: TimePattern::Every(60), zone: TimeZone::UTC, source: String::new() };
        Planner::new(ScheduleRules { times, overlap, queue_max: 1, catch_up, catch_up_max: 3 }, Progress::begin(at(0)))
    }

    #[track_caller]
    fn check(ticks: impl IntoIterator<Item = Tick>, expected: &[(i64, u64)]) {
        let expected: Vec<_> =
            expected.iter().map(|(minute, missed)| Tick { time: at(*minute), missed: *missed }).collect();
        assert_eq!(ticks.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_time_fires_once_however_often_it_is_polled() {
        let mut planner = planner(Overlap::Allow, CatchUp::None);
        check(planner.decide(at(0)), &[]);
        assert_eq!(planner.next(), Some(at(1)));
        check(planner.decide(at(1) - SignedDuration::from_nanos(1)), &[]);
        check(planner.decide(at(1)), &[(1, 0)]);
        check(planner.decide(at(1)), &[]);
        check(planner.decide(at(1) + SignedDuration::from_millis(1)), &[]);
        assert_eq!(planner.next(), Some(at(2)));
        // Noticed late, but on time.
        check(planner.decide(at(2) + SignedDuration::from_secs(9)), &[(2, 0)]);
    }

    #[test]
    fn ticks_overlap_are_missed_or_wait() {
        let mut allow = planner(Overlap::Allow, CatchUp::None);
        check(allow.decide(at(1)), &[(1, 0)]);
        check(allow.decide(at(2)), &[(2, 0)]);

        let mut skip = planner(Overlap::Skip, CatchUp::None);
        check(skip.decide(at(1)), &[(1, 0)]);
        check(skip.decide(at(2)), &[]);
        check(skip.decide(at(3)), &[]);
        check(skip.tick_ended(), &[]);
        check(skip.decide(at(4)), &[(4, 2)]);

        let mut queue = planner(Overlap::Queue, CatchUp::None);
        check(queue.decide(at(1)), &[(1, 0)]);
        check(queue.decide(at(2)), &[]);
        assert_eq!((queue.waiting(), queue.settled().decided_to), (1, at(2) - SECOND));
        check(queue.decide(at(3)), &[]);
        check(queue.tick_ended(), &[(2, 0)]);
        assert_eq!(queue.settled().decided_to, at(3));
        check(queue.decide(at(4)), &[]);
        check(queue.tick_ended(), &[(4, 1)]);
        check(queue.tick_ended(), &[]);
    }

    #[test]
    fn a_downtime_is_caught_up_not_at_all_or_once_or_up_to_a_limit() {
        for overlap in [Overlap::Allow, Overlap::Skip, Overlap::Queue] {
            let mut none = planner(overlap, CatchUp::None);
            check(none.decide(at(10) + ON_TIME + SECOND), &[]);
            check(none.decide(at(11)), &[(11, 10)]);
            let mut once = planner(overlap, CatchUp::Once);
            check(once.decide(at(10) + ON_TIME + SECOND), &[(10, 9)]);
            // Recent times are on time.
            let mut just = planner(Overlap::Allow, CatchUp::Once);
            check(just.decide(at(10)), &[(9, 8), (10, 0)]);
        }
        let mut all = planner(Overlap::Allow, CatchUp::All);
        check(all.decide(at(5) + ON_TIME + SECOND), &[(3, 2), (4, 0), (5, 0)]);
        let mut all = planner(Overlap::Skip, CatchUp::All);
        check(all.decide(at(5) + ON_TIME + SECOND), &[(3, 2)]);
        // Times that come meanwhile are skipped as usual, the caught-up ones are not.
        check(all.decide(at(6)), &[]);
        check(all.tick_ended(), &[(4, 0)]);
        check(all.tick_ended(), &[(5, 0)]);
        check(all.tick_ended(), &[]);
        check(all.decide(at(7)), &[(7, 1)]);
    }

    #[test]
    fn a_long_downtime_costs_no_more_than_a_short_one() {
        let times = ScheduleTimes { pattern: TimePattern::Every(1), zone: TimeZone::UTC, source: String::new() };
        let rules =
            ScheduleRules { times, overlap: Overlap::Allow, queue_max: 1, catch_up: CatchUp::Once, catch_up_max: 1 };
        let mut planner = Planner::new(rules, Progress::begin(Timestamp::UNIX_EPOCH));
        let ticks = planner.decide(at(0));
        assert_eq!(ticks.first().unwrap().missed, MISSED_COUNTED_MAX - 1);
        assert_eq!(ticks.len(), 11);
    }

    #[test]
    fn a_clock_set_back_repeats_nothing() {
        let mut planner = planner(Overlap::Allow, CatchUp::All);
        check(planner.decide(at(60)), &[(57, 56), (58, 0), (59, 0), (60, 0)]);
        // The clock is set back by an hour, and advances minute by minute.
        for minute in 0..=60 {
            check(planner.decide(at(minute)), &[]);
            assert_eq!(planner.next(), Some(at(61)));
        }
        check(planner.decide(at(61)), &[(61, 0)]);
    }

    #[test]
    fn a_clock_that_was_days_ahead_does_not_stop_the_schedule() {
        let mut planner = planner(Overlap::Allow, CatchUp::None);
        check(planner.decide(at(3 * 24 * 60)), &[(3 * 24 * 60, 3 * 24 * 60 - 1)]);
        check(planner.decide(at(1)), &[]);
        check(planner.decide(at(2)), &[(2, 0)]);
    }

    /// The minutes that fire while the clock advances from `from` to `to`, polled each half minute.
    fn run(planner: &mut Planner, from: i64, to: i64) -> Vec<i64> {
        let mut fired = Vec::new();
        for half in from * 2..=to * 2 {
            let now = at(0) + SignedDuration::from_secs(half * 30);
            fired.extend(planner.decide(now).iter().map(|tick| tick.time.duration_since(at(0)).as_mins()));
            while planner.in_flight > 0 {
                fired.extend(planner.tick_ended().iter().map(|tick| tick.time.duration_since(at(0)).as_mins()));
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
                // While the clock is wrong, its times fire.
                assert_eq!(run(&mut planner, -DECADES, 5 - DECADES).len(), 5);
                restarted(&mut planner);
                // The clock is right again, a little before the time that was reached, and advances.
                assert_eq!(run(&mut planner, 19, 23), [21, 22, 23], "{catch_up:?}");
                // It happens again, and the clock is right after half an hour.
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
    fn the_remembered_ranges_are_limited() {
        let mut planner = planner(Overlap::Skip, CatchUp::All);
        for jump in 1..200 {
            planner.decide(at(jump * 7 * 24 * 60));
            planner.decide(at(jump));
        }
        assert!(planner.settled().past.len() <= PAST_MAX);
    }

    #[test]
    fn the_waiting_ticks_are_limited_however_often_the_clock_jumps() {
        let mut planner = planner(Overlap::Queue, CatchUp::All);
        for jump in 1..10 {
            planner.decide(at(jump * 10));
            assert!(planner.waiting() <= 4, "{}", planner.waiting());
        }
    }
}
