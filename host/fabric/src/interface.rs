//! Interface `rpc`: carries the cage's calls to others, and passes theirs to the dispatcher.

use std::sync::Arc;

use async_trait::async_trait;

use super::config::{FabricConfig, RpcConfig};
use super::fabric::{CallHandler, CopyId, Fabric, LocalCopy};
use super::lan::Lan;
use wasmcage_core::call::{Call, Remote};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_protocol::{Address, Dispatch, Interface, InterfaceContext, InterfaceError, ListenGuard};

pub(super) struct RpcInterface {
    pub(super) config: RpcConfig,
}

/// Passes a fabric's calls to the cage's dispatcher.
pub(super) struct CageCallHandler {
    pub(super) dispatch: Arc<dyn Dispatch>,
}

#[async_trait]
impl CallHandler for CageCallHandler {
    async fn serve(&self, call: Call) -> Result<Payload, DispatchError> {
        self.dispatch.answer_call(call).await
    }
}

/// Makes the identity of a new copy of this cage, for one start of an interface.
pub(super) fn local_copy(cx: &InterfaceContext) -> LocalCopy {
    let flock = cx.dispatch.flock().into();
    LocalCopy { flock, cage: cx.endpoint.cage.clone(), copy: CopyId::random(), node: cx.node.clone() }
}

#[async_trait]
impl Interface for RpcInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let (local, limits) = (local_copy(&cx), self.config.limits);
        match self.config.fabric {
            FabricConfig::Lan(config) => {
                let (interface, lanes) = (&cx.endpoint.interface, cx.lanes.clone());
                let tasks = cx.tasks.clone();
                serve(Lan::open(local, interface, config, limits, &cx.runtime_directory, lanes, tasks).await?, cx).await
            }
            #[cfg(feature = "nats")]
            FabricConfig::Nats(config) => {
                let (interface, tasks) = (cx.endpoint.interface.clone(), cx.tasks.clone());
                serve(super::nats::Nats::start(&config, interface, local, limits, tasks).await?, cx).await
            }
        }
    }
}

/// Runs a fabric: calls come in until the drain begins, and go out as long as the cage has requests in flight.
async fn serve(fabric: impl Fabric + 'static, cx: InterfaceContext) -> Result<(), InterfaceError> {
    let fabric = Arc::new(fabric);
    let remote: Arc<dyn Remote> = fabric.clone();
    cx.dispatch.set_remote(remote.clone());
    let handler = Arc::new(CageCallHandler { dispatch: cx.dispatch.clone() });
    let mut advertised = fabric.advertise(handler, cx.drain.clone());
    let ended = tokio::select! {
        ended = &mut advertised => ended,
        _listening = listen(&*fabric, &cx) => advertised.await,
    };
    // A cage that cannot be called may still call others, and so may one that is stopping: for requests still in flight.
    if ended.is_ok() && !cx.drain.outer_begun() {
        cx.dispatch.unset_remote(&remote);
    }
    ended
}

/// A Unix socket is for cages of this machine, other addresses are also for those of other machines.
fn endpoint_address(address: String) -> Address {
    match address.starts_with("unix:") {
        true => Address::Machine(address),
        false => Address::Outside(address),
    }
}

/// Reports the cage's addresses to the endpoint once it can be called.
async fn listen(fabric: &impl Fabric, cx: &InterfaceContext) -> Vec<ListenGuard> {
    const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(5);
    while !cx.drain.begun() {
        let addresses = fabric.addresses();
        if !addresses.is_empty() {
            return addresses.into_iter().map(|address| cx.endpoint.listen(endpoint_address(address))).collect();
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            () = cx.drain.stopping() => {}
        }
    }
    Vec::new()
}
