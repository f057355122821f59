//! The configuration of an interface: `[interfaces.NAME]` with `protocol = "schedule"`.

use croner::parser::CronParser;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::planner::{CatchUp, Overlap, ScheduleRules};
use super::times::{ScheduleTimes, TimePattern};
use wasmcage_config::{ConfigError, Section};

const FIELDS: &str = "expected [second] minute hour day-of-month month day-of-week [year], or @hourly, @daily, @weekly, \
                      @monthly, @yearly";
const DURATION: &str = "a duration of whole seconds from 1 second to 366 days, such as \"15m\" or \"1h 30m\"";
const EVERY_SECONDS_MAX: i64 = 366 * 24 * 3600;

/// Reads the rules of a schedule.
///
/// # Errors
/// All mistakes of the section.
pub(super) fn read(section: Section) -> Result<ScheduleRules, ConfigError> {
    let zone = section.optional_string("time_zone").map(|name| {
        TimeZone::get(&name).unwrap_or_else(|error| {
            section.problem("time_zone", format!("{error}; expected a name such as \"Europe/Berlin\" or \"UTC\""));
            TimeZone::UTC
        })
    });
    let zone = zone.unwrap_or_else(TimeZone::system);
    let (cron, every) = (section.optional_string("cron"), section.optional_string("every"));
    let pattern = match (&cron, &every) {
        (Some(cron), None) => parse_cron(&section, cron),
        (None, Some(every)) => parse_every(&section, every),
        (Some(_), Some(_)) => {
            section.problem("every", "a schedule has either `cron` or `every`");
            None
        }
        // A value of another type has been reported already.
        (None, None) => {
            if !section.has("cron") && !section.has("every") {
                section.problem("cron", "required and not set, like `every`; a schedule has one of the two");
            }
            None
        }
    };
    let source = format!("{} {}", cron.or(every).unwrap_or_default(), zone.iana_name().unwrap_or_default());
    let times = ScheduleTimes { pattern: pattern.unwrap_or(TimePattern::Every(EVERY_SECONDS_MAX)), zone, source };
    if times.after(Timestamp::now()).is_none() {
        section.problem("cron", "it names no time that is still to come");
    }
    let overlaps = [("allow", Overlap::Allow), ("skip", Overlap::Skip), ("queue", Overlap::Queue)];
    let catch_ups = [("none", CatchUp::None), ("once", CatchUp::Once), ("all", CatchUp::All)];
    let rules = ScheduleRules {
        times,
        overlap: section.choice("overlap", &overlaps, Overlap::Skip),
        queue_max: section.integer("queue_max", 1, 1..=1_000) as usize,
        catch_up: section.choice("catch_up", &catch_ups, CatchUp::None),
        catch_up_max: section.integer("catch_up_max", 100, 1..=1_000) as usize,
    };
    section.finish()?;
    Ok(rules)
}

fn parse_cron(section: &Section, cron: &str) -> Option<TimePattern> {
    match CronParser::new().parse(cron) {
        Ok(cron) => Some(TimePattern::Cron(Box::new(cron))),
        Err(error) => {
            section.problem("cron", format!("{cron:?} is no cron expression: {error}; {FIELDS}"));
            None
        }
    }
}

fn parse_every(section: &Section, every: &str) -> Option<TimePattern> {
    let seconds = every.parse::<SignedDuration>().ok().filter(|every| every.subsec_nanos() == 0);
    let seconds = seconds.map(|every| every.as_secs()).filter(|seconds| (1..=EVERY_SECONDS_MAX).contains(seconds));
    if seconds.is_none() {
        section.problem("every", format!("expected {DURATION}, got {every:?}"));
    }
    seconds.map(TimePattern::Every)
}
