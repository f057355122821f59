//! The log: every `tracing` event of the process is written to the file of the cage it is about, and to the terminal. `main`
//! installs the subscriber, each cage opens its log, and all other code only emits events. Nothing here may block, fail or
//! panic because of a disk, a terminal or a field's value.
//!
//! Fields with a meaning: `cage` (selects the log), `interface` and `module` (the origin of the line), `request` (a formatted
//! text at the end of the line), `error` (with all its causes: a text made by [`error_chain`], or the error as `&dyn Error`).
//! Also in use: `elapsed_ms`, `.._bytes`, `address`, `file`. Events with target `guest` or `access` were filtered by the code
//! that emits them, which knows the request's own level, and are logged whatever the cage's level is.

mod cage_log;
mod clock;
mod day_budget;
mod line;
mod router;
mod terminal;
mod throttle;
mod writer;

use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

pub use self::cage_log::{CageLog, LogFormat, LogSettings, file_day, file_name, force_format};
pub use self::router::{flush, install};
pub use self::terminal::TerminalOptions;
pub use self::throttle::{KeyedThrottle, Throttle};

/// Level of a log line, the most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    Error = 1,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    pub const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|level| *level as u8 == value)
    }

    /// Name of the level in `cage.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// Name of the level in a log line.
    pub fn short(self) -> &'static str {
        match self {
            Self::Error => "ERR",
            Self::Warn => "WRN",
            Self::Info => "INF",
            Self::Debug => "DBG",
            Self::Trace => "TRC",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<tracing::Level> for Level {
    fn from(level: tracing::Level) -> Self {
        match level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no log level `{0}`: it is one of error, warn, info, debug, trace")]
pub struct UnknownLevel(String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|level| level.name() == text);
        known.ok_or_else(|| UnknownLevel(text.to_owned()))
    }
}

/// A level that can be changed while others read it.
#[derive(Debug)]
pub struct LevelCell(AtomicU8);

impl LevelCell {
    pub fn new(level: Level) -> Self {
        Self(AtomicU8::new(level as u8))
    }

    pub fn get(&self) -> Level {
        Level::from_u8(self.0.load(Ordering::Relaxed)).expect("only levels are stored")
    }

    pub fn set(&self, level: Level) {
        self.0.store(level as u8, Ordering::Relaxed);
    }
}

/// Formats a time by RFC 3339 in UTC, to the second.
pub fn utc(at: std::time::SystemTime) -> String {
    let seconds = at.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    jiff::Timestamp::from_second(seconds.cast_signed()).unwrap_or_default().to_string()
}

/// Formats an error and its causes, the outermost first, as `a: b: c`. A cause is left out if the text ends with it already,
/// as with some libraries' errors.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_and_written() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
            assert_eq!(Level::from_u8(level as u8), Some(level));
        }
        assert!("INFO".parse::<Level>().is_err_and(|error| error.to_string().contains("`INFO`")));
        assert_eq!(Level::from_u8(0), None);
        assert!(Level::Error < Level::Trace);
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct TestError {
        text: &'static str,
        source: Option<Box<TestError>>,
    }

    #[test]
    fn chains_name_each_cause_once() {
        let cause = |text, source| Some(Box::new(TestError { text, source }));
        let repeats = TestError { text: "cannot open: no disk", source: cause("no disk", None) };
        assert_eq!(error_chain(&repeats), "cannot open: no disk");
        let plain = TestError { text: "cannot start", source: cause("cannot open", cause("no disk", None)) };
        assert_eq!(error_chain(&plain), "cannot start: cannot open: no disk");
    }
}
