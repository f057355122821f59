//! Protocol `schedule`: requests at times that a cron expression names.
//!
//! `times.rs` knows the times, `planner.rs` decides which of them get a request and when; neither asks for the time or waits.
//! `interface.rs` does that, with `record.rs` for what must be known again after a restart. `config.rs` reads `cage.toml`.

mod config;
mod interface;
mod planner;
mod record;
mod times;

use wasmcage_config::{ConfigError, ProtocolInfo, Section};
use wasmcage_protocol::{Interface, Protocol};

const NAME: &str = "schedule";

pub struct Schedule;

impl Protocol for Schedule {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(NAME)
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(interface::ScheduleInterface { rules: config::read(section)? }))
    }
}
