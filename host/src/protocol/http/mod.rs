//! HTTP. stub
use crate::config::{ConfigError, Section};
use crate::protocol::{Interface, Protocol};

pub struct Http;

impl Protocol for Http {
    fn name(&self) -> &'static str {
        "http"
    }
    fn interface(&self, _section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        todo!()
    }
}
