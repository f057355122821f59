//! `wasmcage help cage.toml`: prints the reference of all keys.

use clap::Args;

use super::{CommandError, print};
use crate::supervisor::STOPPED;

/// The reference of all keys. It is a configuration that loads if all protocols are known.
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
