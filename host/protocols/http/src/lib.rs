//! Protocol `http`: the interface serves HTTP/1.1 and HTTP/2, plain and over TLS; the resource sends requests to a
//! server.
//!
//! `server.rs` accepts connections and picks their lanes; `connection.rs` serves one connection there, on top of
//! `tls.rs` and `wire.rs`, with `activity.rs` for its watchdog; `interface.rs` turns a request into one for the
//! dispatcher: `head.rs` checks its head, `forwarded.rs` finds out the client, `body.rs` limits the body; `reply.rs`
//! checks the module's response, `page.rs` makes the interface's own pages, `compress.rs` comes last; `tunnel.rs` is
//! for CONNECT. `config.rs` reads `cage.toml`, `events.rs` logs. `client/` is the resource.
//!
//! hyper enforces the syntax of heads and chunks, the rules against request smuggling and the lengths of bodies. A
//! module's error text never goes to a client, and there is neither a queue nor a lock on a request's way.

mod activity;
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

pub struct HttpProtocol;

impl Protocol for HttpProtocol {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(NAME).target(RequestTarget::HandlerOrWasiHttp)
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(interface::HttpInterface { config: config::HttpConfig::read(section)? }))
    }

    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Ok(Box::new(client::HttpResource::read(section)?))
    }
}
