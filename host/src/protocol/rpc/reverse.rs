//! Interface of protocol `reverse-rpc`: serves cages that cannot connect to this one. It connects to them, and their calls
//! come back over those connections.

use std::sync::Arc;

use async_trait::async_trait;

use super::config::ReverseConfig;
use super::interface::{CageService, local};
use super::lan::Lan;
use crate::config::{ConfigError, Section};
use crate::protocol::{Interface, InterfaceContext, InterfaceError, Protocol};

pub struct ReverseRpc;

impl Protocol for ReverseRpc {
    fn name(&self) -> &'static str {
        "reverse-rpc"
    }

    fn has_module(&self) -> bool {
        false
    }

    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Ok(Box::new(ReverseInterface { config: ReverseConfig::read(section)? }))
    }
}

struct ReverseInterface {
    config: ReverseConfig,
}

#[async_trait]
impl Interface for ReverseInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let ReverseConfig { serve, lan, limits } = self.config;
        let (interface, lanes) = (&cx.endpoint.interface, cx.lanes.clone());
        let lan = Lan::open(local(&cx), interface, lan, limits, &cx.runtime_directory, lanes).await?;
        serve.iter().for_each(|cage| cx.endpoint.announce(format!("reverse://{cage}")));
        let service = Arc::new(CageService { dispatcher: cx.dispatcher.clone(), endpoint: cx.endpoint.clone() });
        lan.serve_in_reverse(&serve, service, &cx.drain).await;
        cx.endpoint.forget_addresses();
        Ok(())
    }
}
