//! Protocol `retry`: makes calls that were accepted before, again and again until they succeed. An interface works off the
//! queue of its name; every cage has one called `retry`.

mod attempt;
mod config;
mod interface;

use self::config::RetryConfig;
use self::interface::RetryInterface;
use wasmcage_config::{ConfigError, ProtocolInfo, RequestTarget, Section};
use wasmcage_protocol::{Interface, Protocol};

pub struct Retry;

impl Protocol for Retry {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new("retry").target(RequestTarget::NamedModule).in_every_cage().serves_queue()
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(RetryInterface { config: RetryConfig::read(section)? }))
    }
}
