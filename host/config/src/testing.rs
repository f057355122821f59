//! Sections of a configuration for the tests of protocols and resources, without files.

use std::path::Path;

use crate::{CageConfig, ConfigError, Environment, ProtocolInfo, Section, parse};

/// `[interfaces.test]` with these keys.
///
/// # Panics
/// When they are no TOML.
pub fn section(keys: &str) -> Section {
    let own = format!("[interfaces.test]\nprotocol = 'tested'\n{keys}");
    let mut config = read("tested", Path::new("/cages/runner"), own).expect("TOML");
    config.interfaces.remove("test").expect("it is there").section
}

/// `[resources.test]` of a cage in this directory, with these keys.
///
/// # Errors
/// What is wrong with them, apart from what the protocol will say.
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
