//! `wasmcage dev`: does what `run` does, and has a thread that builds a module again when its source changes. The running
//! cage loads the new module as any other.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use clap::Args;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use wasmcage_config::{FILE_NAME, SHARED_DIRECTORY};
use wasmcage_core::telemetry::error_chain;

use super::build::{self, BuildPlan};
use super::run::StartArgs;
use super::{CommandError, progress};
use crate::supervisor;

/// A build begins when nothing has changed for this time, since editors write a file in several steps.
const SETTLE_DELAY: Duration = Duration::from_millis(100);

/// Run cages, and rebuild their modules when sources change
///
/// Watches the `source` of every module in cage.toml, path dependencies included. When a build fails, the old module
/// serves on.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage dev hello
  wasmcage dev runner worker")]
pub(super) struct DevArgs {
    #[command(flatten)]
    start: StartArgs,
}

impl DevArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let (options, locks) = self.start.prepare()?;
        let root = options.directories.root.clone();
        let (changed_tx, changed) = mpsc::channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Ok(event) = event {
                let paths = event.paths.into_iter().filter(|_| !event.kind.is_access());
                // The builder receives until the process ends.
                paths.for_each(|path| drop(changed_tx.send(path)));
            }
        });
        let watcher = watcher.map_err(|error| CommandError::failed("cannot watch sources for changes", error))?;
        // Notifications have the paths that were given to the watcher, and sources are given by their real paths.
        let real_root = root.canonicalize().unwrap_or_else(|_| root.clone());
        let mut builder =
            Builder { root: root.clone(), real_root, cages: options.cages.clone(), watcher, watched: Vec::new() };
        // Started before the first build, so that no change is missed.
        builder.watch(&BuildPlan::of(&root, &options.cages)?)?;
        build::before_start(&root, &options.cages)?;
        let thread = std::thread::Builder::new().name("builder".into());
        let started = thread.spawn(move || builder.run(&changed));
        started.map_err(|error| CommandError::failed("cannot start the thread that builds", error))?;
        Ok(supervisor::supervise(&options, locks)?)
    }
}

struct Builder {
    root: PathBuf,
    /// The root without symbolic links.
    real_root: PathBuf,
    cages: Vec<String>,
    watcher: RecommendedWatcher,
    /// Watched directories, each with the source that it belongs to; none for directories of the configuration.
    watched: Vec<(PathBuf, Option<PathBuf>)>,
}

impl Builder {
    fn run(mut self, changed: &Receiver<PathBuf>) {
        while let Some(paths) = settled(changed, |path| self.concerned(path)) {
            self.rebuild(&paths);
        }
    }

    /// The cages of the root write their stores, logs and compiled files; a source directory may contain the root, and
    /// the file that this process's own output goes to. None of these is a source.
    fn concerned(&self, path: &Path) -> bool {
        if is_own_output(path) {
            return false;
        }
        let within_root = path.starts_with(&self.real_root);
        self.watched.iter().any(|(directory, source)| {
            let Ok(name) = path.strip_prefix(directory) else { return false };
            match source {
                None => name == Path::new(FILE_NAME),
                Some(_) => (!within_root || directory.starts_with(&self.real_root)) && concerns(name),
            }
        })
    }

    fn rebuild(&mut self, paths: &[PathBuf]) {
        let plan = match BuildPlan::of(&self.root, &self.cages) {
            Ok(plan) => plan,
            // A running cage logs the same error.
            Err(error) => return progress(format_args!("not built: {}", error_chain(&error))),
        };
        let known: Vec<_> = self.watched.iter().filter_map(|(_, source)| source.clone()).collect();
        let touched = |source: &Path| {
            let of_source = self.watched.iter().filter(|(_, of)| of.as_deref() == Some(source));
            let mut directories = of_source.map(|(directory, _)| directory);
            directories.any(|directory| paths.iter().any(|path| path.starts_with(directory)))
        };
        // A source that was added to cage.toml just now is built, too.
        let plan_of_changed = plan.only(|source| touched(source) || !known.iter().any(|known| known == source));
        if let Err(error) = self.watch(&plan) {
            progress(format_args!("changes of new sources will not be seen: {}", error_chain(&error)));
        }
        plan_of_changed.build();
    }

    /// Watches the configuration and the sources of the plan. Directories of earlier plans stay watched.
    fn watch(&mut self, plan: &BuildPlan) -> Result<(), CommandError> {
        let configuration = self.cages.iter().map(String::as_str).chain([SHARED_DIRECTORY]);
        let configuration: Vec<_> =
            configuration.map(|cage| self.real_root.join(cage)).filter(|path| path.is_dir()).collect();
        for directory in configuration {
            self.watch_directory(&directory, None, RecursiveMode::NonRecursive)?;
        }
        for source in plan.sources().filter(|source| source.is_dir()) {
            for directory in build::watched(source) {
                self.watch_directory(&directory, Some(source), RecursiveMode::Recursive)?;
            }
        }
        Ok(())
    }

