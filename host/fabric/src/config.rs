//! Configuration of the interfaces of protocols `rpc` and `reverse-rpc`, such as `[interfaces.rpc]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::discovery::{MULTICAST_PORT, PeerAddress};
use super::fabric::CallLimits;
use crate::keys::KEYS_DIRECTORY;
use wasmcage_config::{ConfigError, ListenAddress, Section, is_name};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS_MAX: usize = 3;

#[derive(Clone, Debug)]
pub struct RpcConfig {
    pub fabric: FabricConfig,
    pub limits: CallLimits,
}

#[derive(Clone, Debug)]
pub enum FabricConfig {
    Lan(LanConfig),
    #[cfg(feature = "nats")]
    Nats(super::nats::NatsConfig),
}

impl FabricConfig {
    /// Returns the configuration of fabric `lan`; none for another fabric.
    pub fn into_lan(self) -> Option<LanConfig> {
        match self {
            Self::Lan(lan) => Some(lan),
            #[cfg(feature = "nats")]
            Self::Nats(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanConfig {
    /// TCP address for cages of other machines; without one, only this machine's cages can call.
    pub listen: Option<String>,
    pub keys: PathBuf,
    /// Addresses of cages to connect to, besides what discovery finds.
    pub peers: BTreeMap<String, Vec<PeerAddress>>,
    /// Uses multicast DNS to find cages of other machines and to announce this one.
    pub multicast: bool,
    pub multicast_port: u16,
    /// Uses multicast over the loopback interface only: for tests on one machine.
    pub multicast_loopback: bool,
    /// Prefers copies on this machine.
    pub near_first: bool,
    pub connections_max: usize,
    pub connect_timeout: Duration,
    /// Timeout of an idempotent call at one copy while there are others.
    pub attempt_timeout: Duration,
    pub attempts_max: usize,
}

/// Configuration of `[interfaces.NAME]` with `protocol = "reverse-rpc"`.
#[derive(Clone, Debug)]
pub struct ReverseConfig {
    /// Cages that are served over connections made from here.
    pub serve: Vec<String>,
    pub lan: LanConfig,
    pub limits: CallLimits,
}

impl RpcConfig {
    /// # Errors
    /// All mistakes of the section.
    pub fn read(section: Section) -> Result<Self, ConfigError> {
        #[derive(Clone, Copy)]
        enum FabricKind {
            Lan,
            Nats,
        }
        let limits = limits(&section);
        let fabric =
            match section.choice("fabric", &[("lan", FabricKind::Lan), ("nats", FabricKind::Nats)], FabricKind::Lan) {
                FabricKind::Lan => {
                    let listen =
                        section.optional_parsed::<ListenAddress>("listen", "host:port, such as \"0.0.0.0:7420\"");
                    FabricConfig::Lan(LanConfig { listen: listen.map(|listen| listen.0), ..LanConfig::read(&section) })
                }
                #[cfg(feature = "nats")]
                FabricKind::Nats => nats(&section),
                #[cfg(not(feature = "nats"))]
                FabricKind::Nats => {
                    section.problem("fabric", "this program was built without the feature nats");
                    FabricConfig::Lan(LanConfig::read(&section))
                }
            };
        section.finish()?;
        Ok(Self { fabric, limits })
    }
}

impl ReverseConfig {
    /// # Errors
    /// All mistakes of the section.
    pub fn read(section: Section) -> Result<Self, ConfigError> {
        let serve = section.strings("serve", &[]);
        if serve.is_empty() {
            section
                .problem("serve", "required and not set; expected the names of the cages to serve, such as [\"dmz\"]");
        }
        for name in serve.iter().filter(|name| !is_name(name)) {
            section.problem("serve", format!("{name:?} cannot name a cage"));
        }
        let (lan, limits) = (LanConfig::read(&section), limits(&section));
        section.finish()?;
        Ok(Self { serve, lan, limits })
    }
}

impl LanConfig {
    /// For a client that calls cages of this machine and cannot be called. `directory` must have no keys.
    pub fn of_client(directory: &Path) -> Self {
        Self {
            listen: None,
            keys: directory.join(KEYS_DIRECTORY),
            peers: BTreeMap::new(),
            multicast: false,
            multicast_port: MULTICAST_PORT,
            multicast_loopback: false,
            near_first: true,
            connections_max: 1,
            connect_timeout: CONNECT_TIMEOUT,
            attempt_timeout: ATTEMPT_TIMEOUT,
            attempts_max: ATTEMPTS_MAX,
        }
    }

    fn read(section: &Section) -> Self {
        let milliseconds = |key, default, most| section.milliseconds(key, default, 1..=most);
        Self {
            listen: None,
            keys: section.path("keys").unwrap_or_else(|| section.directory().join(KEYS_DIRECTORY)),
            peers: peers(section),
            multicast: section.flag("multicast", true),
            multicast_port: section.integer("multicast_port", MULTICAST_PORT.into(), 1..=u64::from(u16::MAX)) as u16,
            multicast_loopback: section.flag("multicast_loopback", false),
            near_first: section.flag("near_first", true),
            connections_max: section.integer("max_connections", 1_000, 1..=100_000) as usize,
            connect_timeout: milliseconds("connect_timeout_ms", CONNECT_TIMEOUT, 60_000),
            attempt_timeout: milliseconds("attempt_timeout_ms", ATTEMPT_TIMEOUT, 3_600_000),
            attempts_max: section.integer("max_attempts", ATTEMPTS_MAX as u64, 1..=100) as usize,
        }
    }
}

/// Reads the table `nats`. Its mistakes are reported with those of the interface's section.
#[cfg(feature = "nats")]
fn nats(section: &Section) -> FabricConfig {
    let table = section.table("nats");
    if table.is_none() {
        section.problem("nats", "required and not set; expected a table such as { url = \"nats://127.0.0.1:4222\" }");
    }
    match table.and_then(|table| super::nats::NatsConfig::read(table).ok()) {
        Some(config) => FabricConfig::Nats(config),
        None => FabricConfig::Lan(LanConfig::read(section)),
    }
}

fn limits(section: &Section) -> CallLimits {
    let default = CallLimits::default();
    let calls = |key, default| section.integer(key, default as u64, 1..=1_000_000) as usize;
    CallLimits {
        body_bytes_max: section.integer("max_body_bytes", default.body_bytes_max as u64, 1..=1 << 30) as usize,
        calls_per_cage_max: calls("max_calls_per_cage", default.calls_per_cage_max),
        calls_per_peer_max: calls("max_calls_per_peer", default.calls_per_peer_max),
    }
}

fn peers(section: &Section) -> BTreeMap<String, Vec<PeerAddress>> {
    let Some(table) = section.table("peers") else { return BTreeMap::new() };
    let mut peers = BTreeMap::new();
    for cage in table.keys() {
        if !is_name(&cage) {
            table.problem(&cage, "this cannot name a cage");
        }
        let addresses = table.parsed_list(&cage, Vec::new(), "host:port, such as \"10.0.0.2:7420\"");
        peers.insert(cage, addresses);
    }
    // Its mistakes are reported with those of the interface's section.
    let _ = table.finish();
    peers
}
