//! `wasmcage logs`: shows the end of a cage's log and follows it, across days.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use wasmcage_core::telemetry::{file_day, file_name};

use super::{CommandError, RootArg, check_cage, completion, directories, print};
use crate::supervisor::STOPPED;

/// Interval at which a log that is followed is read.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Show the end of a cage's log
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage logs hello
  wasmcage logs hello -n 100 -f")]
pub(super) struct LogsArgs {
    /// Name of the cage
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cage: String,
    /// Show new lines as they are written
    #[arg(short, long)]
    follow: bool,
    /// Number of lines to show first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    lines: usize,
    #[command(flatten)]
    root: RootArg,
}

impl LogsArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        check_cage(&self.root.root, &self.cage)?;
        let mut log = Log::new(&directories(&self.root.root).logs(&self.cage), &self.cage);
        let read_error = |error| CommandError::failed(format!("cannot read the log of cage {}", self.cage), error);
        let last = log.last(self.lines).map_err(read_error)?;
        if log.position.is_none() && !self.follow {
            return Err(CommandError::Refused(format!("cage {} has no log yet", self.cage)));
        }
        last.iter().try_for_each(print)?;
        if !self.follow {
            return Ok(STOPPED);
        }
        loop {
            log.added().map_err(read_error)?.iter().try_for_each(print)?;
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// A cage's log files, and how far they have been shown.
struct Log {
    directory: PathBuf,
    cage: String,
    /// None while there is no file.
    position: Option<Position>,
}

struct Position {
    day: u32,
    file: BufReader<File>,
    /// The beginning of a line that is not complete yet.
    partial: Vec<u8>,
}

impl Log {
    fn new(directory: &Path, cage: &str) -> Self {
        Self { directory: directory.to_owned(), cage: cage.to_owned(), position: None }
    }

    /// Returns the days that have a file, sorted.
    fn days(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let day = |entry: fs::DirEntry| file_day(&self.cage, entry.file_name().to_str()?);
        let mut days: Vec<_> = entries.filter_map(day).collect();
        days.sort_unstable();
        days
    }

    /// Returns the last `count` lines, from several files if needed. Leaves the position at the end.
    fn last(&mut self, count: usize) -> io::Result<VecDeque<String>> {
        let mut lines = VecDeque::new();
        for day in self.days().into_iter().rev() {
            let mut position = self.open(day)?;
            let mut of_day = position.lines(count - lines.len())?;
            if self.position.is_none() {
                self.position = Some(position);
            }
            of_day.append(&mut lines);
            lines = of_day;
            if lines.len() >= count {
                break;
            }
        }
        Ok(lines)
    }

    /// Returns the lines that were completed since the last call.
    fn added(&mut self) -> io::Result<VecDeque<String>> {
        // The days are listed before the current file is read: then no line of a new day is shown before one of the old
        // day.
        let days = self.days();
        let mut lines = match &mut self.position {
            Some(position) => position.lines(usize::MAX)?,
            None => VecDeque::new(),
        };
        let shown = self.position.as_ref().map_or(0, |position| position.day);
        for day in days.into_iter().filter(|day| *day > shown) {
            let mut position = self.open(day)?;
            lines.extend(position.lines(usize::MAX)?);
            self.position = Some(position);
        }
        Ok(lines)
    }

    fn open(&self, day: u32) -> io::Result<Position> {
        let file = File::open(self.directory.join(file_name(&self.cage, day)))?;
        Ok(Position { day, file: BufReader::new(file), partial: Vec::new() })
    }
}

impl Position {
    /// Reads to the end and returns the last `lines_max` complete lines; a log may be larger than memory.
    fn lines(&mut self, lines_max: usize) -> io::Result<VecDeque<String>> {
        let mut lines = VecDeque::new();
        loop {
            self.file.read_until(b'\n', &mut self.partial)?;
            if !self.partial.ends_with(b"\n") {
                return Ok(lines);
            }
            self.partial.pop();
            lines.push_back(String::from_utf8_lossy(&self.partial).into_owned());
            self.partial.clear();
            if lines.len() > lines_max {
                lines.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn lines_are_shown_across_midnight_and_only_when_complete() {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path();
        let append = |day: u32, text: &str| {
            let file = fs::OpenOptions::new().append(true).create(true).open(logs.join(file_name("c", day)));
            file.unwrap().write_all(text.as_bytes()).unwrap();
        };
        let mut log = Log::new(directory.path(), "c");
        assert!(log.last(3).unwrap().is_empty());
        append(20_261_119, "a\nb\nc\n");
        append(20_261_120, "d\ne\n");
        append(20_261_130, "");
        fs::remove_file(logs.join(file_name("c", 20_261_130))).unwrap();
        assert_eq!(log.last(3).unwrap(), ["c", "d", "e"]);
        append(20_261_120, "f\ng");
        assert_eq!(log.added().unwrap(), ["f"]);
        append(20_261_120, "g\n");
        append(20_261_121, "h\n");
        assert_eq!(log.added().unwrap(), ["gg", "h"]);
        assert!(log.added().unwrap().is_empty());
        let mut other = Log::new(directory.path(), "c");
        assert!(other.last(0).unwrap().is_empty());
        assert!(other.position.is_some());
    }
}
