//! Watches a cage's directory and the shared one, and loads the files that change there. Notifications report changes at once;
//! a slow poll finds those that they miss (network file systems, targets of symlinks). A file is read when it has settled, and
//! loaded only when its hash or the module's settings differ from those of the version that serves. A load that failed for a
//! reason outside the file is tried again.

mod load;
mod look;
mod notifications;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use self::load::{Examined, Then};
use self::look::{Look, Sighting};
use self::notifications::{Change, Notifications};
use super::Modules;
use super::loader::Loader;
use super::retry::Retry;
use super::slot::Slot;
use crate::dispatcher::WeakDispatcher;
use crate::services::Services;
use wasmcage_config as config;
use wasmcage_config::{Binding, CageConfig, ConfigSignal};
use wasmcage_core::telemetry::LevelCell;

pub use self::look::{ignored, module_name};

/// The interval at which the directories are listed.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The time after which a change that the poll has found is acted on; a file that is gone may be about to be replaced.
const SETTLE_FOUND: Duration = Duration::from_secs(1);
/// The largest number of loads in flight in one cage. Each stage of a load has lower limits, which all cages share.
const LOADS_MAX: usize = 256;

/// The cage that a watcher works for, with its directories and settings.
pub struct Watched {
    pub directory: PathBuf,
    pub shared: PathBuf,
    pub config: Arc<ArcSwap<CageConfig>>,
    pub modules: Arc<Modules>,
    pub loader: Arc<Loader>,
    pub services: Services,
    pub dispatcher: WeakDispatcher,
    pub level: Arc<LevelCell>,
    /// Is notified when a `cage.toml` changes.
    pub config_signal: Arc<ConfigSignal>,
    /// Is notified when modules must be examined again because their settings have changed.
    pub settings_changed: Arc<Notify>,
    /// The problem with the directory of compiled files that was logged last.
    pub cache_problem: Mutex<Option<String>>,
}

pub struct Watcher {
    watched: Arc<Watched>,
    /// The file of each module as it was last examined.
    seen: HashMap<String, Sighting>,
    /// The time at which to examine each module's file.
    due: HashMap<String, Instant>,
    /// The modules of `due` whose file has the same stamp as before, but might have changed all the same.
    doubted: BTreeSet<String>,
    /// The last pause before each failed load was tried again.
    pauses: HashMap<String, Duration>,
    loading: HashMap<tokio::task::Id, String>,
    loads: JoinSet<Examined>,
    look: Option<JoinHandle<Look>>,
    ignored: BTreeMap<PathBuf, &'static str>,
    /// Receives the modules of all cages that get a new version.
    news: broadcast::Receiver<(Arc<str>, Arc<str>)>,
    notifications: Option<Notifications>,
}

impl Watcher {
    pub fn new(watched: Arc<Watched>) -> Self {
        Self {
            news: watched.loader.news(),
            watched,
            seen: HashMap::new(),
            due: HashMap::new(),
            doubted: BTreeSet::new(),
            pauses: HashMap::new(),
            loading: HashMap::new(),
            loads: JoinSet::new(),
            look: None,
            ignored: BTreeMap::new(),
            notifications: None,
        }
    }

    /// Loads all modules, for up to `timeout`. Those that take longer are loaded by `run`.
    pub async fn load_all(&mut self, timeout: Duration) {
        let until = Instant::now() + timeout;
        self.start_look();
        while self.look.is_some() || !(self.due.is_empty() && self.loads.is_empty()) {
            self.start_due();
            tokio::select! {
                look = next_look(&mut self.look) => self.take_look(look, Duration::ZERO),
                (id, examined) = next_load(&mut self.loads) => self.finish(id, examined),
                () = sleep_until(until) => return,
            }
            // Failed loads that are to be tried again later are not waited for.
            if self.look.is_none() && self.loads.is_empty() && self.due.values().all(|due| *due > Instant::now()) {
                return;
            }
        }
    }

