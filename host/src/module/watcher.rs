//! Watches a cage's directory and the shared one; turns what happens there into loads. Notifications tell quickly, a slow
//! poll finds what they miss (network file systems, targets of symlinks). A file is read when it has settled, and a load
//! happens only when the content's hash, or the module's settings, differ from what serves.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Modules;
use super::compiler::{COMPONENT_BYTES_MAX, ContentHash};
use super::loader::Loader;
use super::slot::Slot;
use crate::config::{self, Binding, CageConfig};
use crate::dispatcher::WeakDispatcher;
use crate::host_api::Home;
use crate::telemetry::{self, LevelCell};

/// After a rename, a removal, or a writer's close.
const SETTLE_CLOSED: Duration = Duration::from_millis(10);
/// After a write by somebody who has the file open: the close that follows is the sign to wait for.
const SETTLE_WRITING: Duration = Duration::from_millis(500);
/// Between two looks at the directories themselves.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Notifications not yet looked at; more than that are replaced by one look at everything.
const EVENTS_MAX: usize = 1_024;
/// Loads under way in one cage.
const LOADS_MAX: usize = 4;

/// What a watcher works for.
pub struct Watched {
    pub directory: PathBuf,
    pub shared: PathBuf,
    pub config: Arc<ArcSwap<CageConfig>>,
    pub modules: Arc<Modules>,
    pub loader: Arc<Loader>,
    pub dispatcher: WeakDispatcher,
    pub level: Arc<LevelCell>,
    /// Told when a `cage.toml` may have changed.
    pub config_changed: Arc<Notify>,
    /// Told when modules must be looked at again because their settings changed.
    pub settings_changed: Arc<Notify>,
}

/// A file as last seen, without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fingerprint {
    path: PathBuf,
    bytes: u64,
    modified: (i64, i64),
    inode: u64,
}

pub struct Watcher {
    watched: Arc<Watched>,
    seen: HashMap<String, Fingerprint>,
    /// When to look at a module's file.
    due: HashMap<String, Instant>,
    loading: BTreeSet<String>,
    loads: JoinSet<String>,
    /// Modules of all cages that have a new version.
    news: broadcast::Receiver<(Arc<str>, Arc<str>)>,
    notifications: Option<Notifications>,
}

/// The operating system's notifications, while they work.
struct Notifications {
    _watcher: RecommendedWatcher,
    events: mpsc::Receiver<notify::Event>,
    overflow: Arc<AtomicBool>,
    /// Of the watched directories, to notice when one is replaced.
    inodes: [Option<u64>; 2],
}

impl Watcher {
    pub fn new(watched: Watched) -> Self {
        let watched = Arc::new(watched);
        let notifications = Notifications::start(&watched);
        Self {
            news: watched.loader.news(),
            watched,
            seen: HashMap::new(),
            due: HashMap::new(),
            loading: BTreeSet::new(),
            loads: JoinSet::new(),
            notifications,
        }
    }

    /// Loads everything that is there, up to `patience`; what takes longer is loaded by `run`.
    pub async fn load_all(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        self.scan(Duration::ZERO);
        while !(self.due.is_empty() && self.loads.is_empty()) {
            self.start_due();
            match tokio::time::timeout_at(until, next_load(&mut self.loads)).await {
                Ok(name) => self.loading.remove(&name),
                Err(_) => return,
            };
        }
    }

    /// Until its future is dropped.
    pub async fn run(mut self) {
        let mut poll = Instant::now() + POLL_INTERVAL;
        loop {
            self.start_due();
            let room = self.loads.len() < LOADS_MAX;
            let next = self.due.iter().filter(|(name, _)| !self.loading.contains(*name)).map(|(_, due)| *due).min();
            let wake = next.filter(|_| room).map_or(poll, |due| due.min(poll));
            let settings_changed = self.watched.settings_changed.clone();
            tokio::select! {
                event = next_event(&mut self.notifications) => self.on_event(&event),
                name = next_load(&mut self.loads) => { self.loading.remove(&name); }
                () = settings_changed.notified() => self.mark_changed_settings(),
                news = self.news.recv() => self.mark_bound(news.ok()),
                () = sleep_until(wake) => {}
            }
            if Instant::now() >= poll {
                poll = Instant::now() + POLL_INTERVAL;
                self.rescan();
            }
        }
    }

