//! stub

/// One named table of `cage.toml`, being read.
pub struct Section;

#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct ConfigError;