    /// Watches until its future is dropped.
    pub async fn run(mut self) {
        let mut poll = Instant::now() + POLL_INTERVAL;
        loop {
            self.start_due();
            let room = self.loads.len() < LOADS_MAX;
            let next = self.due.iter().filter(|(name, _)| !self.is_loading(name)).map(|(_, due)| *due).min();
            let wake = next.filter(|_| room).map_or(poll, |due| due.min(poll));
            let settings_changed = self.watched.settings_changed.clone();
            tokio::select! {
                event = next_event(&mut self.notifications) => self.on_event(&event),
                (id, examined) = next_load(&mut self.loads) => self.finish(id, examined),
                look = next_look(&mut self.look) => self.take_look(look, SETTLE_FOUND),
                () = settings_changed.notified() => self.mark_changed_settings(),
                news = self.news.recv() => self.mark_bound(news.ok()),
                () = sleep_until(wake) => {}
            }
            if Instant::now() >= poll {
                poll = Instant::now() + POLL_INTERVAL;
                self.start_look();
            }
        }
    }

    fn is_loading(&self, name: &str) -> bool {
        self.loading.values().any(|loading| loading == name)
    }

    /// Makes a module's file due at the time `at`, unless it is due earlier.
    fn mark(&mut self, name: &str, at: Instant) {
        self.doubted.remove(name);
        self.due.entry(name.to_owned()).and_modify(|due| *due = at.min(*due)).or_insert(at);
    }

    /// Notes in the slot that there is a file, before it is read.
    fn note_file(&self, name: &str) {
        let modules = &self.watched.modules;
        if !modules.get(name).is_some_and(|slot| slot.has_had_file()) {
            modules.get_or_create(name).note_file();
        }
    }

    fn on_event(&mut self, event: &notify::Event) {
        let Some(change) = Change::of(event.kind) else { return };
        for path in &event.paths {
            if path.file_name().is_some_and(|name| name == config::FILE_NAME) {
                self.watched.config_signal.send(change != Change::Writing);
            } else if let Some(name) = module_name(path) {
                self.note_file(&name);
                // The latest event tells best whether the file is complete.
                self.doubted.remove(&name);
                self.due.insert(name, Instant::now() + change.settle());
            }
        }
        if self.notifications.as_ref().is_some_and(Notifications::overflowed) {
            self.start_look();
        }
    }

    /// Starts to list the directories, to find all files that differ from those last seen and directories that are not yet
    /// watched. Only one such task runs at a time, as it may hang.
    fn start_look(&mut self) {
        if self.look.is_none() {
            let (watched, known) = (self.watched.clone(), self.notifications.as_ref().map(|known| known.inodes));
            self.look = Some(tokio::task::spawn_blocking(move || Look::take(watched.directories(), known)));
        }
    }

    fn take_look(&mut self, look: Look, settle: Duration) {
        match look.notifications {
            Some(Ok(notifications)) => self.notifications = Some(notifications),
            Some(Err(error)) => {
                self.notifications = None;
                let cage = self.watched.cage();
                tracing::debug!(%cage, %error, "no notifications of file changes, the directory is polled");
            }
            None => {}
        }
        for (path, reason) in look.ignored.iter().filter(|(path, _)| !self.ignored.contains_key(*path)) {
            let (cage, file) = (self.watched.cage(), path.file_name().unwrap_or_default());
            tracing::warn!(%cage, ?file, reason, "file ignored");
        }
        self.ignored = look.ignored;
        let now = Instant::now();
        for (name, sighting) in &look.modules {
            self.note_file(name);
            match self.seen.get(name) {
                Some(seen) if seen.is_like(sighting) && seen.is_sure => {}
                Some(seen) if seen.is_like(sighting) => {
                    if !self.due.contains_key(name) {
                        self.due.insert(name.clone(), now);
                        self.doubted.insert(name.clone());
                    }
                }
                // The file of a load that waits to be tried again has changed, so it becomes due earlier.
                Some(_) if self.pauses.remove(name).is_some() => self.mark(name, now + settle),
                // A time that a notification has set stays, because it tells better when the file is complete.
                Some(_) | None => {
                    self.due.entry(name.clone()).or_insert(now + settle);
                }
            }
        }
        let gone = self.seen.keys().filter(|name| !look.modules.contains_key(*name));
        let gone: Vec<_> = gone.filter(|_| look.is_whole).cloned().collect();
        for name in gone {
            self.due.entry(name).or_insert(now + settle);
        }
    }

