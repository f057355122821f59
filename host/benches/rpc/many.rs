//! Measures the cost of a thousand advertised cages for a cage that does not call them: looking one up, listing all,
//! and idling.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use wasmcage_core::unix_socket;
use wasmcage_fabric::discovery::{Multicast, MulticastSettings, Registry};
use wasmcage_fabric::fabric::{CopyId, LocalCopy};

use crate::fabrics::{lanes, open, prepare};
use crate::load::cpu_time;
use crate::processes::{self, Server, this};

pub(crate) const CAGES: usize = 1_000;
const LOOKUPS: u32 = 1_000_000;
const LISTS: u32 = 100;
const FOUND_WITHIN: Duration = Duration::from_secs(30);
/// The pause after the last cage was found, until the work that it caused is over.
const SETTLE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(5);

pub(crate) struct Figures {
    /// Fewer than all if they did not appear in time.
    pub(crate) found: u64,
    pub(crate) lookup_us: f64,
    pub(crate) list_us: f64,
    /// The share of one core.
    pub(crate) idle_percent: f64,
}

/// Measures with `way`, which is `registry` or `multicast`.
pub(crate) fn measure(way: &str) -> Figures {
    let directory = tempfile::tempdir().unwrap();
    let port = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port().to_string();
    let mut advertise = Command::new(this());
    advertise.args(["advertise-many", way]).arg(directory.path()).arg(&port);
    let (_server, _) = Server::start(advertise);
    let mut look = Command::new(this());
    look.args(["look-at-many", way]).arg(directory.path()).arg(&port);
    let figures = processes::json(look);
    let figure = |name: &str| figures[name].as_f64().unwrap();
    Figures {
        found: figures["found"].as_u64().unwrap(),
        lookup_us: figure("lookup_us"),
        list_us: figure("list_us"),
        idle_percent: figure("idle_percent"),
    }
}

fn name(number: usize) -> String {
    format!("cage_{number}")
}

/// Advertises cages by listening sockets or announcements, until the returned value is dropped.
pub(crate) fn advertise(way: &str, directory: &Path, port: u16) -> Vec<Box<dyn std::any::Any>> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let registry = Registry::open(&directory.join("run"), "default").unwrap();
    let cage = |number: usize| -> Box<dyn std::any::Any> {
        let copy = CopyId::random();
        if way == "registry" {
            return Box::new(unix_socket::bind(&registry.registration_path(&name(number), copy)).unwrap());
        }
        let local = LocalCopy { flock: "default".into(), cage: name(number).into(), copy, node: "bench".into() };
        let settings = MulticastSettings { port, loopback_only: true };
        // The daemon is one for all cages and accepts only so many commands at once.
        let multicast = patiently(|| Multicast::start(settings, local.clone(), Arc::new(|_| {})));
        patiently(|| multicast.announce((Ipv4Addr::LOCALHOST, 1).into()));
        Box::new(multicast)
    };
    (0..CAGES).map(cage).collect()
}

fn patiently<T, E: std::fmt::Debug>(attempt: impl Fn() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) if begun.elapsed() > FOUND_WITHIN => panic!("{error:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Runs the cage that finds the others, and prints one line of JSON.
pub(crate) async fn look(way: &str, directory: &Path, port: u16) -> String {
    let multicast = way == "multicast";
    // Without keys there is no discovery on the network.
    prepare(directory);
    let toml = format!(
        "[interfaces.rpc]\nmulticast = {multicast}\nmulticast_loopback = {multicast}\nmulticast_port = {port}\n"
    );
    std::fs::write(directory.join("front/cage.toml"), toml).unwrap();
    let fabric = open(directory, "front", &directory.join("run"), lanes()).await;
    let begun = Instant::now();
    while fabric.members().len() < CAGES && begun.elapsed() < FOUND_WITHIN {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(SETTLE).await;
    let found = fabric.members();
    let some = found.get(found.len() / 2).map_or("none", |member| &*member.cage);
    let lookup = each(LOOKUPS, || drop(std::hint::black_box(fabric.copies(std::hint::black_box(some)))));
    let list = each(LISTS, || assert_eq!(fabric.members().len(), found.len()));
    let before = cpu_time();
    tokio::time::sleep(IDLE).await;
    let idle = (cpu_time() - before).as_secs_f64() / IDLE.as_secs_f64();
    json!({ "found": found.len(), "lookup_us": lookup, "list_us": list, "idle_percent": idle * 100.0 }).to_string()
}

/// The mean microseconds of a repetition.
fn each(times: u32, work: impl Fn()) -> f64 {
    let begun = Instant::now();
    (0..times).for_each(|_| work());
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(times)
}
