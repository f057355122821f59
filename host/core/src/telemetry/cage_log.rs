//! A cage's log on disk: `logs/<cage>-YYYYMMDD.log`, with a new file on each local day; old files are removed. Both processes
//! of a cage append whole lines. While the disk is full or the directory is gone, lines are lost and counted; the number is
//! logged once writing works again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use super::clock::{self, Day};
use super::day_budget::{BudgetDecision, DayBudget, is_reported};
use super::line::LineParts;
use super::terminal::write_stderr;
use super::writer::{Batch, LineOutput, LogWriter};
use super::{Level, LevelCell, error_chain, router};
use crate::file_identity::FileIdentity;
use crate::private;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum LogFormat {
    /// `HH:MM:SS.ZZ LVL [origin] text key=value .. # request`
    #[default]
    Text = 1,
    /// One object per line.
    Json,
}

impl LogFormat {
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no log format `{0}`: it is text or json")]
pub struct UnknownFormat(String);

impl FromStr for LogFormat {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = [Self::Text, Self::Json].into_iter().find(|format| format.name() == text);
        known.ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub level: Level,
    pub format: LogFormat,
    /// Files older than so many days are removed; none: no file is removed.
    pub retention_days: Option<u32>,
    /// Most bytes that are written on one day.
    pub day_bytes: u64,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { level: Level::Info, format: LogFormat::Text, retention_days: None, day_bytes: 1 << 30 }
    }
}

/// The format given on the command line, which overrides that of every cage; 0: none was given.
static FORCED_FORMAT: AtomicU8 = AtomicU8::new(0);

/// Sets the format of all logs, whatever their settings say.
pub fn force_format(format: LogFormat) {
    FORCED_FORMAT.store(format as u8, Ordering::Relaxed);
}

/// What the router knows of an open log.
pub(super) struct Sink {
    pub cage: String,
    pub level: LevelCell,
    pub writer: LogWriter,
    settings: Arc<LiveSettings>,
}

impl Sink {
    pub(super) fn format(&self) -> LogFormat {
        self.settings.format()
    }

    /// Queues a line for writing, unless the day's log is full. Then the line is counted, and the count is logged now and then.
    pub(super) fn push(&self, day: Day, line: &str, urgent: bool, guest: bool) {
        match self.settings.budget.take(day, line.len(), guest) {
            BudgetDecision::Write => {}
            BudgetDecision::WriteAfterDrops(dropped) => {
                self.report(day, "log lines were dropped, the log of that day was full", dropped)
            }
            BudgetDecision::Drop(dropped) => {
                if is_reported(dropped) {
                    self.report(day, "log lines were dropped, the day's log is full: see log_day_mb", dropped);
                }
                return;
            }
        }
        self.writer.push(day, line, urgent);
    }

    fn report(&self, day: Day, message: &str, lines: u64) {
        self.writer.push(day, &notice(&self.cage, message, self.format(), lines), true);
    }
}

/// Settings that the writing thread reads.
struct LiveSettings {
    format: AtomicU8,
    retention_days: Mutex<Option<u32>>,
    budget: DayBudget,
}

impl LiveSettings {
    fn format(&self) -> LogFormat {
        let forced = FORCED_FORMAT.load(Ordering::Relaxed);
        let json = if forced == 0 { self.format.load(Ordering::Relaxed) } else { forced } == LogFormat::Json as u8;
        if json { LogFormat::Json } else { LogFormat::Text }
    }
}

/// An open log. Dropping it writes the pending lines; later events of the cage go to no file.
pub struct CageLog {
    sink: Arc<Sink>,
}

impl CageLog {
    /// Opens a log. This never fails: a log that cannot be written reports that on standard error, once, and keeps trying.
    pub fn open(cage: &str, directory: &Path, settings: LogSettings) -> Self {
        let shared = Arc::new(LiveSettings {
            format: AtomicU8::new(settings.format as u8),
            retention_days: Mutex::new(settings.retention_days),
            budget: DayBudget::new(settings.day_bytes),
        });
        let output = LogFiles::new(cage, directory.to_owned(), shared.clone());
        let sink = Arc::new(Sink {
            cage: cage.to_owned(),
            level: LevelCell::new(settings.level),
            writer: LogWriter::start(cage, output),
            settings: shared,
        });
        router::register(sink.clone());
        Self { sink }
    }

