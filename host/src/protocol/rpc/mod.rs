//! Calls between cages of a flock: interface `rpc` of every cage lets others call it, and carries its own calls to them,
//! over the fabric that its configuration names.

pub mod envelope;
pub mod fabric;
pub mod link;

use async_trait::async_trait;

use crate::config::{ConfigError, Section};
use crate::protocol::{Interface, InterfaceContext, InterfaceError, Protocol};

pub struct Rpc;

impl Protocol for Rpc {
    fn name(&self) -> &'static str {
        "rpc"
    }

    fn unnamed(&self) -> bool {
        true
    }

    fn has_module(&self) -> bool {
        false
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        section.finish()?;
        Ok(Box::new(RpcInterface))
    }
}

struct RpcInterface;

#[async_trait]
impl Interface for RpcInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        cx.drain.stopping().await;
        Ok(())
    }
}