    fn on_event(&mut self, event: &notify::Event) {
        let settle = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => SETTLE_CLOSED,
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => SETTLE_CLOSED,
            EventKind::Create(_) | EventKind::Modify(_) => SETTLE_WRITING,
            EventKind::Access(_) => return,
            EventKind::Any | EventKind::Other => SETTLE_WRITING,
        };
        for path in &event.paths {
            if path.file_name().is_some_and(|name| name == config::FILE_NAME) {
                self.watched.config_changed.notify_one();
            } else if let Some(name) = module_name(path) {
                self.due.insert(name, Instant::now() + settle);
            }
        }
        if let Some(notifications) = &self.notifications
            && notifications.overflow.swap(false, Ordering::Relaxed)
        {
            self.scan(SETTLE_WRITING);
        }
    }

    /// The slow look: everything that differs from what was last seen, and directories that are not the ones watched.
    fn rescan(&mut self) {
        let replaced = self.notifications.as_ref().is_none_or(|known| known.inodes != inodes(&self.watched));
        if replaced {
            self.notifications = Notifications::start(&self.watched);
        }
        self.watched.config_changed.notify_one();
        self.scan(SETTLE_WRITING);
    }

    fn scan(&mut self, settle: Duration) {
        let mut present = BTreeSet::new();
        for directory in [&self.watched.directory, &self.watched.shared] {
            // A directory that is not there, or not readable now, has no modules.
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            present.extend(entries.filter_map(|entry| module_name(&entry.path())));
        }
        let now = Instant::now();
        let gone = self.seen.keys().filter(|name| !present.contains(*name));
        let changed = present.iter().filter(|name| self.watched.fingerprint(name).as_ref() != self.seen.get(*name));
        let names: Vec<String> = gone.chain(changed).cloned().collect();
        for name in names {
            // A notification has told already, and knows better when the file is complete.
            self.due.entry(name).or_insert(now + settle);
        }
    }

    fn mark_changed_settings(&mut self) {
        for slot in self.watched.modules.all() {
            let settings = self.watched.config.load().module(&slot.name);
            // A file that was refused may be taken with other settings.
            if slot.refused() || slot.current().is_some_and(|version| version.home.settings != settings) {
                self.due.entry(slot.name.to_string()).or_insert_with(Instant::now);
            }
        }
    }

    /// A file that was refused may be taken now that a module which it is bound to has another version; with none, any.
    fn mark_bound(&mut self, news: Option<(Arc<str>, Arc<str>)>) {
        let config = self.watched.config.load();
        for slot in self.watched.modules.all().into_iter().filter(|slot| slot.refused()) {
            let concerns = |binding: &Binding| {
                let cage = binding.target.cage.as_ref().unwrap_or(&config.cage);
                news.as_ref().is_none_or(|(changed, module)| **changed == **cage && **module == *binding.target.module)
            };
            if config.modules.get(&*slot.name).is_some_and(|module| module.imports.iter().any(concerns)) {
                self.due.entry(slot.name.to_string()).or_insert_with(Instant::now);
            }
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        let mut ready: Vec<_> = self.due.iter().filter(|(_, due)| **due <= now).map(|(name, _)| name.clone()).collect();
        ready.retain(|name| !self.loading.contains(name));
        ready.truncate(LOADS_MAX.saturating_sub(self.loads.len()));
        for name in ready {
            self.due.remove(&name);
            self.examine(name);
        }
    }

    fn examine(&mut self, name: String) {
        let slot = match self.watched.fingerprint(&name) {
            Some(fingerprint) => {
                self.seen.insert(name.clone(), fingerprint.clone());
                let slot = self.watched.modules.get_or_create(&name);
                self.loading.insert(name.clone());
                let watched = self.watched.clone();
                self.loads.spawn(async move {
                    watched.load(&slot, fingerprint).await;
                    name
                });
                return;
            }
            None => self.watched.modules.get(&name),
        };
        self.seen.remove(&name);
        if let Some(slot) = slot.filter(|slot| slot.current().is_some() || slot.refused()) {
            slot.swap(None);
            tracing::info!(cage = %self.watched.cage(), module = %name, "module removed");
        }
    }
}

impl Watched {
    fn cage(&self) -> String {
        self.config.load().cage.clone()
    }

    /// The module's file: the private one, or the shared one.
    fn fingerprint(&self, name: &str) -> Option<Fingerprint> {
        [&self.directory, &self.shared].into_iter().find_map(|directory| {
            let path = directory.join(format!("{name}.wasm"));
            let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
            Some(Fingerprint {
                path,
                bytes: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                inode: metadata.ino(),
            })
        })
    }

