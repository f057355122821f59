//! For tests: a disk that fails or loses power at a chosen write, and workloads that check the store afterwards.

use std::io;
use std::sync::Arc;

use fastrand::Rng;
use parking_lot::Mutex;
use redb::{Database, StorageBackend};

use super::error::failed;
use super::medium::{Medium, builder};
use super::{Store, StoreError, StoreSettings, format};

/// A disk writes a sector of this size whole or not at all.
const SECTOR_BYTES: usize = 512;

/// The fault at the chosen write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails, and so does everything after it. After a restart, any part of what was not synced is on the disk.
    PowerLoss,
    /// It alone fails. If it was a sync, any part of what was not synced is on the disk.
    Error,
}

/// A disk in memory. A clone is the same disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug)]
struct DiskState {
    /// The file's content as it is read.
    content: Vec<u8>,
    synced: Vec<u8>,
    /// Changes since the last sync.
    unsynced: Vec<DiskChange>,
    /// The file has its name.
    named: bool,
    /// Writes, changes of length, syncs and renames so far.
    changes: u64,
    fault: Option<(u64, Fault)>,
    dead: bool,
    sync_failed: bool,
    /// Syncs succeed and do nothing.
    lies: bool,
    random: Rng,
}

#[derive(Clone, Debug)]
enum DiskChange {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(DiskState {
            content: Vec::new(),
            synced: Vec::new(),
            unsynced: Vec::new(),
            named: false,
            changes: 0,
            fault: None,
            dead: false,
            sync_failed: false,
            lies: false,
            random: Rng::with_seed(seed),
        })))
    }

    /// The change with this number, from 0, will have this fault.
    pub(crate) fn fail_at(&self, change: u64, fault: Fault) {
        self.0.lock().fault = Some((change, fault));
    }

    /// From here on syncs succeed and do nothing.
    pub(crate) fn lie(&self) {
        self.0.lock().lies = true;
    }

    pub(crate) fn changes(&self) -> u64 {
        self.0.lock().changes
    }

    pub(crate) fn has_power(&self) -> bool {
        !self.0.lock().dead
    }

    /// Opens a store on this disk.
    pub(crate) fn store(&self) -> Store {
        Store::on(Box::new(self.clone()), StoreSettings { minimum_free_bytes: 0 }, "crash".to_owned())
    }

    /// Switches the power on again.
    pub(crate) fn restart(&self) {
        let mut state = self.0.lock();
        if std::mem::take(&mut state.dead) {
            state.lose();
        }
        state.fault = None;
    }
}

impl DiskState {
    /// Counts a change. Fails if it is the chosen one, or the power is off.
    fn change(&mut self) -> io::Result<()> {
        let chosen = self.fault.filter(|(number, _)| *number == self.changes);
        self.changes += 1;
        if let Some((_, fault)) = chosen {
            self.dead = fault == Fault::PowerLoss;
            return Err(io::Error::other("the disk fails as it was told to"));
        }
        self.powered()
    }

    fn powered(&self) -> io::Result<()> {
        match self.dead {
            true => Err(io::Error::other("the disk has no power")),
            false => Ok(()),
        }
    }

