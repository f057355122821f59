//! The store's file: opened when it is first needed, closed when it fails, and opened again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use redb::Database;

use super::calls::RetriedQueues;
use super::error::{REPAIR_HINT, failed};
use super::medium::{CACHE_BYTES, Medium};
use super::outage_log::OutageLog;
use super::overlay::Overlay;
use super::snapshot::Snapshot;
use super::{StoreError, StoreSettings};
use wasmcage_core::task;

/// A file that could not be opened is tried again after this time.
const OPEN_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Another process, which finishes its requests first, may take so long to close the file.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(15);
/// While waiting for that, the file is tried again this often.
const HANDOVER_RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// A reader waits at most so long for a file that is being opened or compacted.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
/// Free space on the disk is checked again after this time.
const ROOM_INTERVAL: Duration = Duration::from_millis(500);

/// Shared by the store and its writing thread.
pub(super) struct StoreFile {
    medium: Box<dyn Medium>,
    minimum_free_bytes: AtomicU64,
    /// The store is being closed: pending writes are finished, but nobody waits for another process.
    ending: AtomicBool,
    closed: AtomicBool,
    /// The snapshot of the last commit; none while the file is not open.
    snapshot: ArcSwapOption<Snapshot>,
    state: Mutex<FileState>,
    outages: OutageLog,
    /// The queues to wake when a retried call was written.
    pub(super) queues: Arc<RetriedQueues>,
}

#[derive(Default)]
pub(super) struct FileState {
    database: Option<Database>,
    /// Until when the file is not tried again, and why it could not be opened.
    refused: Option<(Instant, StoreError)>,
    /// Since when another process has it open.
    held_elsewhere: Option<Instant>,
    /// When the last check found enough free space, and the minimum it checked for.
    roomy: Option<(Instant, u64)>,
    /// The file lost its name while it was open, and no other was opened since.
    lost: bool,
}

impl StoreFile {
    pub(super) fn new(medium: Box<dyn Medium>, settings: StoreSettings, cage: String) -> Self {
        Self {
            medium,
            minimum_free_bytes: settings.minimum_free_bytes.into(),
            ending: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            snapshot: ArcSwapOption::empty(),
            state: Mutex::default(),
            outages: OutageLog::new(cage),
            queues: Arc::default(),
        }
    }

    pub(super) fn set(&self, settings: StoreSettings) {
        self.minimum_free_bytes.store(settings.minimum_free_bytes, Ordering::Relaxed);
    }

