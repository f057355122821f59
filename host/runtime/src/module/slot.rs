//! A slot is the place of a module in its cage. It holds the current version and the last reason for which a file was refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::Serialize;

use super::version::Version;
use wasmcage_config::InstanceMode;
use wasmcage_core::admission::{AdmissionError, EntryKind, Permit};
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings::{Outcome, Readings, ReadingsSnapshot};
use wasmcage_core::request::Deadline;
use wasmcage_core::telemetry;

pub struct Slot {
    pub name: Arc<str>,
    pub readings: Readings,
    current: ArcSwapOption<Version>,
    /// The number of versions made so far.
    versions: AtomicU64,
    refusal: Mutex<Option<String>>,
    /// Is true while a file of the module is being loaded.
    loading: AtomicBool,
    /// Is true once a file for the module has been found since the cage started.
    file_found: AtomicBool,
}

impl Slot {
    pub fn new(name: Arc<str>) -> Self {
        Self {
            name,
            readings: Readings::default(),
            current: ArcSwapOption::empty(),
            versions: AtomicU64::new(0),
            refusal: Mutex::default(),
            loading: AtomicBool::new(false),
            file_found: AtomicBool::new(false),
        }
    }

    pub fn current(&self) -> Option<Arc<Version>> {
        self.current.load_full()
    }

    /// Notes that a file for the module has been found. From now on a request that no version can serve is work that is turned
    /// away, even if the file is still being compiled, was refused or was removed again.
    pub fn note_file(&self) {
        self.file_found.store(true, Ordering::Relaxed);
    }

    /// Returns true if the module has had a file since the cage started.
    pub fn has_had_file(&self) -> bool {
        self.file_found.load(Ordering::Relaxed)
    }

    pub fn next_number(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Makes `version` the current one, or removes the module if it is `None`. Calls in flight finish on the old version, which
    /// is dropped afterwards.
    pub fn swap(&self, version: Option<Arc<Version>>) {
        let old = self.current.swap(version);
        *self.refusal.lock() = None;
        if let Some(old) = old {
            if old.mode == InstanceMode::Single {
                old.close();
            }
            old.retire();
        }
    }

    /// Stores the reason for which a file was refused, until a version is taken. Returns true if the reason has changed.
    pub fn refuse(&self, reason: String) -> bool {
        let mut refusal = self.refusal.lock();
        let is_new = refusal.as_ref() != Some(&reason);
        *refusal = Some(reason);
        is_new
    }

    /// Returns the reason for which the module's present file was refused.
    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().clone()
    }

    /// Returns whether a file of the module is being loaded.
    pub fn is_loading(&self) -> bool {
        self.loading.load(Ordering::Relaxed)
    }

    pub fn set_loading(&self, loading: bool) {
        self.loading.store(loading, Ordering::Relaxed);
    }

    /// Returns true if the module's present file was refused.
    pub fn refused(&self) -> bool {
        self.refusal.lock().is_some()
    }

    /// Clears the refusal, because the current version was made of the module's present file.
    pub fn confirm(&self) {
        *self.refusal.lock() = None;
    }

    /// Waits for a place with `version`, or with its successor when its only instance has handed over meanwhile.
    ///
    /// # Errors
    /// Returns the errors of `Version::enter`, or `NoSuchModule` when the module has been removed meanwhile.
    pub async fn enter(
        &self,
        version: Arc<Version>,
        entry: EntryKind,
        deadline: Deadline,
    ) -> Result<(Arc<Version>, Permit), DispatchError> {
        let mut version = version;
        loop {
            match version.enter(entry, deadline).await {
                Ok(place) => return Ok((version, place)),
                Err(AdmissionError::Closed) => {
                    version = self.current().ok_or_else(|| DispatchError::NoSuchModule(self.name.to_string()))?;
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    pub fn snapshot(&self) -> ModuleSnapshot {
        let current = self.current();
        ModuleSnapshot {
            module: self.name.to_string(),
            version: current.as_ref().map(|version| VersionSnapshot {
                number: version.number,
                sha256: version.hash.to_string(),
                loaded: telemetry::utc(version.loaded),
                engine: version.engine().name(),
                mode: version.mode,
                instances: version.instances(),
                functions: version.callable_functions(),
            }),
            refused: self.refusal.lock().clone(),
            traps: self.readings.count(Outcome::Trapped),
            readings: self.readings.snapshot(),
        }
    }
}

/// The state of a module, as an operator sees it.
#[derive(Debug, Serialize)]
pub struct ModuleSnapshot {
    pub module: String,
    /// The version that serves, if there is one.
    pub version: Option<VersionSnapshot>,
    /// The reason for which the module's present file was refused, if it was.
    pub refused: Option<String>,
    pub traps: u64,
    pub readings: ReadingsSnapshot,
}

#[derive(Debug, Serialize)]
pub struct VersionSnapshot {
    pub number: u64,
    pub sha256: String,
    /// The time at which it was made, in UTC, as in RFC 3339.
    pub loaded: String,
    pub engine: &'static str,
    pub mode: InstanceMode,
    pub instances: usize,
    /// The names by which its functions can be called, sorted.
    pub functions: Vec<String>,
}
