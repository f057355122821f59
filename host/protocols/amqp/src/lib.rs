//! Protocol `amqp`: messages of a RabbitMQ broker come in as requests, and modules publish and call over it. At home among
//! Postage programs, whose messages and conventions are the default format.

mod answer;
mod broker;
mod config;
mod consume;
mod deliver;
mod events;
mod group;
mod guard;
mod handlers;
mod interface;
mod link;
mod message;
mod operation;
mod own;
mod producer;
mod raw;
mod replies;
mod resource;
mod rpc;
mod settle;
mod stream;
mod topology;
mod user;
mod value;

use self::config::AmqpConfig;
use self::interface::AmqpInterface;
use self::resource::AmqpResource;
use wasmcage_config::{ConfigError, ProtocolInfo, Section};
use wasmcage_protocol::{Interface, Protocol};
use wasmcage_resource::Resource;

pub struct Amqp;

impl Protocol for Amqp {
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
