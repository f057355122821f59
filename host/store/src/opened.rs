//! The file while it is open: opened when it is first needed, dropped when it fails, and opened again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use redb::Database;

use super::calls::RetriedQueues;
use super::complaint::Complaint;
use super::error::{MENDING, failed};
use super::medium::{CACHE_BYTES, Medium};
use super::overlay::Overlay;
use super::snapshot::Snapshot;
use super::{StoreError, StoreSettings};
use wasmcage_core::task;

/// A file that could not be opened is tried again after so long.
const OPEN_PAUSE: Duration = Duration::from_secs(1);
/// Another process may take so long to give the file away: it finishes its requests first.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two tries to have it meanwhile.
const HANDOVER_PAUSE: Duration = Duration::from_millis(20);
/// A reader waits so long for a file that is being opened or compacted.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);
/// The room on the disk is looked at again after so long.
const ROOM_INTERVAL: Duration = Duration::from_millis(500);

/// Shared by the store and its writing thread.
pub(super) struct Opened {
    medium: Box<dyn Medium>,
    minimum_free_bytes: AtomicU64,
    /// What waits is finished, and waits for nobody else.
    ending: AtomicBool,
    closed: AtomicBool,
    /// The last commit's; none while the file is not open.
    snapshot: ArcSwapOption<Snapshot>,
    file: Mutex<File>,
    complaint: Complaint,
    /// Who is to be woken when a retried call was written.
    pub(super) queues: Arc<RetriedQueues>,
}

#[derive(Default)]
pub(super) struct File {
    database: Option<Database>,
    /// Until when it is not tried again, and why.
    refused: Option<(Instant, StoreError)>,
    /// Since when another process has it open.
    held_elsewhere: Option<Instant>,
    /// When there was last seen to be room for so many bytes.
    roomy: Option<(Instant, u64)>,
    /// The file lost its name while it was open, and none was opened since.
    lost: bool,
}

impl Opened {
    pub(super) fn new(medium: Box<dyn Medium>, settings: StoreSettings, cage: String) -> Self {
        Self {
            medium,
            minimum_free_bytes: settings.minimum_free_bytes.into(),
            ending: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            snapshot: ArcSwapOption::empty(),
            file: Mutex::default(),
            complaint: Complaint::new(cage),
            queues: Arc::default(),
        }
    }

    pub(super) fn set(&self, settings: StoreSettings) {
        self.minimum_free_bytes.store(settings.minimum_free_bytes, Ordering::Relaxed);
    }

