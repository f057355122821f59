//! The settings `pool` and `cache` of `[resources.x]`.

use std::time::Duration;

use wasmcage_config::Section;

/// One day.
const DAY_MS: u64 = 24 * 3600 * 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Most connections. An operation that finds none free waits until its deadline, the earliest deadline first.
    pub size: usize,
    /// Number of free connections that are kept ready.
    pub standby: usize,
    /// A connection that was unused for so long is closed.
    pub idle_timeout: Duration,
    /// A connection that is older is closed when it is free.
    pub age_max: Duration,
    /// With less time left until its deadline, an operation fails before it begins.
    pub time_min: Duration,
    /// Most time of one operation, or of one participant in a transaction.
    pub time_max: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Most bytes of cached replies.
    pub size: u64,
    pub ttl: Duration,
}

impl PoolSettings {
    /// Reads the settings. Mistakes are recorded in `section`, which is the resource's.
    pub fn read(section: &Section) -> Self {
        let table = section.table("pool");
        let pool = table.as_ref();
        let integer = |key, default, range| pool.map_or(default, |pool| pool.integer(key, default, range)) as usize;
        let milliseconds = |key, default: u64, range| {
            let default = Duration::from_millis(default);
            pool.map_or(default, |pool| pool.milliseconds(key, default, range))
        };
        let settings = Self {
            size: integer("size", 16, 1..=10_000),
            standby: integer("standby", 0, 0..=10_000),
            idle_timeout: milliseconds("idle_timeout_ms", 30_000, 1..=DAY_MS),
            age_max: milliseconds("max_age_ms", 300_000, 1..=DAY_MS),
            time_min: milliseconds("min_time_ms", 0, 0..=DAY_MS),
            time_max: pool.and_then(|pool| pool.optional_milliseconds("max_time_ms", 1..=DAY_MS)),
        };
        if let Some(pool) = pool.filter(|_| settings.standby > settings.size) {
            pool.problem("standby", format!("{} is more than size = {}", settings.standby, settings.size));
        }
        // Its mistakes are reported with those of the file.
        let _ = table.map(Section::finish);
        settings
    }
}

impl CacheSettings {
    /// Reads the settings; none: nothing is cached.
    pub fn read(section: &Section) -> Option<Self> {
        let cache = section.table("cache")?;
        let settings = Self {
            size: cache.integer("size_mb", 64, 1..=1 << 20) << 20,
            ttl: cache.milliseconds("ttl_ms", Duration::from_secs(60), 1..=DAY_MS),
        };
        // Its mistakes are reported with those of the file.
        let _ = cache.finish();
        Some(settings)
    }
}
