//! Compiles the modules that have a `source` in `cage.toml`, for `wasmcage build`, `run --build` and `dev`. A built
//! module is renamed into the cage, and only when it differs; when a build fails, the old module stays.

mod cargo;
mod install;
mod python;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

pub(super) use self::cargo::watched;
use self::install::InstallOutcome;
use super::{CommandError, RootArg, completion, config, progress, selected};
use crate::supervisor::{FAILED, STOPPED};

/// Compile the modules that have a `source` in cage.toml
///
/// A directory with a Cargo.toml is built by cargo for wasm32-wasip2, one with app.py by componentize-py. A running cage
/// takes the new module at once. Exits with 1 when a build failed; the others are built all the same.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage build hello
  wasmcage build           every cage

A Rust guest gets 64 KiB of stack; more by  [package.metadata.wasmcage]  stack_kb = 1024  in its Cargo.toml.
A Python guest's world is full-module; another by  [tool.wasmcage]  world = \"handler-module\"  in its pyproject.toml.")]
pub(super) struct BuildArgs {
    /// Names of cages [default: all in the root]
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cages: Vec<String>,
    #[command(flatten)]
    root: RootArg,
}

impl BuildArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let cages = selected(&self.root.root, &self.cages)?;
        let plan = BuildPlan::of(&self.root.root, &cages)?;
        if plan.is_empty() {
            progress("no module of these cages has a source in cage.toml");
        }
        Ok(if plan.build().is_empty() { STOPPED } else { FAILED })
    }
}

/// Builds the modules before a cage starts, for `run --build` and `dev`.
///
/// # Errors
/// A module cannot be built and has no older version.
pub(super) fn before_start(root: &Path, cages: &[String]) -> Result<(), CommandError> {
    let failed = BuildPlan::of(root, cages)?.build();
    let missing: Vec<_> = failed.iter().filter(|target| !target.file().exists()).map(ToString::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(CommandError::Refused(format!("not built, and there is no older version: {}", missing.join(", "))))
}

/// The place of a built module in its cage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BuildTarget {
    cage: String,
    module: String,
    directory: PathBuf,
}

impl BuildTarget {
    fn file(&self) -> PathBuf {
        self.directory.join(format!("{}.wasm", self.module))
    }
}

impl fmt::Display for BuildTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cage, self.module)
    }
}

/// The sources to build, each with its targets. A source is built once, also for several modules.
#[derive(Debug, Default)]
pub(super) struct BuildPlan {
    sources: BTreeMap<PathBuf, Vec<BuildTarget>>,
}

/// How a source is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceKind {
    Cargo,
    Python,
}

impl SourceKind {
    fn of(source: &Path) -> Result<Self, String> {
        let has_python = || {
            let entries = std::fs::read_dir(source).into_iter().flatten().flatten();
            entries.into_iter().any(|entry| entry.path().extension().is_some_and(|extension| extension == "py"))
        };
        match source {
            source if source.join("Cargo.toml").is_file() => Ok(Self::Cargo),
            _ if has_python() => Ok(Self::Python),
            source if source.is_dir() => {
                Err(format!("{} has neither a Cargo.toml nor a Python file", source.display()))
            }
            source => Err(format!("there is no directory {}", source.display())),
        }
    }
}

impl BuildPlan {
    /// Collects the sources of the cages' modules.
    ///
    /// # Errors
    /// A `cage.toml` has mistakes.
    pub(super) fn of(root: &Path, cages: &[String]) -> Result<Self, CommandError> {
        let mut plan = Self::default();
        for cage in cages {
            let config = config(root, cage)?;
            for (module, settings) in &config.modules {
                let Some(source) = &settings.source else { continue };
                let target =
                    BuildTarget { cage: cage.clone(), module: module.clone(), directory: config.directory.clone() };
                plan.add(source, target);
            }
        }
        Ok(plan)
    }

