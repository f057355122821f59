//! Sections of a configuration without files, for the tests of protocols and resources.

use std::path::Path;

use crate::{CageConfig, ConfigError, Environment, ProtocolInfo, Section, parse};

/// Makes the section `[interfaces.test]` with these keys.
///
/// # Panics
/// The keys are not valid TOML.
pub fn section(keys: &str) -> Section {
    section_in(Path::new("/cages/runner"), keys)
}

/// The same, of a cage in this directory.
///
/// # Panics
/// When the keys are no TOML.
pub fn section_in(directory: &Path, keys: &str) -> Section {
    let own = format!("[interfaces.test]\nprotocol = 'tested'\n{keys}");
    let mut config = read("tested", directory, own).expect("TOML");
    config.interfaces.remove("test").expect("it is there").section
}

/// Makes the section `[resources.test]` of a cage in this directory, with these keys.
///
/// # Errors
/// Mistakes in the keys, except those that the protocol finds.
///
/// # Panics
/// Never: the table is there.
pub fn resource_section(protocol: &'static str, directory: &Path, keys: &str) -> Result<Section, ConfigError> {
    let own = format!("[resources.test]\nprotocol = '{protocol}'\n{keys}");
    let mut config = read(protocol, directory, own)?;
    Ok(config.resources.remove("test").expect("it is there").section)
}

fn read(protocol: &'static str, directory: &Path, own: String) -> Result<CageConfig, ConfigError> {
    let environment = Environment {
        cage: "runner",
        node: "n1",
        directory,
        protocols: &[ProtocolInfo::new(protocol)],
        left_out: &[],
        variables: &|_| None,
    };
    parse(&[("cage.toml".into(), own)], &environment)
}
