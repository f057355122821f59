//! Tests of AMQP with a RabbitMQ. Those that need none are in `amqp_without_broker.rs`.

mod contract;
pub(crate) mod failures;
mod handlers;
mod life;
mod messages;
mod names;
mod postage;
mod process;
mod resource;
mod rpc;
