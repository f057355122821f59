//! The file while it is open: opened when it is first needed, dropped when it fails, and opened again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use redb::Database;

use super::calls::RetriedQueues;
use super::complaint::Complaint;
use super::error::{MENDING, failed};
use super::medium::Medium;
use super::overlay::Overlay;
use super::snapshot::Snapshot;
use super::{StoreError, StoreSettings};

/// A file that could not be opened is tried again after so long.
const OPEN_PAUSE: Duration = Duration::from_secs(1);
/// A reader waits so long for a file that is being opened or compacted.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);
/// The room on the disk is looked at again after so long.
const ROOM_INTERVAL: Duration = Duration::from_millis(500);

/// Shared by the store and its writing thread.
pub(super) struct Opened {
    medium: Box<dyn Medium>,
    minimum_free_bytes: AtomicU64,
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
    /// When it could not be opened, and why.
    refused: Option<(Instant, StoreError)>,
    /// When there was last seen to be room for so many bytes.
    roomy: Option<(Instant, u64)>,
}

impl Opened {
    pub(super) fn new(medium: Box<dyn Medium>, settings: StoreSettings, cage: String) -> Self {
        Self {
            medium,
            minimum_free_bytes: settings.minimum_free_bytes.into(),
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
        if let Some((_, error)) = file.refused.as_ref().filter(|(at, _)| at.elapsed() < OPEN_PAUSE) {
            return Err(error.clone());
        }
        let opened = contained(|| {
            let Some(database) = self.medium.open(make)? else { return Ok(None) };
            let snapshot = Arc::new(Snapshot::take(&database)?);
            Ok(Some((database, snapshot)))
        });
        match opened {
            Ok(None) => Ok(None),
            Ok(Some((database, snapshot))) => {
                file.database = Some(database);
                file.refused = None;
                self.snapshot.store(Some(snapshot.clone()));
                Ok(Some(snapshot))
            }
            Err(error) => {
                let error = self.told("open", &error);
                file.refused = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
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

    /// Writes all of it, durably. After an error the file is closed, and opened again when it is next needed.
    pub(super) fn commit(&self, file: &mut File, overlay: &Overlay) -> Result<(), StoreError> {
        let committed = contained(|| {
            self.open(file, true)?;
            let database = file.database.as_ref().expect("it was made if it was not there");
            write(database, overlay)?;
            Ok(Arc::new(Snapshot::take(database)?))
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
        Ok((before, self.medium.file_bytes()))
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
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(StoreError::Unavailable(format!("a panic, see the log; the file may be damaged: {MENDING}")))
    })
}
