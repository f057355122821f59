//! wasmcage's own fabrics as echo servers and clients. Each side is a process of its own: this bench's binary with the
//! arguments of `rpc_peers`. A native service answers, so that no guest is measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinHandle;
use wasmcage_core::call::{Call, CallAction};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::{Payload, RequestContext};
use wasmcage_core::task::Tasks;
use wasmcage_fabric::fabric::{CallHandler, CopyId, Fabric, LocalCopy};
use wasmcage_fabric::keys::{Authority, KEYS_DIRECTORY};
use wasmcage_fabric::lan::Lan;
use wasmcage_fabric::nats::Nats;
use wasmcage_fabric::{FabricConfig, RpcConfig};

use crate::load::{Echo, Load, run};

pub(crate) const LANES: usize = 2;
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(2);

/// Makes certificates for both cages, valid for a year, and a directory for each.
pub(crate) fn prepare(directory: &Path) {
    let authority = Authority::create(&directory.join("authority"), "default").unwrap();
    for cage in ["worker", "front"] {
        fs::create_dir(directory.join(cage)).unwrap();
        authority.issue(cage, 365).unwrap().write(&directory.join(cage).join(KEYS_DIRECTORY), false).unwrap();
    }
}

/// The configuration `[interfaces.rpc]` of the called cage; `url` is that of the NATS server.
pub(crate) fn worker_toml(kind: &str, url: Option<&str>) -> String {
    match kind {
        "tls" => "[interfaces.rpc]\nlisten = \"127.0.0.1:0\"\nmulticast = false\n".to_owned(),
        "unix" => "[interfaces.rpc]\nmulticast = false\n".to_owned(),
        "nats" => nats_toml(url.unwrap()),
        other => panic!("{other} is no fabric"),
    }
}

/// The configuration `[interfaces.rpc]` of the calling cage; `address` is the one that `serve` printed.
pub(crate) fn front_toml(kind: &str, address: &str) -> String {
    match kind {
        "tls" => format!("[interfaces.rpc]\npeers = {{ worker = [\"{address}\"] }}\nmulticast = false\n"),
        "unix" => "[interfaces.rpc]\nmulticast = false\n".to_owned(),
        "nats" => nats_toml(address),
        other => panic!("{other} is no fabric"),
    }
}

fn nats_toml(url: &str) -> String {
    format!("[interfaces.rpc]\nfabric = \"nats\"\nnats = {{ url = \"{url}\" }}\n")
}

/// The directory in which the cage finds others of its machine. With `tls` each cage has its own, as if on a machine of
/// its own.
pub(crate) fn meeting(directory: &Path, cage: &str, kind: &str) -> PathBuf {
    match kind {
        "tls" => directory.join(format!("run-{cage}")),
        _ => directory.join("run"),
    }
}

/// Serves until the process ends. Returns the address for `load`.
pub(crate) async fn serve(kind: &str, directory: &Path, url: Option<&str>) -> String {
    fs::write(directory.join("worker/cage.toml"), worker_toml(kind, url)).unwrap();
    let fabric = open(directory, "worker", &meeting(directory, "worker", kind), lanes()).await;
    let advertised = fabric.clone();
    tokio::spawn(async move { advertised.advertise(Arc::new(EchoService), Drain::new()).await.unwrap() });
    while fabric.addresses().is_empty() {
        tokio::time::sleep(LOOK).await;
    }
    let address = fabric.addresses().swap_remove(0);
    url.map_or_else(|| address.trim_start_matches("tls://").to_owned(), str::to_owned)
}

/// Runs the load, and returns the figures as one line of JSON.
pub(crate) async fn load(kind: &str, directory: &Path, address: &str, load: Load) -> String {
    fs::write(directory.join("front/cage.toml"), front_toml(kind, address)).unwrap();
    let lanes = lanes();
    let fabric = open(directory, "front", &meeting(directory, "front", kind), lanes.clone()).await;
    while fabric.copies("worker").is_empty() {
        tokio::time::sleep(LOOK).await;
    }
    run(Client { fabric, lanes }, load).await.unwrap().to_json()
}

pub(crate) fn lanes() -> Arc<Lanes> {
    Arc::new(Lanes::start(LANES).unwrap())
}

/// Opens the fabric that the cage's `cage.toml` configures.
pub(crate) async fn open(root: &Path, cage: &str, meeting: &Path, lanes: Arc<Lanes>) -> Arc<dyn Fabric> {
    let config = wasmcage::cage::load_config(root, cage, "bench", &wasmcage_bin::protocols()).unwrap();
    let rpc = RpcConfig::read(config.interfaces["rpc"].section.clone()).unwrap();
    let flock = config.flock.into();
    let local = LocalCopy { flock, cage: cage.into(), copy: CopyId::random(), node: "bench".into() };
    match rpc.fabric {
        FabricConfig::Lan(lan) => {
            Arc::new(Lan::open(local, "rpc", lan, rpc.limits, meeting, lanes, Tasks::new("bench")).await.unwrap())
        }
        FabricConfig::Nats(nats) => {
            Arc::new(Nats::start(&nats, "rpc".into(), local, rpc.limits, Tasks::new("bench")).await.unwrap())
        }
    }
}

struct EchoService;

#[async_trait]
impl CallHandler for EchoService {
    async fn serve(&self, call: Call) -> Result<Payload, DispatchError> {
        Ok(call.arguments)
    }
}

#[derive(Clone)]
struct Client {
    fabric: Arc<dyn Fabric>,
    lanes: Arc<Lanes>,
}

impl Echo for Client {
    async fn call(&self, body: Bytes) -> Result<usize, String> {
        let context = RequestContext::new("bench".into(), "bench", CALL_TIMEOUT, Arc::default());
        let call = Call {
            context: Arc::new(context.for_call("front", "caller", None)),
            cage: "worker".into(),
            action: CallAction::Run { module: "work".into(), function: "echo".into() },
            arguments: Payload::Bytes(body),
            idempotent: false,
        };
        match self.fabric.call(call, None).await {
            Ok(Payload::Bytes(body)) => Ok(body.len()),
            Ok(other) => Err(format!("bytes were sent, {other:?} came back")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Calls run on the lanes, on which requests are served.
    fn spawn<T: Send + 'static>(
        &self,
        caller: usize,
        calls: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.lanes.handle(caller % LANES).spawn(calls)
    }
}
