//! Calls between cages of a flock: the interface `rpc` of a cage lets others call it and carries its own calls to them,
//! over the fabric that its configuration names.

mod config;
#[cfg(test)]
mod contract;
pub mod discovery;
pub mod fabric;
mod interface;
mod keyed_limit;
pub mod keys;
pub mod lan;
pub mod link;
#[cfg(test)]
mod memory;
#[cfg(feature = "nats")]
pub mod nats;
mod reverse;

pub use self::config::{FabricConfig, LanConfig, ReverseConfig, RpcConfig};
pub use self::reverse::ReverseRpcProtocol;
use wasmcage_config::{ConfigError, ProtocolInfo, RequestTarget, Section};
pub(crate) use wasmcage_core::envelope;
use wasmcage_protocol::{Interface, Protocol};

pub struct RpcProtocol;

impl Protocol for RpcProtocol {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new("rpc").target(RequestTarget::NamedModule).in_every_cage()
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(interface::RpcInterface { config: RpcConfig::read(section)? }))
    }
}
