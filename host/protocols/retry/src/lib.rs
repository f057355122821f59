//! Protocol `retry`: makes calls that were accepted into a queue, and retries them until they succeed. An interface
//! processes the queue of its name; every cage has an interface `retry`.

mod attempt;
mod config;
mod interface;

use self::config::RetryConfig;
use self::interface::RetryInterface;
use wasmcage_config::{ConfigError, Section};
use wasmcage_protocol::{Interface, Protocol};

pub struct RetryProtocol;

impl Protocol for RetryProtocol {
    fn name(&self) -> &'static str {
        "retry"
    }

    fn unnamed(&self) -> bool {
        true
    }

    fn has_queue(&self) -> bool {
        true
    }

    fn has_module(&self) -> bool {
        false
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(RetryInterface { config: RetryConfig::read(section)? }))
    }
}
