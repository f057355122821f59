//! Follows a cage's `cage.toml` and decides when a change is read. A file that is being saved must not be read yet: during a
//! save in place it is first empty and then half written, and some programs remove it and write it anew. So a change is read
//! when its writer has closed the file, or when nobody has written for a while; and a file that had content counts as empty or
//! gone only when it stays so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use wasmcage_config::{CageConfig, ConfigError, ConfigSignal, FileStamps};
use wasmcage_core::backoff::Backoff;

/// Pause before reading after its writer has closed the file.
const SETTLE_COMPLETE: Duration = Duration::from_millis(50);
/// Pause before reading after a write, while the writer may still have the file open.
const SETTLE_WRITING: Duration = Duration::from_secs(2);
/// A file that had content must be empty or gone for so long before that counts.
const SETTLE_LOST: Duration = Duration::from_secs(3);
/// How often the files are checked for changes without a signal.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// First pause before a refused configuration is read again, since files that it names may exist by then.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Follows the files as long as the future of `run` is polled. `load` reads the configuration, and blocks.
pub(crate) struct Reload<L> {
    files: [PathBuf; 2],
    signal: Arc<ConfigSignal>,
    load: L,
    /// Stamps of the files that were read last.
    read: FileStamps,
    /// Whether any later write would change the stamps.
    is_sure: bool,
    due: Option<Instant>,
    /// Stamps, and since when they are so, while a file that had content is empty or gone.
    lost: Option<(FileStamps, Instant)>,
    retry: Backoff,
}