    fn watch_directory(
        &mut self,
        directory: &Path,
        source: Option<&Path>,
        mode: RecursiveMode,
    ) -> Result<(), CommandError> {
        let entry = (directory.to_owned(), source.map(Path::to_owned));
        if self.watched.contains(&entry) {
            return Ok(());
        }
        if !self.watched.iter().any(|(known, _)| known == directory) {
            let failed = |error| CommandError::failed(format!("cannot watch {}", directory.display()), error);
            self.watcher.watch(directory, mode).map_err(failed)?;
        }
        self.watched.push(entry);
        Ok(())
    }
}

/// Returns whether standard output or standard error goes to the file.
fn is_own_output(path: &Path) -> bool {
    let identity = |file: io::Result<rustix::fs::Stat>| file.ok().map(|stat| (stat.st_dev, stat.st_ino));
    let Some(changed) = identity(rustix::fs::lstat(path).map_err(Into::into)) else { return false };
    let outputs = [rustix::fs::fstat(io::stdout()), rustix::fs::fstat(io::stderr())];
    outputs.into_iter().any(|output| identity(output.map_err(Into::into)) == Some(changed))
}

/// Waits for relevant changes, and until there are no more for `SETTLE_DELAY`. Returns none when the watcher has ended.
fn settled(changed: &Receiver<PathBuf>, concerned: impl Fn(&Path) -> bool) -> Option<Vec<PathBuf>> {
    let mut paths = Vec::new();
    // Irrelevant files, such as those that a build writes, must neither start a build nor delay one.
    let mut until = None;
    loop {
        let path = match until {
            None => changed.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => changed.recv_timeout(Instant::saturating_duration_since(&until, Instant::now())),
        };
        match path {
            Ok(path) if concerned(&path) => {
                paths.push(path);
                until = Some(Instant::now() + SETTLE_DELAY);
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return Some(paths),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Returns whether a changed file can change a module. Files that builds, editors and the cage itself write cannot. The
/// path is relative to the watched directory.
fn concerns(path: &Path) -> bool {
    let ignored = ["target", "__pycache__", "logs", "state", ".run", ".cache", ".git", ".venv", "node_modules"];
    if path.iter().any(|part| ignored.iter().any(|name| part == *name)) {
        return false;
    }
    let Some(name) = path.file_name().map(|name| name.to_string_lossy()) else { return false };
    let extension = path.extension().map(|extension| extension.to_string_lossy()).unwrap_or_default();
    let noise = name.starts_with('.') || name.ends_with('~') || matches!(&*extension, "wasm" | "pyc" | "swp" | "tmp");
    name == FILE_NAME || !noise
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_and_configuration_concern_a_build() {
        for path in ["src/lib.rs", "Cargo.toml", "app.py", "cage.toml", "wit/a.wit"] {
            assert!(concerns(Path::new(path)), "{path}");
        }
        for path in [
            "target/release/work.wasm",
            "src/.lib.rs.swp",
            "src/lib.rs~",
            "__pycache__/app.pyc",
            "work.wasm",
            "logs/runner-20261120.log",
            "state/store.redb",
            ".run/primary.pid",
            ".cache/0123.cwasm",
            ".git/index",
        ] {
            assert!(!concerns(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn files_that_cages_write_within_a_source_are_no_change_of_it() {
        let source = tempfile::tempdir().unwrap();
        let source = source.path().canonicalize().unwrap();
        let root = source.join("cages");
        std::fs::create_dir_all(root.join("hello")).unwrap();
        let watcher = notify::recommended_watcher(|_| {}).unwrap();
        let watched = vec![(source.clone(), Some(source.clone())), (root.join("hello"), None)];
        let builder =
            Builder { root: root.clone(), real_root: root.clone(), cages: vec!["hello".into()], watcher, watched };
        assert!(builder.concerned(&source.join("src/lib.rs")));
        assert!(builder.concerned(&root.join("hello/cage.toml")), "the configuration of a cage");
        assert!(!builder.concerned(&root.join("hello/orders.sqlite")));
        assert!(!builder.concerned(&root.join("other/data.json")));
    }

    #[test]
    fn a_source_within_the_root_is_watched() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let source = root.join("hello/src");
        let watcher = notify::recommended_watcher(|_| {}).unwrap();
        let watched = vec![(source.clone(), Some(source.clone()))];
        let builder = Builder { root: root.clone(), real_root: root, cages: Vec::new(), watcher, watched };
        assert!(builder.concerned(&source.join("lib.rs")));
    }

    #[test]
    fn changes_are_taken_together_when_they_have_settled() {
        let (changed_tx, changed) = mpsc::channel();
        for path in ["noise", "a", "b", "noise", "c"] {
            changed_tx.send(PathBuf::from(path)).unwrap();
        }
        let concerned = |path: &Path| path != Path::new("noise");
        assert_eq!(settled(&changed, concerned).unwrap().len(), 3);
        drop(changed_tx);
        assert_eq!(settled(&changed, concerned), None);
    }
}
