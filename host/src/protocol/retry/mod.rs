//! Protocol `retry`: makes calls that were accepted before, until they succeed.

use super::{Interface, Protocol};
use crate::config::{ConfigError, Section};

pub struct Retry;

impl Protocol for Retry {
    fn name(&self) -> &'static str {
        "retry"
    }

    fn has_module(&self) -> bool {
        false
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Err(section.refused("not in this version"))
    }
}
