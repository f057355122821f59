//! Protocol `file`: a directory as a resource, and a watched directory as an interface.
//!
//! `directory.rs` reaches files without ever leaving a directory, `name.rs` says which names there are, `error.rs` speaks
//! the pool's language. Out: `resource/`. In: `interface/`.

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
/// One day.
const DAY_MS: u64 = 24 * 3600 * 1000;

pub struct File;

impl Protocol for File {
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
