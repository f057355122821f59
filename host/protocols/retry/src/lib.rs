//! Protocol `retry`: makes calls that were accepted into a queue, and retries them until they succeed. An interface
//! processes the queue of its name; every cage has an interface `retry`.

mod attempt;
mod config;
mod interface;

use self::config::RetryConfig;
use self::interface::RetryInterface;
use wasmcage_config::{ConfigError, ProtocolInfo, RequestTarget, Section};
use wasmcage_protocol::{Interface, Protocol};

pub struct RetryProtocol;

impl Protocol for RetryProtocol {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new("retry").target(RequestTarget::NamedModule).in_every_cage().serves_queue()
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(RetryInterface { config: RetryConfig::read(section)? }))
    }
}
