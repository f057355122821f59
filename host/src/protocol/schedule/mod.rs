//! Protocol `schedule`: requests at times that a cron expression names.

use super::{Interface, Protocol};
use crate::config::{ConfigError, Section};

pub struct Schedule;

impl Protocol for Schedule {
    fn name(&self) -> &'static str {
        "schedule"
    }

    fn has_module(&self) -> bool {
        true
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Err(section.refused("not in this version"))
    }
}
