//! Local time for log lines. The time zone is looked up once a second by each thread, not for each line.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A local calendar day as the number YYYYMMDD.
pub(super) type Day = u32;

/// A moment in local time, in the parts that log lines need.
#[derive(Clone, Debug, Default)]
pub(super) struct LocalTime {
    pub day: Day,
    /// `HH:MM:SS`
    pub time: String,
    /// `YYYY-MM-DDTHH:MM:SS`
    pub date_time: String,
    /// `+HH:MM`
    pub offset: String,
    /// 0 to 99
    pub centis: u32,
}

impl LocalTime {
    fn new(second: i64, zone: TimeZone) -> Self {
        let local = Timestamp::from_second(second).unwrap_or_default().to_zoned(zone);
        Self {
            day: day_of(local.date()),
            time: local.strftime("%H:%M:%S").to_string(),
            date_time: local.strftime("%Y-%m-%dT%H:%M:%S").to_string(),
            offset: local.strftime("%:z").to_string(),
            centis: 0,
        }
    }

    /// A fixed moment for tests.
    #[cfg(test)]
    pub(super) fn fixed(second: i64, centis: u32) -> Self {
        Self { centis, ..Self::new(second, TimeZone::fixed(jiff::tz::offset(1))) }
    }
}

pub(super) fn day_of(date: jiff::civil::Date) -> Day {
    let parts = [i32::from(date.month()), i32::from(date.day())];
    parts.into_iter().fold(i32::from(date.year()), |number, part| number * 100 + part).unsigned_abs()
}

/// Passes the current time to `with`.
pub(super) fn now<T>(with: impl FnOnce(&LocalTime) -> T) -> T {
    thread_local! {
        static CACHED: RefCell<(i64, LocalTime)> = RefCell::default();
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let second = i64::try_from(since.as_secs()).unwrap_or_default();
    // It is taken out while in use: if formatting a field's value logs another event, it must not be borrowed.
    let (cached, mut stamp) = CACHED.take();
    if cached != second {
        stamp = LocalTime::new(second, TimeZone::system());
    }
    stamp.centis = since.subsec_millis() / 10;
    let result = with(&stamp);
    CACHED.set((second, stamp));
    result
}
