//! The protocols of a program.

use std::fmt;
use std::sync::Arc;

use wasmcage_config::{ConfigError, OmittedProtocol, ProtocolInfo, Section};
use wasmcage_resource::Resource;

use crate::Protocol;

/// All protocols that `protocol = ".."` in `cage.toml` may name. Clones share them.
#[derive(Clone, Default)]
pub struct Protocols {
    known: Arc<Vec<Box<dyn Protocol>>>,
    left_out: Arc<Vec<OmittedProtocol>>,
}

/// Shows the names only.
impl fmt::Debug for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.known.iter().map(|protocol| protocol.info().name)).finish()
    }
}

impl Protocols {
    pub fn new(known: Vec<Box<dyn Protocol>>) -> Self {
        Self { known: Arc::new(known), left_out: Arc::default() }
    }

    /// Adds the protocols that another build of this program has, so that errors can name their features.
    #[must_use]
    pub fn without(self, left_out: Vec<OmittedProtocol>) -> Self {
        Self { left_out: Arc::new(left_out), ..self }
    }

    pub fn find(&self, name: &str) -> Option<&dyn Protocol> {
        self.known.iter().map(|protocol| &**protocol).find(|protocol| protocol.info().name == name)
    }

    /// Returns what the configuration needs to know about the protocols.
    pub fn infos(&self) -> Vec<ProtocolInfo> {
        self.known.iter().map(|protocol| protocol.info()).collect()
    }

    pub fn left_out(&self) -> &[OmittedProtocol] {
        &self.left_out
    }

    /// Makes the resource that a section describes.
    ///
    /// # Errors
    /// All mistakes of the section, or that there is no such protocol.
    pub fn resource(&self, name: &str, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        match self.find(name) {
            Some(protocol) => protocol.resource(section),
            None => Err(section.refused(format!("there is no protocol {name}"))),
        }
    }
}
