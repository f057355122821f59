//! The configuration of an interface: `[interfaces.NAME]` with `protocol = "retry"`.

use std::str::FromStr;
use std::time::Duration;

use wasmcage_config::{ConfigError, Section};
use wasmcage_core::backoff::doubled;
use wasmcage_store::QueueRules;

const DAY: Duration = Duration::from_secs(24 * 3600);
const DAY_MS: u64 = DAY.as_secs() * 1000;

/// The configuration of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RetryConfig {
    /// The most calls that run at once.
    pub concurrency: usize,
    /// The pause before the second attempt; it doubles for each further one.
    pub interval: Duration,
    pub rules: QueueRules,
}

impl RetryConfig {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        let keep_order = section.flag("keep_order", false);
        let concurrency = section.integer("concurrency", if keep_order { 1 } else { 4 }, 1..=1_000) as usize;
        if keep_order && concurrency > 1 {
            section.problem("concurrency", "a queue with keep_order makes one call after the other: remove this key");
        }
        let interval = section.milliseconds("retry_interval_ms", Duration::from_secs(1), 1..=DAY_MS);
        let interval_max = section.milliseconds("retry_interval_max_ms", Duration::from_secs(120), 1..=DAY_MS);
        let retention =
            section.parsed("retention", TimeSpan(3 * DAY), "a time such as \"3d\", \"12h\", \"30m\" or \"90s\"");
        let rules = QueueRules {
            keep_order,
            interval_max: interval_max.max(interval),
            attempts_max: section.optional_integer("max_attempts", 1..=u32::MAX.into()).map(|attempts| attempts as u32),
            retention: retention.0,
            dead_letters: section.flag("dead_letter", true),
        };
        section.finish()?;
        Ok(Self { concurrency, interval, rules })
    }

    /// The pause after so many failed attempts. It doubles each time up to the longest, and varies by a fifth, so that
    /// calls that failed together are not all retried together.
    pub(super) fn pause(&self, attempts: u32) -> Duration {
        let longest = self.rules.interval_max;
        let jitter = 0.8 + 0.4 * fastrand::f64();
        doubled(self.interval, longest, attempts.max(1)).mul_f64(jitter).min(longest)
    }
}

/// A time such as `3d`, `12h`, `30m` or `90s`, from a second to ten years.
#[derive(Debug, PartialEq, Eq)]
struct TimeSpan(Duration);

impl FromStr for TimeSpan {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        const LONGEST: Duration = Duration::from_secs(3_650 * 24 * 3600);
        let units = [("d", DAY), ("h", Duration::from_secs(3600)), ("m", Duration::from_secs(60))];
        let units = units.into_iter().chain([("s", Duration::from_secs(1))]);
        let (number, unit) =
            units.filter_map(|(unit, length)| Some((text.strip_suffix(unit)?, length))).next().ok_or(())?;
        let number: u32 = number.parse().map_err(|_| ())?;
        let span = unit.checked_mul(number).filter(|span| !span.is_zero() && *span <= LONGEST);
        span.map(Self).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(interval_ms: u64, interval_max_ms: u64) -> RetryConfig {
        let rules = QueueRules {
            keep_order: false,
            interval_max: Duration::from_millis(interval_max_ms),
            attempts_max: None,
            retention: DAY,
            dead_letters: true,
        };
        RetryConfig { concurrency: 4, interval: Duration::from_millis(interval_ms), rules }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let check = |attempts: u32, from_ms: u64, to_ms: u64| {
            let pause = config(1_000, 120_000).pause(attempts);
            let range = Duration::from_millis(from_ms)..=Duration::from_millis(to_ms);
            assert!(range.contains(&pause), "{attempts}: {pause:?}");
        };
        check(0, 800, 1_200);
        check(1, 800, 1_200);
        check(2, 1_600, 2_400);
        check(4, 6_400, 9_600);
        check(8, 96_000, 120_000);
        check(u32::MAX, 96_000, 120_000);
    }

    #[test]
    fn time_spans_are_parsed() {
        let check = |text: &str, seconds: Option<u64>| {
            assert_eq!(
                text.parse::<TimeSpan>().ok(),
                seconds.map(|seconds| TimeSpan(Duration::from_secs(seconds))),
                "{text}"
            );
        };
        check("3d", Some(259_200));
        check("12h", Some(43_200));
        check("30m", Some(1_800));
        check("90s", Some(90));
        for wrong in ["", "d", "0s", "3", "3w", "-1d", "4000d", "4294967295d", "1.5h", "3 d"] {
            check(wrong, None);
        }
    }
}
