//! Protocol `schedule`: requests at the times of a cron expression or an interval.
//!
//! `times.rs` computes the times, `planner.rs` decides which of them get a request and when; neither reads the clock or
//! waits. `interface.rs` does that, and `record.rs` stores the progress for the time after a restart. `config.rs` reads
//! `cage.toml`.

mod config;
mod interface;
mod planner;
mod record;
mod times;

use wasmcage_config::{ConfigError, ProtocolInfo, Section};
use wasmcage_protocol::{Interface, Protocol};

const NAME: &str = "schedule";

pub struct ScheduleProtocol;

impl Protocol for ScheduleProtocol {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(NAME)
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(interface::ScheduleInterface { rules: config::read(section)? }))
    }
}
