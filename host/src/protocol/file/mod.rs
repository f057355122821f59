//! Protocol `file`: a watched directory as an interface, a directory to write to and read from as a resource.

use super::{Interface, Protocol, Resource};
use crate::config::{ConfigError, Section};

pub struct File;

impl Protocol for File {
    fn name(&self) -> &'static str {
        "file"
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Err(section.refused("not in this version"))
    }

    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Err(section.refused("not in this version"))
    }
}
