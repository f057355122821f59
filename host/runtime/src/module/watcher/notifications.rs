//! Receives the operating system's notifications of changes in the watched directories.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// The largest number of waiting notifications; if more arrive, all directories are listed instead.
const EVENTS_MAX: usize = 1_024;
/// The time that a file must be left alone after a rename, or after its writer has closed it.
const SETTLE_COMPLETE: Duration = Duration::from_millis(10);
/// The time that a file must be left alone after a write; usually its writer closes it earlier, which is reported too.
const SETTLE_WRITING: Duration = Duration::from_millis(500);
/// The time that a file must stay away after a removal, since many programs replace a file by removing it first.
const SETTLE_GONE: Duration = Duration::from_secs(1);

/// The inodes of the watched directories, which tell when another directory has taken the name of one.
pub(super) type Inodes = [Option<u64>; 2];

pub(super) struct Notifications {
    _watcher: RecommendedWatcher,
    events: mpsc::Receiver<Event>,
    overflow: Arc<AtomicBool>,
    pub(super) inodes: Inodes,
}

impl Notifications {
    /// Starts to watch the directories. Blocks.
    ///
    /// # Errors
    /// Returns an error when the operating system gives no notifications, or no more of them. The poll still finds changes.
    pub(super) fn start(directories: [&Path; 2]) -> notify::Result<Self> {
        let (event_tx, events) = mpsc::channel(EVENTS_MAX);
        let overflow = Arc::new(AtomicBool::new(false));
        let overflowed = overflow.clone();
        let inodes = inodes(directories);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let taken = event.is_ok_and(|event| event_tx.try_send(event).is_ok());
            if !taken {
                overflowed.store(true, Ordering::Relaxed);
            }
        })?;
        let [own, shared] = directories;
        watcher.watch(own, RecursiveMode::NonRecursive)?;
        if shared.is_dir() {
            watcher.watch(shared, RecursiveMode::NonRecursive)?;
        }
        Ok(Self { _watcher: watcher, events, overflow, inodes })
    }

    pub(super) async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Returns true if notifications were lost since the last call.
    pub(super) fn overflowed(&self) -> bool {
        self.overflow.swap(false, Ordering::Relaxed)
    }
}

pub(super) fn inodes(directories: [&Path; 2]) -> Inodes {
    directories.map(|directory| Some(fs::metadata(directory).ok()?.ino()))
}

/// The kind of change that an event reports for its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The file is being written.
    Writing,
    /// The file is complete.
    Complete,
    Gone,
}

impl Change {
    /// Returns the change, or `None` when nothing has changed.
    pub(super) fn of(kind: EventKind) -> Option<Self> {
        match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Self::Complete),
            EventKind::Access(_) => None,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Some(Self::Gone),
            EventKind::Modify(ModifyKind::Name(_)) => Some(Self::Complete),
            EventKind::Create(_) | EventKind::Modify(_) | EventKind::Any | EventKind::Other => Some(Self::Writing),
        }
    }

    /// Returns how long a module's file must be left alone from now on before it is read.
    pub(super) fn settle(self) -> Duration {
        match self {
            Self::Writing => SETTLE_WRITING,
            Self::Complete => SETTLE_COMPLETE,
            Self::Gone => SETTLE_GONE,
        }
    }
}