    /// Applies a random part of the changes that were not synced, most often none or all.
    fn lose(&mut self) {
        let kept_percent = *[0, 50, 90, 100].get(self.random.usize(..4)).expect("there are four");
        let mut kept = || self.random.u32(..100) < kept_percent;
        for change in std::mem::take(&mut self.unsynced) {
            match change {
                DiskChange::Length(length) if kept() => self.synced.resize(length, 0),
                DiskChange::Length(_) => {}
                DiskChange::Write(offset, bytes) => {
                    for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate().filter(|_| kept()) {
                        write(&mut self.synced, offset + number * SECTOR_BYTES, sector);
                    }
                }
            }
        }
        self.content.clone_from(&self.synced);
        self.sync_failed = false;
    }
}

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        let state = self.0.lock();
        state.powered()?;
        Ok(state.content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock();
        state.powered()?;
        let offset = offset as usize;
        let read = state.content.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(read);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        let length = length as usize;
        let changed = state.change();
        state.unsynced.push(DiskChange::Length(length));
        changed?;
        state.content.resize(length, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        if let Err(error) = state.change() {
            state.sync_failed = true;
            return Err(error);
        }
        if state.lies {
            return Ok(());
        }
        for change in std::mem::take(&mut state.unsynced) {
            match change {
                DiskChange::Write(offset, bytes) => write(&mut state.synced, offset, &bytes),
                DiskChange::Length(length) => state.synced.resize(length, 0),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        let changed = state.change();
        // The one that fails may have been done in part.
        state.unsynced.push(DiskChange::Write(offset as usize, bytes.to_vec()));
        changed?;
        write(&mut state.content, offset as usize, bytes);
        Ok(())
    }
}

impl Medium for Disk {
    fn open(&self, make: bool) -> Result<Option<Database>, StoreError> {
        {
            let mut state = self.0.lock();
            state.powered().map_err(failed)?;
            // After a failed sync nothing is read from the system's cache: `Directory` drops it.
            if state.sync_failed {
                state.lose();
            }
            if !state.named {
                if !make {
                    return Ok(None);
                }
                (state.content, state.synced, state.unsynced) = Default::default();
            }
        }
        let database = builder().create_with_backend(self.clone()).map_err(failed)?;
        format::bring_up_to_date(&database)?;
        let mut state = self.0.lock();
        if !state.named {
            state.change().map_err(failed)?;
            let synced = state.change();
            state.named = synced.is_ok() || state.random.bool();
            synced.map_err(failed)?;
        }
        Ok(Some(database))
    }

    fn check_name(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn is_there(&self) -> bool {
        self.0.lock().named
    }

    fn file_bytes(&self) -> u64 {
        self.0.lock().content.len() as u64
    }

    fn name(&self) -> String {
        "disk".to_owned()
    }
}

/// Operations on a store, with a check of what it must contain afterwards.
pub(crate) trait Workload {
    /// Does the next operations, if there are any, and notes for each whether it was acknowledged, refused or is in doubt.
    /// False after the last.
    async fn step(&mut self, store: &Store) -> bool;

    /// Panics unless the store contains everything that was acknowledged, and each operation in doubt whole or not at all. Those
    /// are in doubt no longer then.
    ///
    /// # Errors
    /// The store cannot be read now.
    fn check(&mut self, store: &Store) -> Result<(), StoreError>;
}

/// Environment variable with the number of rounds, each with other random numbers.
const ROUNDS: &str = "WASMCAGE_CRASH_ROUNDS";

/// Runs the workload once for each fault at each change of the disk. Returns the number of runs.
pub(crate) async fn crash_everywhere<W: Workload>(make: impl Fn() -> W) -> u64 {
    let rounds = std::env::var(ROUNDS).ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1);
    let calm = Disk::new(0);
    run(&calm, &mut make()).await;
    let mut points = 0;
    for round in 0..rounds {
        for change in 0..calm.changes() {
            for fault in [Fault::PowerLoss, Fault::Error] {
                let disk = Disk::new(round << 32 | change);
                disk.fail_at(change, fault);
                run(&disk, &mut make()).await;
                points += 1;
            }
        }
    }
    points
}

/// Runs a workload with a check after each step. When the store cannot be read, the disk is restarted and the store reopened.
pub(crate) async fn run(disk: &Disk, workload: &mut impl Workload) {
    let mut store = disk.store();
    let mut more = true;
    while more {
        more = workload.step(&store).await;
        if !disk.has_power() || workload.check(&store).is_err() {
            drop(store);
            disk.restart();
            store = disk.store();
            workload.check(&store).expect("a disk that works can be read");
        }
    }
    drop(store);
    disk.restart();
    workload.check(&disk.store()).expect("a disk that works can be read");
}
