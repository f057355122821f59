//! The times of a schedule: those of a cron expression in a time zone, or every so many seconds.

use std::fmt;

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;

#[derive(Clone, Debug)]
pub(super) struct ScheduleTimes {
    pub pattern: TimePattern,
    pub zone: TimeZone,
    /// The configured text, by which a changed schedule is recognized.
    pub source: String,
}

#[derive(Clone, Debug)]
pub(super) enum TimePattern {
    Cron(Box<Cron>),
    /// An interval in seconds, at least 1. The times are its multiples since 1970 in UTC, so that a restart does not
    /// shift them.
    Every(i64),
}

impl ScheduleTimes {
    /// The first time after `time`; none if there is none before the year 5000.
    pub(super) fn after(&self, time: Timestamp) -> Option<Timestamp> {
        match &self.pattern {
            TimePattern::Cron(cron) => {
                let next = cron.find_next_occurrence(&time.to_zoned(self.zone.clone()), false).ok()?;
                Some(next.timestamp())
            }
            TimePattern::Every(seconds) => multiple(time.as_second().div_euclid(*seconds).checked_add(1)?, *seconds),
        }
    }

    /// The last time up to `time`, which has to be a whole second.
    pub(super) fn up_to(&self, time: Timestamp) -> Option<Timestamp> {
        match &self.pattern {
            TimePattern::Cron(cron) => {
                let last = cron.find_previous_occurrence(&time.to_zoned(self.zone.clone()), true).ok()?;
                Some(last.timestamp())
            }
            TimePattern::Every(seconds) => multiple(time.as_second().div_euclid(*seconds), *seconds),
        }
    }

    /// The time by RFC 3339 in the schedule's zone, such as `2026-11-22T03:00:00+01:00`.
    pub(super) fn display(&self, time: Timestamp) -> impl fmt::Display {
        time.to_zoned(self.zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    }
}

fn multiple(count: i64, seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(count.checked_mul(seconds)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Berlin's time zone by its rule, so that the test needs no time zone database.
    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn times(cron: &str) -> ScheduleTimes {
        ScheduleTimes {
            pattern: TimePattern::Cron(Box::new(cron.parse().unwrap())),
            zone: berlin(),
            source: String::new(),
        }
    }

    #[track_caller]
    fn check(times: &ScheduleTimes, from: &str, expected: &[&str]) {
        let mut time: Timestamp = from.parse().unwrap();
        for expected in expected {
            time = times.after(time).unwrap();
            assert_eq!(times.display(time).to_string(), *expected);
        }
    }

    #[test]
    fn expressions_have_seconds_and_nicknames() {
        check(
            &times("*/20 0 3 * * MON"),
            "2026-11-21T12:00:00Z",
            &[
                "2026-11-23T03:00:00+01:00",
                "2026-11-23T03:00:20+01:00",
                "2026-11-23T03:00:40+01:00",
                "2026-11-30T03:00:00+01:00",
            ],
        );
        check(&times("@daily"), "2026-11-21T23:00:00Z", &["2026-11-23T00:00:00+01:00"]);
        check(&times("30 2 * * *"), "2026-11-21T01:29:59.999Z", &["2026-11-21T02:30:00+01:00"]);
    }

    #[test]
    fn the_hour_that_summer_time_leaves_out_moves_fixed_times_to_its_end() {
        check(
            &times("30 2 * * *"),
            "2026-03-28T12:00:00Z",
            &["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
        );
        check(
            &times("0 */30 * * * *"),
            "2026-03-29T00:00:00Z",
            &["2026-03-29T01:30:00+01:00", "2026-03-29T03:00:00+02:00"],
        );
    }

    #[test]
    fn the_hour_that_comes_twice_has_fixed_times_once_and_intervals_twice() {
        check(
            &times("30 2 * * *"),
            "2026-10-24T12:00:00Z",
            &["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        );
        check(
            &times("0 */30 * * * *"),
            "2026-10-24T23:30:00Z",
            &[
                "2026-10-25T02:00:00+02:00",
                "2026-10-25T02:30:00+02:00",
                "2026-10-25T02:00:00+01:00",
                "2026-10-25T02:30:00+01:00",
                "2026-10-25T03:00:00+01:00",
            ],
        );
    }

    #[test]
    fn intervals_are_counted_from_1970() {
        let every = ScheduleTimes { pattern: TimePattern::Every(900), zone: TimeZone::UTC, source: String::new() };
        check(&every, "2026-11-21T12:00:00.5Z", &["2026-11-21T12:15:00+00:00", "2026-11-21T12:30:00+00:00"]);
        check(&every, "1969-12-31T23:50:00Z", &["1970-01-01T00:00:00+00:00"]);
        assert_eq!(every.after(Timestamp::MAX), None);
    }

    /// After a downtime times are counted backwards, which must give the same ones.
    #[test]
    fn backwards_are_the_same_times_as_forwards() {
        let every = ScheduleTimes { pattern: TimePattern::Every(7_000), zone: TimeZone::UTC, source: String::new() };
        let crons =
            ["30 2 * * *", "0 */30 * * * *", "*/7 2 * * *", "0 0 L * *", "15 2,3 * * 0", "@hourly", "0 0 3 * * *"];
        for times in crons.map(times).into_iter().chain([every]) {
            let (from, to): (Timestamp, Timestamp) =
                ("2026-03-20T00:00:00Z".parse().unwrap(), "2026-11-05T00:00:00Z".parse().unwrap());
            let within = |time: &Timestamp| (from..to).contains(time);
            let forwards: Vec<_> =
                std::iter::successors(times.after(from), |time| times.after(*time)).take_while(within).collect();
            let before = |time: Timestamp| times.up_to(time - jiff::SignedDuration::from_secs(1));
            let mut backwards: Vec<_> =
                std::iter::successors(before(to), |time| before(*time)).take_while(|time| *time > from).collect();
            backwards.reverse();
            assert!(!forwards.is_empty());
            assert_eq!(forwards, backwards, "{:?}", times.pattern);
        }
    }
}