    /// What is committed; none while there is no file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn snapshot(&self) -> Result<Option<Arc<Snapshot>>, StoreError> {
        if let Some(snapshot) = self.snapshot.load_full() {
            return Ok(Some(snapshot));
        }
        let busy = || self.unavailable("it is being opened, or compacted: try again");
        let mut file = self.file.try_lock_for(OPEN_PATIENCE).ok_or_else(busy)?;
        self.open(&mut file, false)
    }

    /// Whether a read may have to wait until the file is open.
    pub(super) fn is_closed(&self) -> bool {
        self.snapshot.load().is_none() && self.medium.is_there()
    }

    /// Whether a read finds all pages in memory, once they were read; false while the file is not open.
    pub(super) fn fits_in_memory(&self) -> bool {
        self.snapshot.load().as_ref().is_some_and(|snapshot| snapshot.file_bytes <= CACHE_BYTES as u64)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock()
    }

    /// As `snapshot`. A file that is not there is made if `make`.
    pub(super) fn open(&self, file: &mut File, make: bool) -> Result<Option<Arc<Snapshot>>, StoreError> {
        if let Some(snapshot) = self.snapshot.load_full() {
            return Ok(Some(snapshot));
        }
        if self.closed.load(Ordering::SeqCst) {
            return Err(self.stopping());
        }
        if let Some((_, error)) = file.refused.as_ref().filter(|(until, _)| Instant::now() < *until) {
            return Err(error.clone());
        }
        let opened = contained(|| {
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
                    self.complaint.replaced(&self.medium.name());
                }
                self.snapshot.store(Some(snapshot.clone()));
                Ok(Some(snapshot))
            }
            Err(error) => {
                let (error, pause) = match self.is_being_handed_over(file) {
                    true => (self.unavailable(&reason(&error)), HANDOVER_PAUSE),
                    false => (self.told("open", &error), OPEN_PAUSE),
                };
                file.refused = Some((Instant::now() + pause, error.clone()));
                Err(error)
            }
        }
    }

    /// As `open`, and waits for another process that has the file open: the last one of this cage finishes its requests and ends.
    /// Gives up when that takes too long, nobody wants it any more, or the store is closed.
    pub(super) fn open_patiently(
        &self,
        file: &mut MutexGuard<'_, File>,
        wanted: impl Fn() -> bool,
    ) -> Result<Option<Arc<Snapshot>>, StoreError> {
        loop {
            let opened = self.open(file, false);
            let waits = opened.is_err() && self.is_being_handed_over(file);
            if !waits || self.ending.load(Ordering::SeqCst) || !wanted() {
                return opened;
            }
            MutexGuard::unlocked(file, || std::thread::sleep(HANDOVER_PAUSE));
        }
    }

    /// Whether another process has the file open, and not for too long.
    fn is_being_handed_over(&self, file: &mut File) -> bool {
        if !self.medium.is_held_elsewhere() {
            file.held_elsewhere = None;
            return false;
        }
        file.held_elsewhere.get_or_insert_with(Instant::now).elapsed() < HANDOVER_TIMEOUT
    }

    /// Whether there is room enough for writing.
    pub(super) fn check_room(&self, file: &mut File) -> Result<(), StoreError> {
        let minimum = self.minimum_free_bytes.load(Ordering::Relaxed);
        if file.roomy.is_some_and(|(at, bytes)| bytes == minimum && at.elapsed() < ROOM_INTERVAL) {
            return Ok(());
        }
        file.roomy = None;
        let free = self.medium.free_bytes().map_err(|error| self.told("room", &failed(error)))?;
        if free < minimum {
            let text = format!(
                "the disk has {} MB left, and minimum_free_space_mb is {}: nothing is written until there is more room",
                free >> 20,
                minimum >> 20
            );
            return Err(self.told("room", &StoreError::Unavailable(text)));
        }
        file.roomy = Some((Instant::now(), minimum));
        Ok(())
    }

    /// Checks that what is written goes where it will be read. Closes a file that has lost its name.
    ///
    /// # Errors
    /// What has become of the file.
    pub(super) fn check_place(&self, file: &mut File) -> Result<(), StoreError> {
        if file.database.is_none() {
            return Ok(());
        }
        self.medium.check_place().map_err(|error| {
            file.lost = true;
            self.forget(file);
            self.told("place", &error)
        })
    }

    /// Closes a file that has lost its name, and opens the one that has it now. Does nothing while the file is in use: whoever
    /// uses it looks for himself.
    pub(super) fn look_after(&self) {
        let Some(mut file) = self.file.try_lock() else { return };
        // What is wrong is told to the log.
        let _ = self.check_place(&mut file);
        if file.lost {
            let _ = self.open(&mut file, false);
        }
    }

    /// Writes all of it, durably, into the file that has the name still. After an error the file is closed, and opened again
    /// when it is next needed.
    pub(super) fn commit(&self, file: &mut File, overlay: &Overlay) -> Result<(), StoreError> {
        let committed = contained(|| {
            self.open(file, true)?;
            let database = file.database.as_ref().expect("it was made if it was not there");
            write(database, overlay)?;
            Ok(Arc::new(Snapshot::take(database, self.medium.file_bytes())?))
        });
        // Only now: until the commit was done, the file could be replaced.
        let committed = committed.and_then(|snapshot| {
            self.medium.check_place().inspect_err(|_| file.lost = true)?;
            Ok(snapshot)
        });
        match committed {
            Ok(snapshot) => {
                self.snapshot.store(Some(snapshot));
                self.complaint.settle();
                Ok(())
            }
            Err(error) => {
                self.forget(file);
                let text = format!("{}; what was to be written may have been, or not", reason(&error));
                Err(self.told("commit", &StoreError::Unavailable(text)))
            }
        }
    }

    /// Makes the file as small as it can be. Its size before and after.
    pub(super) fn compact(&self, timeout: Duration) -> Result<(u64, u64), StoreError> {
        let until = Instant::now() + timeout;
        let busy = || self.unavailable("it is being opened, or compacted: try again");
        let mut file = self.file.try_lock_until(until).ok_or_else(busy)?;
        self.open(&mut file, false)?;
        let before = self.medium.file_bytes();
        self.snapshot.store(None);
        let Some(mut database) = file.database.take() else { return Ok((before, before)) };
        let compacted = contained(|| {
            loop {
                match database.compact() {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    // A read that began before.
                    Err(redb::CompactionError::TransactionInProgress) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err(error) => return Err(failed(error)),
                }
            }
        });
        drop(database);
        compacted.map_err(|error| self.told("compact", &error))?;
        // At once: a file that is not open cannot be seen to lose its name.
        self.open(&mut file, false)?;
        Ok((before, self.medium.file_bytes()))
    }

    /// From here on nobody waits for another process to give the file away.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    /// Closes the file. Nothing is opened from here on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.forget(&mut self.lock());
    }

    pub(super) fn stopping(&self) -> StoreError {
        self.unavailable("the cage is stopping")
    }

    pub(super) fn forget(&self, file: &mut File) {
        self.snapshot.store(None);
        let database = file.database.take();
        // It may be damaged.
        let _ = contained(|| {
            drop(database);
            Ok(())
        });
    }

    pub(super) fn unavailable(&self, text: &str) -> StoreError {
        StoreError::Unavailable(format!("{}: {text}", self.medium.name()))
    }

    fn told(&self, kind: &str, error: &StoreError) -> StoreError {
        let error = self.unavailable(&reason(error));
        self.complaint.tell(kind, &error.to_string());
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

/// A damaged file may make the library panic.
pub(super) fn contained<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    task::caught(work)
        .unwrap_or_else(|panic| Err(StoreError::Unavailable(format!("it {panic}; the file may be damaged: {MENDING}"))))
}
