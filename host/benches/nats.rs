//! Calls over NATS beside the client library's own requests: the same server, the same bytes there and back, one caller
//! and 64. Rounds of both alternate, and medians are shown, so that what else the machine does hits both.
//!
//! `cargo bench --bench nats`, with `nats-server` in `PATH` or named by `NATS_SERVER`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first thing that is wrong, and prints"
)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use wasmcage::config::{Environment, parse};
use wasmcage::dispatcher::{Call, DispatchError, Remote as _};
use wasmcage::drain::Drain;
use wasmcage::protocol::rpc::fabric::{CopyId, Fabric as _, Limits, Local, Service};
use wasmcage::protocol::rpc::nats::{Nats, NatsConfig};
use wasmcage::request::{Payload, RequestContext};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 7;
const BODY: [u8; 200] = [7; 200];

struct Echo;

#[async_trait]
impl Service for Echo {
    async fn serve(&self, call: Call) -> Result<Payload, DispatchError> {
        Ok(call.arguments)
    }
}

/// A server of its own, ended when dropped.
struct Server {
    process: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let program = std::env::var("NATS_SERVER").unwrap_or_else(|_| "nats-server".into());
        let mut command = Command::new(program);
        command.args(["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir"]).arg(directory.path());
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let file = directory.path().join(format!("nats-server_{}.ports", process.id()));
        let address = loop {
            let ports = std::fs::read_to_string(&file).ok();
            let ports = ports.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
            match ports.and_then(|ports| Some(ports["nats"][0].as_str()?.to_owned())) {
                Some(address) => break address,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        Some(Self { process, address, _directory: directory })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn main() {
    let Some(server) = Server::start() else {
        println!("not run: there is no nats-server");
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(compare(&server.address));
}

async fn compare(address: &str) {
    let worker = Arc::new(join(address, "worker").await);
    tokio::spawn({
        let worker = worker.clone();
        async move { worker.advertise(Arc::new(Echo), Drain::new()).await.unwrap() }
    });
    let front = Arc::new(join(address, "front").await);
    while front.copies("worker").is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (asking, answering) =
        (async_nats::connect(address).await.unwrap(), async_nats::connect(address).await.unwrap());
    let mut requests = answering.queue_subscribe("echo", "echo".into()).await.unwrap();
    answering.flush().await.unwrap();
    tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            let answering = answering.clone();
            tokio::spawn(async move { answering.publish(message.reply.unwrap(), message.payload).await.unwrap() });
        }
    });
    println!("| 200 B there and back, per second | async-nats request | call | ratio |\n|---|---|---|---|");
    for (callers, calls) in [(1, 5_000), (64, 50_000)] {
        let (mut raw, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            raw.push(
                rate(callers, calls, async || {
                    asking.request("echo", Bytes::from_static(&BODY)).await.unwrap();
                })
                .await,
            );
            ours.push(
                rate(callers, calls, async || {
                    front.call(call(), None).await.unwrap();
                })
                .await,
            );
        }
        let (raw, ours) = (median(raw), median(ours));
        println!("| {callers} callers | {raw:.0} | {ours:.0} | {:.2} |", ours / raw);
    }
}

async fn join(address: &str, cage: &str) -> Nats {
    let environment = Environment {
        cage,
        node: "bench",
        directory: Path::new("/"),
        protocols: &["rpc"],
        unnamed: &[],
        variables: &|_| None,
    };
    let text = format!("[interfaces.nats]\nprotocol = \"rpc\"\nurl = \"{address}\"");
    let section = parse(&[("cage.toml".into(), text)], &environment).unwrap().interfaces["nats"].section.clone();
    section.optional_string("protocol");
    let local = Local { flock: "bench".into(), cage: cage.into(), copy: CopyId::random(), node: "bench".into() };
    Nats::start(&NatsConfig::read(section).unwrap(), "rpc".into(), local, Limits::default()).await.unwrap()
}

fn call() -> Call {
    let context = RequestContext::new("bench".into(), "bench", Duration::from_secs(10), Arc::default());
    Call {
        context: Arc::new(context.for_call("front", "caller", None)),
        cage: "worker".into(),
        module: "work".into(),
        function: "handle".into(),
        arguments: Payload::Bytes(Bytes::from_static(&BODY)),
        idempotent: false,
    }
}

/// Calls per second.
async fn rate(callers: usize, calls: usize, call: impl AsyncFn()) -> f64 {
    let begun = Instant::now();
    let call = &call;
    join_all((0..callers).map(|_| async move {
        for _ in 0..calls / callers {
            call().await;
        }
    }))
    .await;
    calls as f64 / begun.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
