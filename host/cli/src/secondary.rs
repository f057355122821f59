//! `wasmcage secondary`: the process that `run` starts to serve. It is not meant to be used by people.

use std::path::PathBuf;

use clap::Args;
use wasmcage_core::telemetry::LogFormat;

use super::{CommandError, directories, run};
use crate::supervisor::{RunOptions, secondary};

/// Serve cages until standard input ends; started by `run`
#[derive(Debug, Args)]
pub(super) struct SecondaryArgs {
    #[arg(required = true)]
    cages: Vec<String>,
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    lanes: Option<usize>,
    #[arg(long)]
    log_format: Option<LogFormat>,
}

impl SecondaryArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let Self { cages, root, lanes, log_format } = self;
        let options = RunOptions { directories: directories(&root), cages, lanes, log_format };
        run::start_telemetry(&options);
        Ok(secondary::serve(&options)?)
    }
}
