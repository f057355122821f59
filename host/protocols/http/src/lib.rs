//! HTTP/1.1 and HTTP/2, plain and over TLS, in front of one module.
//!
//! `server.rs` accepts and picks a lane; `connection.rs` serves one connection there, with `tls.rs` and `wire.rs` below it
//! and `pulse.rs` as its watchdog; `interface.rs` turns a request into one for the dispatcher: `head.rs` checks its head,
//! `forwarded.rs` knows who asks, `body.rs` bounds what comes; `reply.rs` checks what the module answered, `page.rs` is what
//! is answered without one, `compress.rs` comes last; `tunnel.rs` is what CONNECT may lead to. `config.rs` reads
//! `cage.toml`, `events.rs` logs. `client/` is the outbound side.
//!
//! What hyper enforces is left to hyper: the syntax of heads and chunks, the rules against request smuggling, the lengths
//! of bodies. Never here: a module's text to a client, a queue, a lock on the path of a request.

mod body;
mod client;
mod compress;
mod config;
mod connection;
mod events;
mod forwarded;
mod head;
mod interface;
mod page;
mod pulse;
mod reply;
mod server;
mod tls;
mod tunnel;
mod wire;

#[cfg(test)]
mod tests;

use wasmcage_config::{ConfigError, ProtocolInfo, RequestTarget, Section};
use wasmcage_protocol::{Interface, Protocol};
use wasmcage_resource::Resource;

const NAME: &str = "http";

pub struct Http;

impl Protocol for Http {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(NAME).target(RequestTarget::HandlerOrWasiHttp)
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(interface::HttpInterface { config: config::HttpConfig::read(section)? }))
    }

    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Ok(Box::new(client::Server::read(section)?))
    }
}