    async fn load(&self, slot: &Slot, fingerprint: Fingerprint) {
        let (cage, module, file) = (self.cage(), &*slot.name, fingerprint.path.display());
        let begun = Instant::now();
        let path = fingerprint.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await.expect("reading a file does not panic");
        let (wasm, hash) = match read {
            Ok(read) => read,
            Err(error) => {
                let error = format!("cannot read {file}: {error}");
                tracing::error!(%cage, %module, %error, "module refused");
                return slot.refuse(error);
            }
        };
        let (settings, timeout) = {
            let config = self.config.load();
            (config.module(module), config.request_timeout)
        };
        let serving = slot.current();
        if serving.as_ref().is_some_and(|version| version.hash == hash && version.home.settings == settings) {
            return slot.confirm();
        }
        let timeout = settings.timeout.unwrap_or(timeout);
        let home =
            Home::new(cage.as_str().into(), slot.name.clone(), settings, self.dispatcher.clone(), self.level.clone());
        let home = Arc::new(home);
        match self.loader.load(slot, home.clone(), hash, wasm, timeout).await {
            Ok((version, predecessor)) => {
                let number = version.number;
                slot.swap(Some(version));
                drop(predecessor);
                self.loader.tell(&home);
                let sha256 = format!("{hash:.12}");
                let elapsed_ms = begun.elapsed().as_millis() as u64;
                tracing::info!(%cage, %module, version = number, %sha256, elapsed_ms, "module loaded");
            }
            Err(error) => {
                let error = format!("{file}: {}", telemetry::error_chain(&error));
                let serving = serving.map_or_else(|| "none".to_owned(), |version| version.number.to_string());
                tracing::error!(%cage, %module, %error, version_serving = %serving, "module refused");
                slot.refuse(error);
            }
        }
    }
}

impl Notifications {
    /// None when the operating system has none to give, or no more of them: the poll finds changes all the same.
    fn start(watched: &Watched) -> Option<Self> {
        let (event_tx, events) = mpsc::channel(EVENTS_MAX);
        let overflow = Arc::new(AtomicBool::new(false));
        let overflowed = overflow.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let taken = event.is_ok_and(|event| event_tx.try_send(event).is_ok());
            if !taken {
                overflowed.store(true, Ordering::Relaxed);
            }
        });
        let watch = |mut watcher: RecommendedWatcher| -> notify::Result<RecommendedWatcher> {
            watcher.watch(&watched.directory, RecursiveMode::NonRecursive)?;
            if watched.shared.is_dir() {
                watcher.watch(&watched.shared, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        };
        match watcher.and_then(watch) {
            Ok(watcher) => Some(Self { _watcher: watcher, events, overflow, inodes: inodes(watched) }),
            Err(error) => {
                let cage = watched.cage();
                tracing::debug!(%cage, %error, "no notifications of file changes, the directory is polled");
                None
            }
        }
    }
}

/// The name of a module whose load has ended.
async fn next_load(loads: &mut JoinSet<String>) -> String {
    loop {
        match loads.join_next().await {
            Some(Ok(name)) => return name,
            Some(Err(error)) => tracing::error!(%error, "a load panicked"),
            // Nothing under way: wait for something else.
            None => std::future::pending().await,
        }
    }
}

async fn next_event(notifications: &mut Option<Notifications>) -> notify::Event {
    match notifications {
        Some(notifications) => match notifications.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn inodes(watched: &Watched) -> [Option<u64>; 2] {
    [&watched.directory, &watched.shared].map(|directory| Some(fs::metadata(directory).ok()?.ino()))
}

/// `work` for `work.wasm`; dot-files and other files are no modules.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".wasm")?;
    config::is_name(name).then(|| name.to_owned())
}

fn read(path: &Path) -> io::Result<(Arc<Vec<u8>>, ContentHash)> {
    let file = fs::File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes > COMPONENT_BYTES_MAX {
        return Err(io::Error::other(format!("it has {bytes} bytes, at most {COMPONENT_BYTES_MAX} are loaded")));
    }
    let mut wasm = Vec::with_capacity(bytes as usize);
    file.take(COMPONENT_BYTES_MAX).read_to_end(&mut wasm)?;
    let hash = ContentHash::of(&wasm);
    Ok((Arc::new(wasm), hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Option<&str>) {
        assert_eq!(module_name(Path::new(path)).as_deref(), expected);
    }

    #[test]
    fn only_plain_wasm_files_are_modules() {
        check("/cages/runner/work.wasm", Some("work"));
        check("interface_my_http.wasm", Some("interface_my_http"));
        check(".work.wasm", None);
        check("work.wasm.part", None);
        check("cage.toml", None);
        check(".wasm", None);
        check("a b.wasm", None);
    }
}
