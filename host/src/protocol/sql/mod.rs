//! Protocol `sql`: databases as resources.

use super::{Protocol, Resource};
use crate::config::{ConfigError, Section};

pub struct Sql;

impl Protocol for Sql {
    fn name(&self) -> &'static str {
        "sql"
    }

    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Err(section.refused("not in this version"))
    }
}
