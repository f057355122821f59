//! Interface of protocol `reverse-rpc`: serves cages that cannot connect to this one. It connects to them, and their calls
//! come back over those connections.

use std::sync::Arc;

use async_trait::async_trait;

use super::config::ReverseConfig;
use super::interface::{CageService, local};
use super::lan::Lan;
use wasmcage_config::{ConfigError, ProtocolInfo, RequestTarget, Section};
use wasmcage_protocol::{Address, Interface, InterfaceContext, InterfaceError, Protocol};

pub struct ReverseRpc;

impl Protocol for ReverseRpc {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new("reverse-rpc").target(RequestTarget::NamedModule)
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(ReverseInterface { config: ReverseConfig::read(section)? }))
    }
}

/// Between two looks at who is served.
const TELL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);

struct ReverseInterface {
    config: ReverseConfig,
}

#[async_trait]
impl Interface for ReverseInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let ReverseConfig { serve, lan, limits } = self.config;
        let (interface, lanes) = (&cx.endpoint.interface, cx.lanes.clone());
        let tasks = cx.tasks.clone();
        let lan = Lan::open(local(&cx), interface, lan, limits, &cx.runtime_directory, lanes, tasks).await?;
        let listen = |cage| cx.endpoint.listen(Address::Outside(format!("reverse://{cage}")));
        let listening: Vec<_> = serve.iter().map(listen).collect();
        let service = Arc::new(CageService { dispatch: cx.dispatch.clone() });
        tokio::select! {
            () = lan.serve_in_reverse(&serve, service, &cx.drain) => {}
            () = keep_telling(&lan, &serve, &cx) => {}
        }
        drop(listening);
        cx.endpoint.set_status(None);
        Ok(())
    }
}

/// Tells the operator which cages are not served, and why. Never ends.
async fn keep_telling(lan: &Lan, serve: &[String], cx: &InterfaceContext) {
    loop {
        let not_served = lan.not_served(serve);
        let told: Vec<_> = not_served.iter().map(|(cage, why)| format!("reverse://{cage}: {why}")).collect();
        cx.endpoint.set_status((!told.is_empty()).then(|| told.join("; ")));
        tokio::time::sleep(TELL_INTERVAL).await;
    }
}
