//! `wasmcage help cage.toml`: every key there is, as a configuration that can be loaded.

use clap::Args;

use super::{CommandError, print};
use crate::supervisor::STOPPED;

const REFERENCE: &str = include_str!("reference.toml");

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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_reference_is_a_configuration_that_loads() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("hello");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("cage.toml"), REFERENCE).unwrap();
        let config = super::super::config(root.path(), "hello").unwrap_or_else(|error| {
            panic!("{}", wasmcage_core::telemetry::error_chain(&error));
        });
        assert_eq!(config.interfaces.len(), 7);
        assert_eq!(config.resources.len(), 5);
        assert_eq!(config.modules.len(), 1);
    }
}