    /// Changes the settings, from the next line on.
    pub fn set(&self, settings: LogSettings) {
        self.sink.level.set(settings.level);
        self.sink.settings.format.store(settings.format as u8, Ordering::Relaxed);
        *self.sink.settings.retention_days.lock() = settings.retention_days;
        self.sink.settings.budget.set_max(settings.day_bytes);
        router::levels_changed();
        self.sink.writer.settings_changed();
    }

    /// Waits, up to a timeout, until every line so far is in the file or counted as lost.
    pub fn flush(&self) {
        self.sink.writer.flush();
    }
}

impl Drop for CageLog {
    fn drop(&mut self) {
        router::unregister(&self.sink);
        // A thread that is logging now may hold the sink a little longer; its line is not waited for.
        self.sink.writer.flush();
    }
}

/// Name of the cage's log file of a day, which is given as YYYYMMDD.
pub fn file_name(cage: &str, day: u32) -> String {
    format!("{cage}-{day:08}.log")
}

/// Returns the day of a log file of this cage, as YYYYMMDD; none for any other file.
pub fn file_day(cage: &str, file_name: &str) -> Option<u32> {
    let day = file_name.strip_prefix(cage)?.strip_prefix('-')?.strip_suffix(".log")?;
    (day.len() == 8 && day.bytes().all(|byte| byte.is_ascii_digit())).then(|| day.parse().ok())?
}

/// Writes a cage's lines into the file of their day.
struct LogFiles {
    cage: String,
    directory: PathBuf,
    settings: Arc<LiveSettings>,
    current: Option<(Day, File)>,
    /// The file ends in the middle of a line, because a write was cut short.
    torn: bool,
    /// Lines that were lost since the file could be written last.
    lost: u64,
}

impl LogFiles {
    fn new(cage: &str, directory: PathBuf, settings: Arc<LiveSettings>) -> Self {
        Self { cage: cage.to_owned(), directory, settings, current: None, torn: false, lost: 0 }
    }

    fn append(&mut self, batch: &Batch) {
        let mut written = 0;
        if let Err(error) = self.try_append(batch, &mut written) {
            let lines = count_lines(&batch.bytes[written..]);
            if self.lost == 0 {
                let file = self.directory.join(file_name(&self.cage, batch.day));
                write_stderr(format_args!(
                    "cannot write {}, log lines are lost: {}",
                    file.display(),
                    error_chain(&error)
                ));
            }
            self.lost += lines.max(1);
        }
    }

    fn try_append(&mut self, batch: &Batch, written: &mut usize) -> io::Result<()> {
        self.open(batch.day)?;
        let (_, file) = self.current.as_mut().expect("it was just opened");
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        if self.lost > 0 {
            file.write_all(notice(&self.cage, "log lines were lost", self.settings.format(), self.lost).as_bytes())?;
            self.lost = 0;
        }
        while *written < batch.bytes.len() {
            match file.write(&batch.bytes[*written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => *written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.torn = *written > 0 && batch.bytes[*written - 1] != b'\n';
                    return Err(error);
                }
            }
        }
        if batch.urgent {
            // The line is in the file. If syncing fails, readers see it all the same.
            let _ = file.sync_data();
        }
        Ok(())
    }

