//! The configuration of an interface: `[interfaces.x]` with `protocol = "file"`.

use std::path::PathBuf;
use std::time::Duration;

use super::pattern::NamePattern;
use crate::DAY_MS;
use wasmcage_config::{ConfigError, Section};
use wasmcage_core::backoff::doubled;

/// The order in which files are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileOrder {
    Name,
    /// Files are handled by the time of their last change, the oldest first.
    Modified,
}

#[derive(Clone, Debug)]
pub(super) struct FileInterfaceConfig {
    pub(super) directory: PathBuf,
    pub(super) pattern: NamePattern,
    pub(super) order: FileOrder,
    pub(super) interval: Duration,
    /// A file that has not changed for this time counts as complete.
    pub(super) settle: Duration,
    /// True if the module gets the content, and not the name only.
    pub(super) content: bool,
    pub(super) bytes_max: u64,
    /// The directory for handled files; if none, they are removed.
    pub(super) done: Option<PathBuf>,
    /// The directory for files that are given up.
    pub(super) failed: PathBuf,
    pub(super) retry_first: Duration,
    pub(super) retry_longest: Duration,
    pub(super) attempts_max: u32,
    /// True if the next files are handled while one waits for its retry.
    pub(super) keep_going: bool,
}

impl FileInterfaceConfig {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        if !section.has("directory") {
            section.problem("directory", "required and not set; expected a path");
        }
        let directory = section.path("directory").unwrap_or_default();
        let orders = [("name", FileOrder::Name), ("modified", FileOrder::Modified)];
        let milliseconds = |key, default, min| section.milliseconds(key, Duration::from_millis(default), min..=DAY_MS);
        let pattern = "a pattern of names such as \"*.csv\"; `*` is any text, `?` any character";
        let config = Self {
            pattern: section.parsed("pattern", NamePattern::any(), pattern),
            order: section.choice("order", &orders, FileOrder::Name),
            interval: milliseconds("interval_ms", 1_000, 10),
            settle: milliseconds("settle_ms", 500, 0),
            content: section.flag("content", true),
            bytes_max: section.integer("max_bytes", 8 << 20, 1..=1 << 30),
            done: section.path("done"),
            failed: section.path("failed").unwrap_or_else(|| directory.join("failed")),
            retry_first: milliseconds("retry_ms", 1_000, 1),
            retry_longest: milliseconds("retry_max_ms", 60_000, 1),
            attempts_max: section.integer("max_attempts", 10, 1..=u64::from(u32::MAX)) as u32,
            keep_going: section.flag("keep_going", false),
            directory,
        };
        for (key, path) in [("done", config.done.as_ref()), ("failed", Some(&config.failed))] {
            if path == Some(&config.directory) {
                section.problem(key, "it is the directory that the files come from: they would be taken again");
            }
        }
        section.finish()?;
        Ok(config)
    }

    /// The pause before a retry, after so many failures of the same file.
    pub(super) fn retry_after(&self, failures: u32) -> Duration {
        doubled(self.retry_first, self.retry_longest, failures.max(1))
    }
}
