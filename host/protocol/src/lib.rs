//! The contract between the host and a protocol: what a protocol implements, and what the host does for its interfaces. A
//! protocol is a crate that implements [`Protocol`], and an entry in a program's list of protocols.
//!
//! The `README.md` of this crate describes the contract on one page.

mod dispatch;
mod endpoint;
mod registry;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use wasmcage_config::{ConfigError, ProtocolInfo, Section};
use wasmcage_core::body_budget::BodyBudget;
use wasmcage_core::drain::Drain;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::task::Tasks;
use wasmcage_resource::Resource;
use wasmcage_store::Store;

pub use self::dispatch::Dispatch;
pub use self::endpoint::{Address, Endpoint, ListenGuard, Route, RouteKind};
pub use self::registry::Protocols;

/// A protocol: an inbound side, through which modules are reached, an outbound side, which modules use, or both.
pub trait Protocol: Send + Sync {
    /// Returns its name, and how its interfaces differ from most.
    fn info(&self) -> ProtocolInfo;

    /// Makes an interface from its section.
    ///
    /// # Errors
    /// All mistakes of the section, or that the protocol has no inbound side.
    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Err(section.refused(format!("protocol {} has no inbound side: it is for [resources.x]", self.info().name)))
    }

    /// Makes a resource from its section.
    ///
    /// # Errors
    /// All mistakes of the section, or that the protocol has no outbound side.
    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Err(section.refused(format!("protocol {} has no outbound side: it is for [interfaces.x]", self.info().name)))
    }
}

/// The inbound side of a protocol. `run` is spawned to start it. Once `cx.drain` has begun, it stops the intake, finishes what
/// is in flight, and returns; its future is dropped at the drain's deadline.
#[async_trait]
pub trait Interface: Send + Sync {
    /// Serves until the drain.
    ///
    /// # Errors
    /// What keeps it from serving, such as a port in use. The cage logs it and retries later.
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError>;
}

/// Everything that an interface may use.
#[derive(Clone)]
pub struct InterfaceContext {
    /// Passes what is received to modules.
    pub dispatch: Arc<dyn Dispatch>,
    /// The interface's name, addresses, timeout and readings.
    pub endpoint: Arc<Endpoint>,
    pub drain: Drain,
    pub lanes: Arc<Lanes>,
    /// The cage's durable data.
    pub store: Arc<Store>,
    /// Wraps the tasks that the interface spawns, so that panics are reported.
    pub tasks: Tasks,
    /// Name of this machine.
    pub node: Arc<str>,
    /// Where running cages of this user find each other: see `wasmcage::host::runtime_directory`.
    pub runtime_directory: Arc<Path>,
    /// The process's budget for bodies that are held whole.
    pub bodies: Arc<BodyBudget>,
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