    /// Opens the day's file as `current`. If that fails, the file of an earlier day stays, as long as it is not removed.
    fn open(&mut self, day: Day) -> io::Result<()> {
        let path = self.directory.join(file_name(&self.cage, day));
        let found = FileIdentity::at(&path).ok().flatten();
        let in_place = |file: &File| FileIdentity::of(file).is_ok_and(|identity| found == Some(identity));
        if self.current.as_ref().is_some_and(|(current, file)| *current == day && in_place(file)) {
            return Ok(());
        }
        let removed = |file: &File| file.metadata().is_ok_and(|metadata| metadata.nlink() == 0);
        let append = || private::open(&path, OpenOptions::new().append(true).create(true));
        let opened = append().or_else(|error| match error.kind() {
            // Only the log directory is created, not its parents: a cage that was removed must not come back through its log.
            io::ErrorKind::NotFound => private::create_directory(&self.directory).and_then(|()| append()),
            _ => Err(error),
        });
        match opened {
            Ok(file) => {
                let bytes = file.metadata().map_or(0, |metadata| metadata.len());
                self.settings.budget.file_has(day, bytes);
                self.current = Some((day, file));
                self.torn = false;
                self.remove_expired(day);
                Ok(())
            }
            Err(_) if self.current.as_ref().is_some_and(|(_, file)| !removed(file)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn remove_expired(&self, today: Day) {
        let Some(retention_days) = *self.settings.retention_days.lock() else { return };
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let day = entry.file_name().to_str().and_then(|name| file_day(&self.cage, name));
            if day.is_some_and(|day| expired(day, today, retention_days)) {
                // A file that cannot be removed is tried again tomorrow.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl LineOutput for LogFiles {
    fn write(&mut self, batch: &Batch) {
        self.append(batch);
    }

    fn dropped(&mut self, lines: u64) {
        let line = notice(&self.cage, "log lines were dropped, too many came at once", self.settings.format(), lines);
        self.append(&Batch { day: clock::now(|stamp| stamp.day), bytes: line.into(), urgent: false });
    }

    fn settings_changed(&mut self) {
        self.remove_expired(clock::now(|stamp| stamp.day));
    }
}

/// Composes a line about the log itself.
fn notice(cage: &str, message: &str, format: LogFormat, lines: u64) -> String {
    let (mut parts, mut line) = (LineParts::default(), String::new());
    parts.set_notice(cage, message, format, lines);
    clock::now(|stamp| match format {
        LogFormat::Text => parts.text(&mut line, stamp, Level::Warn, false),
        LogFormat::Json => parts.json(&mut line, stamp, Level::Warn, module_path!()),
    });
    line
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Returns whether more than `retention_days` lie between the two days. A day that is no date never expires: the file is not ours.
fn expired(day: Day, today: Day, retention_days: u32) -> bool {
    let date = |day: Day| jiff::civil::Date::strptime("%Y%m%d", format!("{day:08}")).ok();
    let (Some(day), Some(today)) = (date(day), date(today)) else { return false };
    day.until(today).is_ok_and(|age| i64::from(age.get_days()) > i64::from(retention_days))
}

#[cfg(test)]
mod tests {
    use super::super::TerminalOptions;
    use super::*;

    /// A cage's directory, with its logs.
    struct LogDirectory(tempfile::TempDir);

    impl LogDirectory {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn open(&self, cage: &str, settings: LogSettings) -> CageLog {
            super::super::install(TerminalOptions::off());
            CageLog::open(cage, &self.path(), settings)
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("logs")
        }

        /// The content of all files: the test may run over midnight.
        fn text(&self) -> String {
            let mut files: Vec<_> = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
        }
    }

    fn settings(level: Level) -> LogSettings {
        LogSettings { level, ..LogSettings::default() }
    }

    /// The lines without their times.
    fn tails(text: &str) -> Vec<&str> {
        text.lines().map(|line| &line[12..]).collect()
    }

    #[test]
    fn events_go_to_the_log_of_their_cage_at_its_level() {
        let (one, two) = (LogDirectory::new(), LogDirectory::new());
        let (cage_one, cage_two) = ("log-route-one", "log-route-two");
        let log_one = one.open(cage_one, settings(Level::Info));
        let log_two = two.open(cage_two, settings(Level::Debug));
        for cage in [cage_one, cage_two] {
            tracing::info!(%cage, "first");
            tracing::debug!(cage, "second");
            tracing::trace!(cage, "third");
            tracing::trace!(target: "guest", cage, module = "work", "raised for one request");
            tracing::error!(target: "hyper", cage, "not ours");
        }
        log_one.set(settings(Level::Trace));
        tracing::trace!(cage = cage_one, "fourth");
        log_one.set(settings(Level::Error));
        tracing::warn!(cage = cage_one, "fifth");
        drop((log_one, log_two));
        tracing::error!(cage = cage_one, "after the end");
        let raised = "TRC [work] raised for one request";
        let expected = ["INF [log-route-one] first", raised, "TRC [log-route-one] fourth"];
        assert_eq!(tails(&one.text()), expected);
        assert_eq!(tails(&two.text()), ["INF [log-route-two] first", "DBG [log-route-two] second", raised]);
    }

    #[test]
    fn the_format_changes_live() {
        let logs = LogDirectory::new();
        let log = logs.open("log-format", settings(Level::Info));
        tracing::info!(cage = "log-format", "first");
        log.set(LogSettings { format: LogFormat::Json, ..settings(Level::Info) });
        tracing::info!(cage = "log-format", "second");
        log.flush();
        let text = logs.text();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with("INF [log-format] first"), "{text}");
        let second: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(second["message"], "second");
        assert_eq!(second["target"], module_path!());
    }

    #[test]
    fn a_log_that_cannot_be_written_resumes_and_reports_the_loss() {
        let logs = LogDirectory::new();
        // A file stands where the directory should be.
        fs::write(logs.path(), "").unwrap();
        let log = logs.open("log-lost", settings(Level::Info));
        for number in 0..3 {
            tracing::info!(cage = "log-lost", number, "lost");
        }
        log.flush();
        fs::remove_file(logs.path()).unwrap();
        tracing::info!(cage = "log-lost", "written");
        log.flush();
        let text = logs.text();
        assert_eq!(tails(&text), ["WRN [log-lost] log lines were lost lines=3", "INF [log-lost] written"]);
    }

    #[test]
    fn a_module_that_talks_too_much_fills_no_disk_and_hides_nothing_of_the_host() {
        let logs = LogDirectory::new();
        let log = logs.open("log-day", LogSettings { day_bytes: 4_000, ..settings(Level::Info) });
        let text = "x".repeat(100);
        for _ in 0..1_000 {
            tracing::info!(target: "guest", cage = "log-day", module = "work", "{text}");
        }
        tracing::error!(cage = "log-day", "told all the same");
        for _ in 0..1_000 {
            tracing::info!(cage = "log-day", "{text}");
        }
        log.flush();
        let written = logs.text();
        assert!(written.len() < 5_000, "{} bytes", written.len());
        assert!(written.contains("told all the same"), "{written}");
        let told = |lines| format!("log lines were dropped, the day's log is full: see log_day_mb lines={lines}\n");
        assert!([1, 10, 100, 1_000].iter().all(|lines| written.contains(&told(lines))), "{written}");
        log.set(LogSettings { day_bytes: 1 << 20, ..settings(Level::Info) });
        tracing::info!(cage = "log-day", "there is room again");
        log.flush();
        assert!(logs.text().contains("there is room again"));
    }

    #[test]
    fn a_full_disk_and_a_removed_file_are_survived() {
        let logs = LogDirectory::new();
        fs::create_dir(logs.path()).unwrap();
        let day = clock::now(|stamp| stamp.day);
        let (format, retention_days) = (AtomicU8::new(0), Mutex::new(None));
        let shared = Arc::new(LiveSettings { format, retention_days, budget: DayBudget::new(u64::MAX) });
        let mut files = LogFiles::new("log-full", logs.path(), shared);
        let write = |files: &mut LogFiles, text: &str| {
            files.write(&Batch { day, bytes: text.into(), urgent: true });
        };
        let file = logs.path().join(file_name("log-full", day));
        std::os::unix::fs::symlink("/dev/full", &file).unwrap();
        write(&mut files, "a\nb\n");
        assert_eq!(files.lost, 2);
        fs::remove_file(&file).unwrap();
        files.current = None;
        write(&mut files, "c\n");
        assert_eq!(files.lost, 0);
        fs::remove_file(&file).unwrap();
        write(&mut files, "d\n");
        assert_eq!(fs::read_to_string(&file).unwrap(), "d\n");
    }

    #[test]
    fn old_files_are_removed() {
        #[track_caller]
        fn check(day: Day, today: Day, retention_days: u32, expected: bool) {
            assert_eq!(expired(day, today, retention_days), expected, "{day} on {today} with {retention_days}");
        }
        check(20_261_120, 20_261_120, 0, false);
        check(20_261_119, 20_261_120, 0, true);
        check(20_261_113, 20_261_120, 7, false);
        check(20_261_112, 20_261_120, 7, true);
        check(20_251_231, 20_260_101, 1, false);
        check(20_251_230, 20_260_101, 1, true);
        check(20_261_121, 20_261_120, 0, false);
        check(20_261_399, 20_261_120, 0, false);
        check(20_250_101, 20_261_120, u32::MAX, false);

        assert_eq!(file_day("runner", "runner-20261120.log"), Some(20_261_120));
        for other in ["runner-2026112.log", "runner-20261120.log.gz", "runner-a-20261120.log", "worker-20261120.log"] {
            assert_eq!(file_day("runner", other), None, "{other}");
        }

        let logs = LogDirectory::new();
        fs::create_dir(logs.path()).unwrap();
        let old = ["c-20200101.log", "c-20200102.log"];
        let kept = ["other-20200101.log", "c-notes.log"];
        old.iter().chain(&kept).for_each(|name| fs::write(logs.path().join(name), "").unwrap());
        let log = logs.open("c", LogSettings { retention_days: Some(30), ..settings(Level::Info) });
        tracing::info!(cage = "c", "first");
        log.flush();
        assert!(old.iter().all(|name| !logs.path().join(name).exists()));
        assert!(kept.iter().all(|name| logs.path().join(name).exists()));
    }
}
