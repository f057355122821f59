//! Measures a guest that calls a guest of another process: two hosts, each in a process of its own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use wasmcage::host::{Host, HostOptions};
use wasmcage_core::request::{Payload, RequestContext};

use crate::fabrics::{LANES, front_toml, meeting, prepare, worker_toml};
use crate::processes::{self, Server, this};
use wasmcage_benches::{guest_file, median, target};

const CALLS: usize = 5_000;
const WARM_UP_CALLS: usize = 500;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const GUEST: &str = "service_echo";

/// Medians, in microseconds.
pub(crate) struct Figures {
    /// From the host to a guest.
    pub(crate) direct_us: f64,
    /// From the host to a guest to a guest of the other process.
    pub(crate) through_us: f64,
}

/// Measures these calls; none if the guests are not built.
pub(crate) fn measure(kind: &str) -> Option<Figures> {
    guest_file(GUEST)?;
    let directory = tempfile::tempdir().unwrap();
    prepare(directory.path());
    let mut serve = Command::new(this());
    serve.args(["serve-guest", kind]).arg(directory.path());
    let (_server, address) = Server::start(serve);
    let mut load = Command::new(this());
    load.args(["load-guest", kind]).arg(directory.path()).arg(address);
    let figures = processes::json(load);
    let figure = |name: &str| figures[name].as_f64().unwrap();
    Some(Figures { direct_us: figure("direct_us"), through_us: figure("through_us") })
}

/// Starts the called side. Returns the host and its address; the host serves until it is dropped. Over Unix sockets the
/// caller needs no address.
pub(crate) async fn serve(kind: &str, directory: &Path) -> (Host, String) {
    let host = start(kind, directory, "worker", &worker_toml(kind, None)).await;
    let address = host.serving().into_iter().find(|line| line.address.starts_with("tls://"));
    let address = address.map_or(kind.to_owned(), |line| line.address.trim_start_matches("tls://").to_owned());
    (host, address)
}

/// Runs the calling side, and returns the figures as one line of JSON.
pub(crate) async fn load(kind: &str, directory: &Path, address: &str) -> String {
    let permission = format!("[modules.{GUEST}]\nallow = {{ cages = [\"worker\"] }}\n");
    let host = start(kind, directory, "front", &(front_toml(kind, address) + &permission)).await;
    let body = "x".repeat(200);
    let echo = json!({ "args": [body] }).to_string();
    let forward = json!({ "args": ["worker", GUEST, "echo", [body]] }).to_string();
    let direct = calls(&host, "echo", Payload::Json(echo)).await;
    let through = calls(&host, "forward", Payload::Json(forward)).await;
    json!({ "direct_us": direct.as_secs_f64() * 1e6, "through_us": through.as_secs_f64() * 1e6 }).to_string()
}

async fn start(kind: &str, directory: &Path, cage: &str, toml: &str) -> Host {
    fs::write(directory.join(cage).join("cage.toml"), toml).unwrap();
    fs::copy(guest_file(GUEST).unwrap(), directory.join(cage).join(format!("{GUEST}.wasm"))).unwrap();
    let mut options = HostOptions::new(directory, [cage], wasmcage_bin::protocols());
    options.lanes = Some(LANES);
    options.compiler = Some(target().join("wasmcage").into());
    options.cache = Some(target().join("guests/bench-cache"));
    options.runtime_directory = Some(meeting(directory, cage, kind));
    Host::start(options).await.unwrap()
}

/// The median of calls, one after the other, on one lane.
async fn calls(host: &Host, function: &'static str, arguments: Payload) -> Duration {
    let dispatcher = host.cage("front").unwrap().dispatcher().clone();
    let calls = async move {
        let mut durations = Vec::with_capacity(CALLS);
        for number in 0..WARM_UP_CALLS + CALLS {
            let context = RequestContext::new("bench".into(), "bench", CALL_TIMEOUT, Arc::default());
            let call = dispatcher.call(Arc::new(context), GUEST, function.to_owned(), arguments.clone());
            let begun = Instant::now();
            call.await.unwrap();
            if number >= WARM_UP_CALLS {
                durations.push(begun.elapsed());
            }
        }
        median(durations)
    };
    host.lanes().handle(0).spawn(calls).await.unwrap()
}