    fn add(&mut self, source: &Path, target: BuildTarget) {
        // A missing source fails when it is built, with its path from cage.toml.
        let source = source.canonicalize().unwrap_or_else(|_| source.to_owned());
        self.sources.entry(source).or_default().push(target);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = &Path> {
        self.sources.keys().map(PathBuf::as_path)
    }

    /// Returns the part of the plan with these sources.
    pub(super) fn only(&self, wanted: impl Fn(&Path) -> bool) -> Self {
        let sources = self.sources.iter().filter(|(source, _)| wanted(source));
        Self { sources: sources.map(|(source, targets)| (source.clone(), targets.clone())).collect() }
    }

    /// Builds all sources and prints the result of each. Returns the modules that were not built.
    pub(super) fn build(&self) -> Vec<BuildTarget> {
        let mut failed = Vec::new();
        let mut crates = Vec::new();
        let mut done = |source: &Path, artifact: Result<PathBuf, BuildError>| {
            failed.extend(self.finish(source, artifact.map_err(|error| wasmcage_core::telemetry::error_chain(&error))));
        };
        for source in self.sources() {
            match SourceKind::of(source) {
                Ok(SourceKind::Cargo) => crates.push(source.to_owned()),
                Ok(SourceKind::Python) => {
                    progress(format_args!("building {}", source.display()));
                    match python::build(source) {
                        Ok(artifact) => done(source, Ok(artifact.path())),
                        Err(error) => done(source, Err(error)),
                    }
                }
                Err(text) => done(source, Err(BuildError::Source(text))),
            }
        }
        for (source, artifact) in cargo::build(&crates) {
            done(&source, artifact);
        }
        failed
    }

    /// Installs an artifact for all modules of its source. Returns the modules that did not get it.
    fn finish(&self, source: &Path, artifact: Result<PathBuf, String>) -> Vec<BuildTarget> {
        let started = Instant::now();
        let targets = &self.sources[source];
        let artifact = match artifact {
            Ok(artifact) => artifact,
            Err(error) => {
                let names: Vec<_> = targets.iter().map(ToString::to_string).collect();
                progress(format_args!("failed    {}: {error}", names.join(", ")));
                return targets.clone();
            }
        };
        let mut failed = Vec::new();
        for target in targets {
            match install::install(&artifact, &target.file()) {
                Ok(InstallOutcome::Replaced { bytes }) => {
                    let elapsed_ms = started.elapsed().as_millis();
                    tracing::debug!(cage = %target.cage, module = %target.module, bytes, elapsed_ms, "module installed");
                    progress(format_args!("built     {target} ({} KiB)", bytes.div_ceil(1024)));
                }
                Ok(InstallOutcome::Same) => progress(format_args!("unchanged {target}")),
                Err(error) => {
                    progress(format_args!("failed    {target}: cannot write {}: {error}", target.file().display()));
                    failed.push(target.clone());
                }
            }
        }
        failed
    }
}

/// Why there is no artifact. The compiler has printed its own messages.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("{0}")]
    Source(String),
    #[error("{0}")]
    Tool(String),
    #[error("cannot run {program}")]
    Run {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Failed(String),
    #[error("cannot prepare the build")]
    Prepare(#[source] std::io::Error),
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_source_of_several_modules_is_built_once_and_missing_ones_are_named() {
        let root = tempfile::tempdir().unwrap();
        let cages = root.path().join("cages");
        for cage in ["a", "b"] {
            fs::create_dir_all(cages.join(cage)).unwrap();
        }
        fs::create_dir_all(root.path().join("empty")).unwrap();
        fs::write(cages.join("a/cage.toml"), "[modules.x]\nsource = \"../../empty\"\n[modules.y]\nmemory_mb = 1\n")
            .unwrap();
        fs::write(
            cages.join("b/cage.toml"),
            "[modules.x]\nsource = \"../../empty/../empty\"\n[modules.z]\nsource = \"../../gone\"\n",
        )
        .unwrap();
        let names = ["a".to_owned(), "b".to_owned()];
        let plan = BuildPlan::of(&cages, &names).unwrap();
        let sources: Vec<_> = plan.sources().collect();
        assert_eq!(sources.len(), 2, "{sources:?}");
        let mut failed: Vec<_> = plan.build().iter().map(ToString::to_string).collect();
        failed.sort();
        assert_eq!(failed, ["a/x", "b/x", "b/z"]);
        let empty = root.path().join("empty").canonicalize().unwrap();
        assert_eq!(plan.only(|source| source == empty).sources().count(), 1);

        let error = before_start(&cages, &names).unwrap_err().to_string();
        assert!(["a/x", "b/x", "b/z"].iter().all(|target| error.contains(target)), "{error}");
        ["a/x", "b/x", "b/z"].iter().for_each(|file| fs::write(cages.join(format!("{file}.wasm")), "old").unwrap());
        before_start(&cages, &names).unwrap();
    }

    #[test]
    fn the_kind_of_a_source_depends_on_its_files() {
        let root = tempfile::tempdir().unwrap();
        assert!(SourceKind::of(root.path()).unwrap_err().contains("neither"));
        fs::write(root.path().join("app.py"), "").unwrap();
        assert_eq!(SourceKind::of(root.path()), Ok(SourceKind::Python));
        fs::write(root.path().join("Cargo.toml"), "").unwrap();
        assert_eq!(SourceKind::of(root.path()), Ok(SourceKind::Cargo));
        assert!(SourceKind::of(&root.path().join("gone")).unwrap_err().contains("no directory"));
    }
}
