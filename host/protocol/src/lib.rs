//! The contract between the host and a protocol: what a protocol is, what its interfaces are given, and what they owe. A
//! protocol is a crate that implements [`Protocol`], and one line where a program lists those that it has.
//!
//! `README.md` beside this crate is the contract as one page: what an interface owes, and what is done for it.

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
pub use self::endpoint::{Address, Endpoint, Listening, Route, RouteKind};
pub use self::registry::Protocols;

/// One way in which the outside world reaches modules, or modules the outside world.
pub trait Protocol: Send + Sync {
    /// Its name, and how its interfaces differ from most.
    fn info(&self) -> ProtocolInfo;

    /// Makes the interface that a section describes.
    ///
    /// # Errors
    /// All mistakes of the section, or that the protocol has no inbound side.
    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Err(section.refused(format!("protocol {} has no inbound side: it is for [resources.x]", self.info().name)))
    }

    /// Makes the resource that a section describes.
    ///
    /// # Errors
    /// All mistakes of the section, or that the protocol has no outbound side.
    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Err(section.refused(format!("protocol {} has no outbound side: it is for [interfaces.x]", self.info().name)))
    }
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
    /// Has modules serve what comes in.
    pub dispatch: Arc<dyn Dispatch>,
    /// What the interface is called, where it listens, its timeout and readings.
    pub endpoint: Arc<Endpoint>,
    pub drain: Drain,
    pub lanes: Arc<Lanes>,
    /// The cage's durable data.
    pub store: Arc<Store>,
    /// Watches the tasks that the interface starts.
    pub tasks: Tasks,
    /// Label of this machine.
    pub node: Arc<str>,
    /// Where running cages of this user meet: see `wasmcage::host::runtime_directory`.
    pub runtime_directory: Arc<Path>,
    /// The process's budget for bodies that are kept whole.
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
