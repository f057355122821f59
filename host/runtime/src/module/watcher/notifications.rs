//! The operating system's notifications of changes in the watched directories, while it gives any.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// Notifications not yet looked at; more than that are replaced by one look at everything.
const EVENTS_MAX: usize = 1_024;
/// How long a file must be left alone after a rename, or after its writer has closed it.
const SETTLE_COMPLETE: Duration = Duration::from_millis(10);
/// After a write by somebody who has the file open: the close that follows is the sign to wait for.
const SETTLE_WRITING: Duration = Duration::from_millis(500);
/// After a removal: many replace a file by removing it first.
const SETTLE_GONE: Duration = Duration::from_secs(1);

/// Which directories are watched, by their inodes: another one may have taken a name.
pub(super) type Inodes = [Option<u64>; 2];

pub(super) struct Notifications {
    _watcher: RecommendedWatcher,
    events: mpsc::Receiver<Event>,
    overflow: Arc<AtomicBool>,
    pub(super) inodes: Inodes,
}

impl Notifications {
    /// Blocks, as everything that looks at directories.
    ///
    /// # Errors
    /// When the operating system has none to give, or no more of them: the poll finds changes all the same.
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

    /// Whether notifications were lost since this was last asked.
    pub(super) fn overflowed(&self) -> bool {
        self.overflow.swap(false, Ordering::Relaxed)
    }
}

pub(super) fn inodes(directories: [&Path; 2]) -> Inodes {
    directories.map(|directory| Some(fs::metadata(directory).ok()?.ino()))
}

/// What an event says about the files that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Somebody writes.
    Writing,
    /// What is there is whole.
    Complete,
    Gone,
}

impl Change {
    /// None when nothing has changed.
    pub(super) fn of(kind: EventKind) -> Option<Self> {
        match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Self::Complete),
            EventKind::Access(_) => None,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Some(Self::Gone),
            EventKind::Modify(ModifyKind::Name(_)) => Some(Self::Complete),
            EventKind::Create(_) | EventKind::Modify(_) | EventKind::Any | EventKind::Other => Some(Self::Writing),
        }
    }

    /// How long a module's file must be left alone from now on.
    pub(super) fn settle(self) -> Duration {
        match self {
            Self::Writing => SETTLE_WRITING,
            Self::Complete => SETTLE_COMPLETE,
            Self::Gone => SETTLE_GONE,
        }
    }
}