impl<L> Reload<L>
where
    L: Fn() -> Result<CageConfig, ConfigError> + Clone + Send + 'static,
{
    /// `read` are the stamps of the files before they were read for the present configuration.
    pub(crate) fn new(files: [PathBuf; 2], read: FileStamps, signal: Arc<ConfigSignal>, load: L) -> Self {
        Self {
            files,
            signal,
            load,
            read,
            is_sure: false,
            due: None,
            lost: None,
            retry: Backoff::new(RETRY_FIRST, RETRY_MAX),
        }
    }

    /// Follows the files, and passes every result to `take`.
    pub(crate) async fn run(mut self, mut take: impl FnMut(Result<CageConfig, ConfigError>)) {
        let mut poll = Instant::now() + POLL_INTERVAL;
        loop {
            let wake = self.due.map_or(poll, |due| due.min(poll));
            tokio::select! {
                is_complete = self.signal.next() => self.changed(is_complete),
                () = sleep_until(wake) => {}
            }
            let now = Instant::now();
            if self.due.is_some_and(|due| due <= now) {
                self.due = None;
                if let Some(result) = self.attempt().await {
                    self.schedule_retry(result.is_err());
                    take(result);
                }
            }
            if poll <= now {
                poll = now + POLL_INTERVAL;
                self.poll_files().await;
            }
        }
    }

    /// Schedules reading after a signal. The latest signal counts, since a writer that has closed the file is finished.
    fn changed(&mut self, is_complete: bool) {
        self.due = Some(Instant::now() + if is_complete { SETTLE_COMPLETE } else { SETTLE_WRITING });
    }

    /// Finds changes without a signal.
    async fn poll_files(&mut self) {
        // While a retry is pending, the file may be corrected earlier.
        if self.due.is_some() && !self.retry.is_failing() {
            return;
        }
        let now = self.stamps().await;
        let settle = match () {
            () if now == self.read && self.is_sure => return,
            () if now == self.read || now.is_replaced(&self.read) => SETTLE_COMPLETE,
            () => SETTLE_WRITING,
        };
        let due = Instant::now() + settle;
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Reads the files. If they are still being saved, schedules another attempt.
    async fn attempt(&mut self) -> Option<Result<CageConfig, ConfigError>> {
        let before = self.stamps().await;
        if before.has_lost(&self.read) {
            let now = Instant::now();
            let since = match &self.lost {
                Some((stamps, since)) if *stamps == before => *since,
                Some(_) | None => now,
            };
            self.lost = Some((before.clone(), since));
            if now < since + SETTLE_LOST {
                self.due = Some(since + SETTLE_LOST);
                return None;
            }
        }
        self.lost = None;
        let load = self.load.clone();
        let loaded = tokio::task::spawn_blocking(load).await.expect("reading the configuration does not panic");
        let after = self.stamps().await;
        if after != before {
            self.due = Some(Instant::now() + SETTLE_WRITING);
            return None;
        }
        self.is_sure = !before.is_recent();
        self.read = before;
        Some(loaded)
    }

    fn schedule_retry(&mut self, failed: bool) {
        if !failed {
            self.retry.reset();
        }
        self.due = failed.then(|| Instant::now() + self.retry.pause());
    }

    async fn stamps(&self) -> FileStamps {
        let files = self.files.clone();
        tokio::task::spawn_blocking(move || FileStamps::of(&files)).await.expect("looking at files does not panic")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use parking_lot::Mutex;

    use super::*;
    use wasmcage_config as config;

    /// A cage's files and the results of reading them: the log level of each configuration, or `refused`.
    struct TestReload {
        root: tempfile::TempDir,
        signal: Arc<ConfigSignal>,
        read: Arc<Mutex<Vec<String>>>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for TestReload {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn followed(text: &str) -> TestReload {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("c")).unwrap();
        fs::write(root.path().join("c/cage.toml"), text).unwrap();
        let files = config::files(root.path(), "c");
        let path: Arc<Path> = root.path().into();
        let signal = Arc::new(ConfigSignal::default());
        let read = Arc::<Mutex<Vec<String>>>::default();
        let reload = Reload::new(files.clone(), FileStamps::of(&files), signal.clone(), move || {
            config::load(&path, "c", "node", &[], &[])
        });
        let results = read.clone();
        let take = move |result: Result<CageConfig, ConfigError>| {
            let text = result.map_or_else(|_| "refused".to_owned(), |config| format!("{:?}", config.log_level));
            let mut results = results.lock();
            if results.last() != Some(&text) {
                results.push(text);
            }
        };
        TestReload { root, signal, read, task: tokio::spawn(reload.run(take)) }
    }

    impl TestReload {
        fn file(&self) -> PathBuf {
            self.root.path().join("c/cage.toml")
        }

        async fn reads(&self, expected: &[&str]) {
            let until = std::time::Instant::now() + Duration::from_secs(60);
            while *self.read.lock() != expected {
                assert!(std::time::Instant::now() < until, "{:?}, expected {expected:?}", self.read.lock());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_is_empty_half_written_or_missing_while_it_is_saved_is_not_read() {
        let followed = followed("log_level = \"info\"\n");
        fs::write(followed.file(), "").unwrap();
        followed.signal.send(true);
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::write(followed.file(), "log_level = \"de").unwrap();
        followed.signal.send(false);
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::remove_file(followed.file()).unwrap();
        followed.signal.send(true);
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::write(followed.file(), "log_level = \"debug\"\n").unwrap();
        followed.signal.send(true);
        followed.reads(&["Debug"]).await;
    }

    #[tokio::test]
    async fn a_file_that_stays_empty_is_believed_and_so_is_one_that_stays_away() {
        let followed = followed("log_level = \"debug\"\n");
        fs::write(followed.file(), "").unwrap();
        followed.reads(&["Info"]).await;
        fs::write(followed.file(), "log_level = \"debug\"\n").unwrap();
        followed.reads(&["Info", "Debug"]).await;
        fs::remove_file(followed.file()).unwrap();
        followed.reads(&["Info", "Debug", "Info"]).await;
    }

    #[tokio::test]
    async fn changes_of_which_nobody_tells_are_found() {
        let followed = followed("log_level = \"info\"\n");
        fs::write(followed.file(), "log_level = \"warn\"\n").unwrap();
        followed.reads(&["Warn"]).await;
        let new = followed.root.path().join("new");
        fs::write(&new, "log_level = \"trace\"\n").unwrap();
        fs::rename(new, followed.file()).unwrap();
        followed.reads(&["Warn", "Trace"]).await;
    }

    #[tokio::test]
    async fn a_refused_file_is_read_again_although_it_is_the_same() {
        let followed = followed("");
        let link = followed.root.path().join("link");
        std::os::unix::fs::symlink("target", &link).unwrap();
        fs::rename(&link, followed.file()).unwrap();
        followed.signal.send(true);
        // A link to a file that does not exist is a mistake.
        followed.reads(&["refused"]).await;
        fs::write(followed.root.path().join("c/target"), "log_level = \"warn\"\n").unwrap();
        followed.reads(&["refused", "Warn"]).await;
    }
}
