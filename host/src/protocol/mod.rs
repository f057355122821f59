//! The outside world: one folder per protocol, one line per protocol in `PROTOCOLS`. An interface turns what comes in
//! into requests for the dispatcher; it never sees a wasmtime type and knows no other protocol.

pub mod http;
pub mod rpc;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use crate::config::{ConfigError, ExportChoice, Section};
use crate::dispatcher::{Dispatcher, Endpoint};
use crate::drain::Drain;
use crate::lanes::Lanes;

/// Every protocol that `protocol = ".."` in `cage.toml` may name.
pub static PROTOCOLS: &[&dyn Protocol] = &[&http::Http, &rpc::Rpc, &rpc::ReverseRpc];

pub trait Protocol: Sync {
    /// The name in `cage.toml`.
    fn name(&self) -> &'static str;

    /// Whether every cage has an interface of this protocol, called like it, without naming it.
    fn unnamed(&self) -> bool {
        false
    }

    /// Whether one module serves the interface; otherwise what comes in says which.
    fn has_module(&self) -> bool {
        true
    }

    /// Which export of a component serves this protocol, when the configuration names none.
    fn choice(&self, configured: ExportChoice) -> ExportChoice {
        match configured {
            ExportChoice::Auto => ExportChoice::Handler,
            chosen => chosen,
        }
    }

    /// # Errors
    /// All mistakes of the section, or that the protocol has no inbound side.
    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError>;
}

/// The inbound side. `run` is spawned to start it; it takes nothing new once `cx.drain` begins, finishes what it has,
/// then returns; its future is dropped at the drain's deadline.
#[async_trait]
pub trait Interface: Send + Sync {
    /// # Errors
    /// What keeps it from serving, such as a port in use. The cage logs it, goes on, and tries again later.
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError>;
}

/// All that an interface may touch.
#[derive(Clone)]
pub struct InterfaceContext {
    pub dispatcher: Dispatcher,
    /// The module that serves this interface, whichever version is current; names, timeout and readings with it.
    pub endpoint: Arc<Endpoint>,
    pub drain: Drain,
    pub lanes: Arc<Lanes>,
    /// Label of this machine.
    pub node: Arc<str>,
    /// Where running cages of this user meet: see `host::runtime_directory`.
    pub runtime_directory: Arc<Path>,
}

#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    #[error("interface {interface} cannot listen at {address}")]
    Listen {
        interface: String,
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("interface {interface}: {text}")]
    Setup {
        interface: String,
        text: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// The protocol of that name.
pub fn find(name: &str) -> Option<&'static dyn Protocol> {
    PROTOCOLS.iter().copied().find(|protocol| protocol.name() == name)
}