    /// Returns what is committed; none while there is no file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn snapshot(&self) -> Result<Option<Arc<Snapshot>>, StoreError> {
        if let Some(snapshot) = self.snapshot.load_full() {
            return Ok(Some(snapshot));
        }
        let busy = || self.unavailable("the file is being opened or compacted: try again");
        let mut file = self.state.try_lock_for(OPEN_TIMEOUT).ok_or_else(busy)?;
        self.open(&mut file, false)
    }

    /// Returns whether a read may have to wait until the file is open.
    pub(super) fn is_closed(&self) -> bool {
        self.snapshot.load().is_none() && self.medium.is_there()
    }

    /// Returns whether all pages fit in the cache, so that none is read twice; false while the file is not open.
    pub(super) fn fits_in_memory(&self) -> bool {
        self.snapshot.load().as_ref().is_some_and(|snapshot| snapshot.file_bytes <= CACHE_BYTES as u64)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, FileState> {
        self.state.lock()
    }

    /// Opens the file and returns its snapshot. A file that does not exist is created if `make`; else there is no snapshot.
    pub(super) fn open(&self, file: &mut FileState, make: bool) -> Result<Option<Arc<Snapshot>>, StoreError> {
        if let Some(snapshot) = self.snapshot.load_full() {
            return Ok(Some(snapshot));
        }
        if self.closed.load(Ordering::SeqCst) {
            return Err(self.stopping_error());
        }
        if let Some((_, error)) = file.refused.as_ref().filter(|(until, _)| Instant::now() < *until) {
            return Err(error.clone());
        }
        let opened = catch_library_panic(|| {
            let Some(database) = self.medium.open(make)? else { return Ok(None) };
            let snapshot = Arc::new(Snapshot::take(&database, self.medium.file_bytes())?);
            Ok(Some((database, snapshot)))
        });
        match opened {
            Ok(None) => Ok(None),
            Ok(Some((database, snapshot))) => {
                file.database = Some(database);
                (file.refused, file.held_elsewhere) = (None, None);
                if std::mem::take(&mut file.lost) {
                    self.outages.report_replaced(&self.medium.name());
                }
                self.snapshot.store(Some(snapshot.clone()));
                Ok(Some(snapshot))
            }
            Err(error) => {
                let (error, pause) = match self.is_being_handed_over(file) {
                    true => (self.unavailable(&reason(&error)), HANDOVER_RETRY_INTERVAL),
                    false => (self.reported("open", &error), OPEN_RETRY_INTERVAL),
                };
                file.refused = Some((Instant::now() + pause, error.clone()));
                Err(error)
            }
        }
    }

    /// As `open`, and waits while another process has the file open: the cage's previous process finishes its requests and ends.
    /// Gives up when that takes too long, when `wanted` returns false, or when the store is closed.
    pub(super) fn open_or_wait(
        &self,
        file: &mut MutexGuard<'_, FileState>,
        wanted: impl Fn() -> bool,
    ) -> Result<Option<Arc<Snapshot>>, StoreError> {
        loop {
            let opened = self.open(file, false);
            let waits = opened.is_err() && self.is_being_handed_over(file);
            if !waits || self.ending.load(Ordering::SeqCst) || !wanted() {
                return opened;
            }
            MutexGuard::unlocked(file, || std::thread::sleep(HANDOVER_RETRY_INTERVAL));
        }
    }

    /// Returns whether another process has the file open, and has had it for less than `HANDOVER_TIMEOUT`.
    fn is_being_handed_over(&self, file: &mut FileState) -> bool {
        if !self.medium.is_held_elsewhere() {
            file.held_elsewhere = None;
            return false;
        }
        file.held_elsewhere.get_or_insert_with(Instant::now).elapsed() < HANDOVER_TIMEOUT
    }

    /// Checks that the disk has enough free space for writing.
    pub(super) fn check_room(&self, file: &mut FileState) -> Result<(), StoreError> {
        let minimum = self.minimum_free_bytes.load(Ordering::Relaxed);
        if file.roomy.is_some_and(|(at, bytes)| bytes == minimum && at.elapsed() < ROOM_INTERVAL) {
            return Ok(());
        }
        file.roomy = None;
        let free = self.medium.free_bytes().map_err(|error| self.reported("room", &failed(error)))?;
        if free < minimum {
            let text = format!(
                "the disk has {} MB left, and minimum_free_space_mb is {}: nothing is written until there is more room",
                free >> 20,
                minimum >> 20
            );
            return Err(self.reported("room", &StoreError::Unavailable(text)));
        }
        file.roomy = Some((Instant::now(), minimum));
        Ok(())
    }

    /// Checks that the open file still has its name, so that what is written will be found again. Closes it if not.
    ///
    /// # Errors
    /// The file was moved, removed or replaced.
    pub(super) fn check_name(&self, file: &mut FileState) -> Result<(), StoreError> {
        if file.database.is_none() {
            return Ok(());
        }
        self.medium.check_name().map_err(|error| {
            file.lost = true;
            self.discard(file);
            self.reported("place", &error)
        })
    }

    /// Closes a file that has lost its name, and opens the one that has it now. Does nothing while the file is in use: a commit
    /// checks the name itself.
    pub(super) fn check_file(&self) {
        let Some(mut file) = self.state.try_lock() else { return };
        // A failure is logged there.
        let _ = self.check_name(&mut file);
        if file.lost {
            let _ = self.open(&mut file, false);
        }
    }

    /// Writes the overlay durably, and checks afterwards that the file still has its name. After an error the file is closed,
    /// and opened again when it is next needed.
    pub(super) fn commit(&self, file: &mut FileState, overlay: &Overlay) -> Result<(), StoreError> {
        let committed = catch_library_panic(|| {
            self.open(file, true)?;
            let database = file.database.as_ref().expect("it was made if it was not there");
            write(database, overlay)?;
            Ok(Arc::new(Snapshot::take(database, self.medium.file_bytes())?))
        });
        // After the commit: the file could be replaced until it was done.
        let committed = committed.and_then(|snapshot| {
            self.medium.check_name().inspect_err(|_| file.lost = true)?;
            Ok(snapshot)
        });
        match committed {
            Ok(snapshot) => {
                self.snapshot.store(Some(snapshot));
                self.outages.report_available();
                Ok(())
            }
            Err(error) => {
                self.discard(file);
                let text = format!("{}; the write may or may not have been done", reason(&error));
                Err(self.reported("commit", &StoreError::Unavailable(text)))
            }
        }
    }

    /// Makes the file as small as it can be. Returns its size before and after.
    pub(super) fn compact(&self, timeout: Duration) -> Result<(u64, u64), StoreError> {
        let until = Instant::now() + timeout;
        let busy = || self.unavailable("the file is being opened or compacted: try again");
        let mut file = self.state.try_lock_until(until).ok_or_else(busy)?;
        self.open(&mut file, false)?;
        let before = self.medium.file_bytes();
        self.snapshot.store(None);
        let Some(mut database) = file.database.take() else { return Ok((before, before)) };
        let compacted = catch_library_panic(|| {
            loop {
                match database.compact() {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    // A read that began before this still has a snapshot.
                    Err(redb::CompactionError::TransactionInProgress) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err(error) => return Err(failed(error)),
                }
            }
        });
        drop(database);
        compacted.map_err(|error| self.reported("compact", &error))?;
        // The file is opened again at once: one that is not open cannot be seen to lose its name.
        self.open(&mut file, false)?;
        Ok((before, self.medium.file_bytes()))
    }

    /// From here on nobody waits for another process to close the file.
    pub(super) fn stop_waiting(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    /// Closes the file for good: it is not opened again.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.discard(&mut self.lock());
    }

    pub(super) fn stopping_error(&self) -> StoreError {
        self.unavailable("the cage is stopping")
    }

    /// Closes the file without an error, also if it is damaged.
    pub(super) fn discard(&self, file: &mut FileState) {
        self.snapshot.store(None);
        let database = file.database.take();
        // The library may panic while it closes a damaged file.
        let _ = catch_library_panic(|| {
            drop(database);
            Ok(())
        });
    }

    pub(super) fn unavailable(&self, text: &str) -> StoreError {
        StoreError::Unavailable(format!("{}: {text}", self.medium.name()))
    }

    fn reported(&self, kind: &str, error: &StoreError) -> StoreError {
        let error = self.unavailable(&reason(error));
        self.outages.report(kind, &error.to_string());
        error
    }
}

fn reason(error: &StoreError) -> String {
    match error {
        StoreError::Unavailable(text) => text.clone(),
        other => other.to_string(),
    }
}

fn write(database: &Database, overlay: &Overlay) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    for (space, entries) in overlay.tables() {
        let mut table = transaction.open_table(space.table()).map_err(failed)?;
        for (key, value) in entries {
            match value {
                Some(value) => table.insert(key.as_slice(), value.as_slice()).map_err(failed)?,
                None => table.remove(key.as_slice()).map_err(failed)?,
            };
        }
    }
    transaction.commit().map_err(failed)
}

/// Runs work of the library, which may panic because of a damaged file. The panic becomes an error.
pub(super) fn catch_library_panic<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    task::catch_panic(work).unwrap_or_else(|panic| {
        Err(StoreError::Unavailable(format!("it {panic}; the file may be damaged: {REPAIR_HINT}")))
    })
}
