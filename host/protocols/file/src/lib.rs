//! Protocol `file`: the interface watches a directory, the resource reads and writes files in one.
//!
//! `directory.rs` opens files without ever leaving a directory, `name.rs` parses names, `temporary.rs` writes files
//! that are complete at once, `error.rs` turns errors of the file system into the resource's.

mod directory;
mod error;
mod interface;
mod name;
mod resource;
mod temporary;

#[cfg(test)]
mod tests;

use wasmcage_config::{ConfigError, ProtocolInfo, Section};
use wasmcage_protocol::{Interface, Protocol};
use wasmcage_resource::Resource;

const NAME: &str = "file";
const DAY_MS: u64 = 24 * 3600 * 1000;

pub struct FileProtocol;

impl Protocol for FileProtocol {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(NAME)
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(interface::FileInterface::read(section)?))
    }

    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Ok(Box::new(resource::FileResource::read(section)?))
    }
}
