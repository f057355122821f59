//! `wasmcage run`: checks the arguments, takes the locks and runs the primary process.

use std::path::Path;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use wasmcage_core::telemetry::{self, LogFormat, TerminalOptions};

use super::{CommandError, RootArg, build, check_cages, completion, directories, is_cage_name};
use crate::supervisor::pid_lock::PidLock;
use crate::supervisor::{self, RunOptions};

/// Start cages in one process, watched by another that restarts it when it fails
///
/// An empty directory is a cage. Files are picked up while it runs: drop in NAME.wasm, overwrite it, change cage.toml.
/// TERM or Ctrl-C drains and stops; a second one stops at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage run hello
  wasmcage run runner worker --build     compile the modules that have a source, then start
  wasmcage run hello --log-format json

A root that cannot be written: WASMCAGE_STATE_DIR, WASMCAGE_LOGS_DIR and WASMCAGE_CACHE_DIR name directories for what a cage
writes; set them for every command.")]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub start: StartArgs,
    /// First compile the modules that have a `source` in cage.toml
    #[arg(long)]
    build: bool,
}

/// Arguments of `run` and `dev`.
#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// Names of the cages: directories in the root
    #[arg(required = true, value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    pub cages: Vec<String>,
    /// Threads that run modules [default: one per core]
    #[arg(long, value_name = "N", value_parser = lanes)]
    lanes: Option<usize>,
    /// Format of the logs, whatever cage.toml says: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    #[command(flatten)]
    pub root: RootArg,
}

impl RunArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let (options, locks) = self.start.prepare()?;
        if self.build {
            build::before_start(&options.directories.root, &options.cages)?;
        }
        Ok(supervisor::supervise(&options, locks)?)
    }
}

impl StartArgs {
    /// Checks everything before anything is done, and takes the locks.
    pub(super) fn prepare(&self) -> Result<(RunOptions, Vec<PidLock>), CommandError> {
        let root = self.root.root.clone();
        check_cages(&root, &self.cages).map_err(|error| with_mkdir(error, &root, &self.cages))?;
        let (cages, lanes, log_format) = (self.cages.clone(), self.lanes, self.log_format);
        let options = RunOptions { directories: directories(&root), cages, lanes, log_format };
        start_telemetry(&options);
        let locks = supervisor::lock(&options)?;
        Ok((options, locks))
    }
}

/// Parses a number of threads, at least one.
fn lanes(text: &str) -> Result<usize, String> {
    let lanes = text.parse().map_err(|_| format!("{text:?} is no number of threads"))?;
    if lanes == 0 { Err("modules need one thread at least".into()) } else { Ok(lanes) }
}

/// Adds to the error that a missing cage is made by making its directory.
fn with_mkdir(error: CommandError, root: &Path, cages: &[String]) -> CommandError {
    let absent = cages.iter().find(|cage| is_cage_name(cage) && !root.join(cage).exists());
    match (error, absent) {
        (CommandError::Usage(text), Some(absent)) if root.is_dir() => {
            CommandError::Usage(format!("{text}; `mkdir {}` makes an empty one", root.join(absent).display()))
        }
        (error, _) => error,
    }
}

/// Starts logging, in both processes.
pub(super) fn start_telemetry(options: &RunOptions) {
    if let Some(format) = options.log_format {
        telemetry::force_format(format);
    }
    telemetry::install(TerminalOptions::detect(options.cages.len()));
}
