//! `wasmcage help cage.toml`: every key there is, as a configuration that can be loaded.

use clap::Args;

use super::{CommandError, print};
use crate::supervisor::STOPPED;

/// Every key there is, as a configuration that loads where all protocols are known.
pub const REFERENCE: &str = include_str!("reference.toml");

/// Print everything that cage.toml may say
#[derive(Debug, Args)]
#[command(after_help = REFERENCE)]
pub(super) struct CageTomlArgs {}

impl CageTomlArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        print(REFERENCE.trim_end())?;
        Ok(STOPPED)
    }
}
