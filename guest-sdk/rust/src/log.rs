//! The cage's log, through [`error!`](crate::error!), [`warn!`](crate::warn!), [`info!`](crate::info!),
//! [`debug!`](crate::debug!) and [`trace!`](crate::trace!). A line below the present log level costs one call of the host; its
//! arguments are not evaluated.
//!
//! ```no_run
//! # let (taken, left) = (1, 2);
//! wasmcage_guest::info!("took {taken} orders, {left} left");
//! ```

use std::fmt;
use std::str::FromStr;

use crate::bindings::imports::wasmcage::cage::log;
use crate::error::{Error, Result};

pub use log::{Level, enabled};

/// Writes a line of any level.
#[macro_export]
macro_rules! log {
    ($level:expr, $($text:tt)+) => {{
        let level = $level;
        if $crate::log::enabled(level) {
            $crate::log::write(level, ::core::format_args!($($text)+));
        }
    }};
}

/// Writes a line of level error: an operator must act, or work was lost.
#[macro_export]
macro_rules! error {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Error, $($text)+) };
}

/// Writes a line of level warn: something unexpected that the module has recovered from.
#[macro_export]
macro_rules! warn {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Warn, $($text)+) };
}

/// Writes a line of level info: events in the life of a module.
#[macro_export]
macro_rules! info {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Info, $($text)+) };
}

/// Writes a line of level debug: what helps to find the cause of a failure.
#[macro_export]
macro_rules! debug {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Debug, $($text)+) };
}

/// Writes a line of level trace: everything else.
#[macro_export]
macro_rules! trace {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Trace, $($text)+) };
}

#[doc(hidden)]
#[inline(never)]
pub fn write(level: Level, text: fmt::Arguments<'_>) {
    match text.as_str() {
        Some(text) => log::log(level, text),
        None => log::log(level, &text.to_string()),
    }
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl FromStr for Level {
    type Err = Error;

    /// # Errors
    /// `BadArguments` when there is no level with this name.
    fn from_str(name: &str) -> Result<Self> {
        let levels = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];
        let level = levels.into_iter().find(|level| level.name() == name);
        level.ok_or_else(|| Error::bad_arguments(format_args!("there is no log level {name}")))
    }
}
