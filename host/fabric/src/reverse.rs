//! Interface of protocol `reverse-rpc`: serves cages that cannot connect to this one. It connects to them, and their
//! calls come back over those connections.

use std::sync::Arc;

use async_trait::async_trait;

use super::config::ReverseConfig;
use super::interface::{CageCallHandler, local_copy};
use super::lan::Lan;
use wasmcage_config::{ConfigError, ProtocolInfo, RequestTarget, Section};
use wasmcage_protocol::{Address, Interface, InterfaceContext, InterfaceError, Protocol};

pub struct ReverseRpcProtocol;

impl Protocol for ReverseRpcProtocol {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new("reverse-rpc").target(RequestTarget::NamedModule)
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(ReverseInterface { config: ReverseConfig::read(section)? }))
    }
}

/// Interval at which the interface's status is updated.
const STATUS_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);

struct ReverseInterface {
    config: ReverseConfig,
}

#[async_trait]
impl Interface for ReverseInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let ReverseConfig { serve, lan, limits } = self.config;
        let (interface, lanes) = (&cx.endpoint.interface, cx.lanes.clone());
        let tasks = cx.tasks.clone();
        let lan = Lan::open(local_copy(&cx), interface, lan, limits, &cx.runtime_directory, lanes, tasks).await?;
        let listen = |cage| cx.endpoint.listen(Address::Outside(format!("reverse://{cage}")));
        let listening: Vec<_> = serve.iter().map(listen).collect();
        let handler = Arc::new(CageCallHandler { dispatch: cx.dispatch.clone() });
        tokio::select! {
            () = lan.serve_in_reverse(&serve, handler, &cx.drain) => {}
            () = update_status(&lan, &serve, &cx) => {}
        }
        drop(listening);
        cx.endpoint.set_status(None);
        Ok(())
    }
}

/// Sets the interface's status to the cages that are not served, and why. Never returns.
async fn update_status(lan: &Lan, serve: &[String], cx: &InterfaceContext) {
    loop {
        let not_served = lan.not_served(serve);
        let texts: Vec<_> = not_served.iter().map(|(cage, why)| format!("reverse://{cage}: {why}")).collect();
        cx.endpoint.set_status((!texts.is_empty()).then(|| texts.join("; ")));
        tokio::time::sleep(STATUS_INTERVAL).await;
    }
}
