//! Interface `rpc`: carries the cage's calls to others, and has the dispatcher answer theirs.

use std::sync::Arc;

use async_trait::async_trait;

use super::config::{FabricConfig, RpcConfig};
use super::fabric::{CopyId, Fabric, Local, Service};
use super::lan::Lan;
use wasmcage_core::call::{Call, Remote};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_protocol::{Address, Dispatch, Interface, InterfaceContext, InterfaceError, ListenGuard};

pub(super) struct RpcInterface {
    pub(super) config: RpcConfig,
}

/// The cage, as a fabric sees it.
pub(super) struct CageService {
    pub(super) dispatch: Arc<dyn Dispatch>,
}

#[async_trait]
impl Service for CageService {
    async fn serve(&self, call: Call) -> Result<Payload, DispatchError> {
        self.dispatch.answer_call(call).await
    }
}

/// Who this cage is, for one start of an interface.
pub(super) fn local(cx: &InterfaceContext) -> Local {
    let flock = cx.dispatch.flock().into();
    Local { flock, cage: cx.endpoint.cage.clone(), copy: CopyId::random(), node: cx.node.clone() }
}

#[async_trait]
impl Interface for RpcInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let (local, limits) = (local(&cx), self.config.limits);
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

/// Calls go out as long as the cage has work, calls come in until the drain.
async fn serve(fabric: impl Fabric + 'static, cx: InterfaceContext) -> Result<(), InterfaceError> {
    let fabric = Arc::new(fabric);
    let remote: Arc<dyn Remote> = fabric.clone();
    cx.dispatch.set_remote(remote.clone());
    let service = Arc::new(CageService { dispatch: cx.dispatch.clone() });
    let mut advertised = fabric.advertise(service, cx.drain.clone());
    let ended = tokio::select! {
        ended = &mut advertised => ended,
        _listening = listen(&*fabric, &cx) => advertised.await,
    };
    // A cage that cannot be called goes on calling others. So does one that is stopping: for requests still in work.
    if ended.is_ok() && !cx.drain.outer_begun() {
        cx.dispatch.unset_remote(&remote);
    }
    ended
}

/// A socket in the file system is for cages of this machine.
fn reach(address: String) -> Address {
    match address.starts_with("unix:") {
        true => Address::Machine(address),
        false => Address::Outside(address),
    }
}

/// Tells where the cage can be called, once it can.
async fn listen(fabric: &impl Fabric, cx: &InterfaceContext) -> Vec<ListenGuard> {
    const LOOK: std::time::Duration = std::time::Duration::from_millis(5);
    while !cx.drain.begun() {
        let addresses = fabric.addresses();
        if !addresses.is_empty() {
            return addresses.into_iter().map(|address| cx.endpoint.listen(reach(address))).collect();
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = cx.drain.stopping() => {}
        }
    }
    Vec::new()
}