    fn mark_changed_settings(&mut self) {
        let now = Instant::now();
        for slot in self.watched.modules.all() {
            let settings = self.watched.config.load().module(&slot.name);
            // A file that was refused may be accepted with other settings, and one that is being loaded may have the old ones.
            let differs = slot.current().is_some_and(|version| version.home.settings != settings);
            if differs || slot.refused() || self.is_loading(&slot.name) {
                self.mark(&slot.name, now);
            }
        }
    }

    /// Makes refused files due again whose module is bound to the module in `news`, or to any if `news` is `None`.
    fn mark_bound(&mut self, news: Option<(Arc<str>, Arc<str>)>) {
        let config = self.watched.config.load_full();
        for slot in self.watched.modules.all().into_iter().filter(|slot| slot.refused()) {
            let concerns = |binding: &Binding| {
                let cage = binding.target.cage.as_ref().unwrap_or(&config.cage);
                news.as_ref().is_none_or(|(changed, module)| **changed == **cage && **module == *binding.target.module)
            };
            if config.modules.get(&*slot.name).is_some_and(|module| module.imports.iter().any(concerns)) {
                self.mark(&slot.name, Instant::now());
            }
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        let mut ready: Vec<_> = self.due.iter().filter(|(_, due)| **due <= now).map(|(name, _)| name.clone()).collect();
        ready.retain(|name| !self.is_loading(name));
        ready.truncate(LOADS_MAX.saturating_sub(self.loads.len()));
        for name in ready {
            self.due.remove(&name);
            let known = match self.doubted.remove(&name) {
                true => self.seen.get(&name).and_then(|seen| seen.hash),
                false => None,
            };
            let (watched, examined) = (self.watched.clone(), name.clone());
            let load = self.loads.spawn(async move { watched.examine(&examined, known).await });
            self.loading.insert(load.id(), name);
        }
    }

    fn finish(&mut self, id: tokio::task::Id, examined: Option<Examined>) {
        let Some(name) = self.loading.remove(&id) else { return };
        let examined = examined.unwrap_or(Examined { sighting: None, then: Then::Again(Retry::Soon) });
        match examined.sighting {
            Some(sighting) => drop(self.seen.insert(name.clone(), sighting)),
            None if examined.then == Then::Remove => drop(self.seen.remove(&name)),
            None => {}
        }
        match examined.then {
            Then::Nothing => drop(self.pauses.remove(&name)),
            Then::Remove => {
                self.pauses.remove(&name);
                self.remove(&name);
            }
            Then::Again(retry) => match retry.pause(self.pauses.get(&name).copied()) {
                Some(pause) => {
                    self.pauses.insert(name.clone(), pause);
                    self.mark(&name, Instant::now() + pause);
                }
                None => drop(self.pauses.remove(&name)),
            },
        }
    }

    fn remove(&self, name: &str) {
        let removed = |slot: &Arc<Slot>| slot.current().is_some() || slot.refused();
        if let Some(slot) = self.watched.modules.get(name).filter(removed) {
            slot.swap(None);
            tracing::info!(cage = %self.watched.cage(), module = %name, "module removed");
        }
    }
}

impl Watched {
    fn cage(&self) -> String {
        self.config.load().cage.clone()
    }

    fn directories(&self) -> [&Path; 2] {
        [&self.directory, &self.shared]
    }
}

/// Waits for a load to end, and returns `None` for its result if it panicked.
async fn next_load(loads: &mut JoinSet<Examined>) -> (tokio::task::Id, Option<Examined>) {
    match loads.join_next_with_id().await {
        Some(Ok((id, examined))) => (id, Some(examined)),
        Some(Err(error)) => (error.id(), None),
        // Without loads in flight this never ends.
        None => std::future::pending().await,
    }
}

async fn next_look(look: &mut Option<JoinHandle<Look>>) -> Look {
    let Some(handle) = look else { return std::future::pending().await };
    let taken = handle.await;
    *look = None;
    taken.expect("looking at directories does not panic")
}

async fn next_event(notifications: &mut Option<Notifications>) -> notify::Event {
    match notifications {
        Some(notifications) => notifications.next().await,
        None => std::future::pending().await,
    }
}
