//! Protocol `amqp`: messages of a RabbitMQ broker become requests, and modules publish messages and call services over
//! the broker. The default format is that of Postage programs.

mod answer;
mod batch;
mod broker;
mod builtin;
mod config;
mod consume;
mod deliver;
mod events;
mod guard;
mod handlers;
mod interface;
mod link;
mod message;
mod operation;
mod postage_delivery;
mod producer;
mod raw;
mod raw_delivery;
mod replies;
mod resource;
mod rpc;
mod settle;
mod stream;
mod topology;
mod user;
mod value;
mod verdict;

use self::config::AmqpConfig;
use self::interface::AmqpInterface;
use self::resource::AmqpResource;
use wasmcage_config::{ConfigError, ProtocolInfo, Section};
use wasmcage_protocol::{Interface, Protocol};
use wasmcage_resource::Resource;

pub struct AmqpProtocol;

impl Protocol for AmqpProtocol {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new("amqp")
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(AmqpInterface::new(AmqpConfig::read(section)?)))
    }

    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Ok(Box::new(AmqpResource::read(section)?))
    }
}
