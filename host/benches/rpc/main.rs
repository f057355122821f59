//! Measures calls between processes: wasmcage's fabrics beside raw frames, tarpc, tonic and async-nats, all over
//! loopback, each side in a process of its own; a guest that calls a guest of another process; a thousand advertised
//! cages.
//!
//! `cargo bench -p wasmcage-benches --bench rpc` after `tests/run guests`. Rounds are interleaved and medians printed,
//! because machines drift; compare figures of one run only. `WASMCAGE_BENCH_SECONDS` (2) and `WASMCAGE_BENCH_ROUNDS`
//! (3) change the length. The others are in `benches/rpc_peers`, a package of its own that is built here. `NATS_SERVER`
//! may name a server. Every peer has one connection and a runtime of two threads. A lan cage has a connection for each
//! of its two lanes, and so have the raw frames "as lanes", which show how much of the difference is due to the lanes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first thing that is wrong, and prints"
)]

mod fabrics;
mod guests;
#[path = "../rpc_peers/src/load.rs"]
mod load;
mod many;
mod processes;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use load::Load;
use processes::{Contestant, Measured, NatsServer};
use wasmcage_core::telemetry::{self, TerminalOptions};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The bytes of a body, the callers, and the callers with big bodies beside them.
const CELLS: [(usize, usize, usize); 5] = [(200, 1, 0), (200, 16, 0), (200, 64, 0), (64 << 10, 16, 0), (200, 1, 8)];
const BIG_BYTES: usize = 900_000;
const SEQUENTIAL: usize = 0;
const SIXTY_FOUR: usize = 2;
const LARGE: usize = 3;
const BESIDE_BIG: usize = 4;

const RAW: &str = "raw frames, mutual TLS";
const TONIC: &str = "tonic, mutual TLS";
const LAN: &str = "wasmcage lan, mutual TLS";
const REQUESTS: &str = "async-nats requests";
const NATS: &str = "wasmcage nats";

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    if part(&arguments) {
        return;
    }
    let setting = |name: &str, default: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let seconds = setting("WASMCAGE_BENCH_SECONDS", 2);
    let rounds = setting("WASMCAGE_BENCH_ROUNDS", 3);
    let mut goals = Goals(Vec::new());
    let only = arguments.iter().find(|argument| !argument.starts_with("--"));
    let wanted = |part: &str| only.is_none_or(|only| part.contains(only));
    if wanted("echo") {
        echo(Duration::from_secs(seconds), rounds, &mut goals);
    }
    if wanted("guests") {
        guests(Duration::from_secs(seconds), rounds, &mut goals);
    }
    if wanted("many") {
        many(&mut goals);
    }
    goals.print();
}

/// Runs as another process of this bench; false if the arguments name no such part.
fn part(arguments: &[&str]) -> bool {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let serving = |line: &str| {
        println!("{line}");
        // This ends when the starting process closes its side.
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    };
    telemetry::install(TerminalOptions::off());
    match *arguments {
        ["serve", kind, directory] => serving(&runtime.block_on(fabrics::serve(kind, Path::new(directory), None))),
        ["serve", kind, directory, url] => {
            serving(&runtime.block_on(fabrics::serve(kind, Path::new(directory), Some(url))));
        }
        ["load", kind, directory, address, bytes, callers, seconds, beside, beside_bytes] => {
            let number = |text: &str| text.parse().unwrap();
            let load = Load {
                body_bytes: number(bytes),
                callers: number(callers),
                duration: Duration::from_secs_f64(seconds.parse().unwrap()),
                beside: number(beside),
                beside_body_bytes: number(beside_bytes),
            };
            println!("{}", runtime.block_on(fabrics::load(kind, Path::new(directory), address, load)));
        }
        ["serve-guest", kind, directory] => {
            let (host, address) = runtime.block_on(guests::serve(kind, Path::new(directory)));
            serving(&address);
            runtime.block_on(host.stop());
        }
        ["load-guest", kind, directory, address] => {
            println!("{}", runtime.block_on(guests::load(kind, Path::new(directory), address)));
        }
        ["advertise-many", way, directory, port] => {
            let _runtime = runtime.enter();
            let advertised = many::advertise(way, Path::new(directory), port.parse().unwrap());
            serving("ready");
            drop(advertised);
        }
        ["look-at-many", way, directory, port] => {
            println!("{}", runtime.block_on(many::look(way, Path::new(directory), port.parse().unwrap())));
        }
        _ => return false,
    }
    // Work that is still running in the background must not count.
    runtime.shutdown_background();
    true
}

/// Measures native echo services of every kind under the same loads.
fn echo(duration: Duration, rounds: u64, goals: &mut Goals) {
    let directory = tempfile::tempdir().unwrap();
    let nats = NatsServer::start();
    let contestants = contestants(directory.path(), nats.as_ref());
    let mut figures: Vec<Vec<Vec<Measured>>> = vec![vec![Vec::new(); contestants.len()]; CELLS.len()];
    for _ in 0..rounds {
        for (cell, (body_bytes, callers, beside)) in CELLS.into_iter().enumerate() {
            for (at, contestant) in contestants.iter().enumerate() {
                let load = Load { body_bytes, callers, duration, beside, beside_body_bytes: BIG_BYTES };
                figures[cell][at].push(contestant.load(load));
            }
        }
    }
    let medians: Vec<Vec<Measured>> =
        figures.iter().map(|cell| cell.iter().map(|list| median_of(list)).collect()).collect();
    for (cell, (bytes, callers, beside)) in CELLS.into_iter().enumerate() {
        let beside = if beside > 0 { format!(" beside {beside} of {BIG_BYTES} B") } else { String::new() };
        println!("\n| {bytes} B, callers: {callers}{beside} | calls/s | of raw | p50 us | p99 us | client CPU us |");
        println!("|---|---|---|---|---|---|");
        for (contestant, of) in contestants.iter().zip(&medians[cell]) {
            let raw = contestants.iter().position(|contestant| contestant.name == RAW);
            let share = raw.map_or("-".into(), |raw| format!("{:.2}", of.per_second / medians[cell][raw].per_second));
            let Measured { per_second, p50_us, p99_us, cpu_us } = of;
            println!("| {} | {per_second:.0} | {share} | {p50_us:.0} | {p99_us:.0} | {cpu_us:.1} |", contestant.name);
        }
    }
    let of = |name: &str, cell: usize| {
        contestants.iter().position(|contestant| contestant.name == name).map(|at| medians[cell][at])
    };
    let ratio = |cell: usize, a: &str, b: &str, value: fn(&Measured) -> f64| {
        of(a, cell).zip(of(b, cell)).map(|(a, b)| value(&a) / value(&b))
    };
    let rate = |of: &Measured| of.per_second;
    goals.most("lan, 200 B, one caller: p50 of raw's", ratio(SEQUENTIAL, LAN, RAW, |of| of.p50_us), 1.3);
    goals.least("lan, 200 B, 64 callers: rate of raw's", ratio(SIXTY_FOUR, LAN, RAW, rate), 0.6);
    goals.least("lan, 200 B, 64 callers: rate of tonic's", ratio(SIXTY_FOUR, LAN, TONIC, rate), 2.0);
    goals.least("lan, 64 KiB, 16 callers: rate of raw's", ratio(LARGE, LAN, RAW, rate), 0.8);
    goals.most("lan, 200 B beside 900 KB: p99 ms", of(LAN, BESIDE_BIG).map(|of| of.p99_us / 1e3), 15.0);
    goals.least("nats, 200 B, 64 callers: rate of async-nats'", ratio(SIXTY_FOUR, NATS, REQUESTS, rate), 0.8);
}

/// All kinds that this machine can run, with running servers.
fn contestants(directory: &Path, nats: Option<&NatsServer>) -> Vec<Contestant> {
    let this = processes::this();
    let fabric = |name, kind: &'static str, url| {
        let directory = directory.join(kind);
        std::fs::create_dir(&directory).unwrap();
        fabrics::prepare(&directory);
        Contestant::start(name, &this, kind, directory, url)
    };
    let mut contestants = Vec::new();
    let url = nats.map(|nats| nats.url.as_str());
    match peers(directory) {
        None => println!("not run: the peers, which could not be built"),
        Some((program, keys)) => {
            let peer = |name, kind, url| Contestant::start(name, &program, kind, keys.clone(), url);
            contestants.extend([
                peer("raw frames, plain", "raw-plain", None),
                peer(RAW, "raw", None),
                peer("raw frames, mutual TLS, as lanes", "raw-threads", None),
                peer("tarpc, mutual TLS", "tarpc", None),
                peer(TONIC, "tonic", None),
            ]);
            contestants.extend(url.map(|url| peer(REQUESTS, "nats", Some(url))));
        }
    }
    contestants.extend([fabric(LAN, "tls", None), fabric("wasmcage lan, Unix socket", "unix", None)]);
    match url {
        None => println!("not run: NATS, for which there is no nats-server"),
        Some(url) => contestants.push(fabric(NATS, "nats", Some(url))),
    }
    contestants
}

/// The peers' program and a directory with their keys.
fn peers(directory: &Path) -> Option<(PathBuf, PathBuf)> {
    let (program, keys) = (processes::peers()?, directory.join("peers"));
    assert!(Command::new(&program).arg("keys").arg(&keys).status().unwrap().success());
    Some((program, keys))
}

/// Measures calls from guest to guest of another process, beside the round trip of raw hyper.
fn guests(duration: Duration, rounds: u64, goals: &mut Goals) {
    let directory = tempfile::tempdir().unwrap();
    let hyper = peers(directory.path()).map(|(program, keys)| Contestant::start("", &program, "http1", keys, None));
    let load = Load { body_bytes: 200, callers: 1, duration, beside: 0, beside_body_bytes: 0 };
    let (mut round_trips, mut tls, mut unix) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        round_trips.extend(hyper.iter().map(|hyper| hyper.load(load).p50_us));
        let (Some(of_tls), Some(of_unix)) = (guests::measure("tls"), guests::measure("unix")) else {
            println!("not run: the guests are not built");
            return;
        };
        tls.push(of_tls);
        unix.push(of_unix);
    }
    println!("\n| 200 B each way, one after the other | median us |\n|---|---|");
    let hyper = (!round_trips.is_empty()).then(|| median(round_trips.into_iter()));
    if let Some(hyper) = hyper {
        println!("| raw hyper, round trip | {hyper:.0} |");
    }
    println!("| host to guest | {:.0} |", median(tls.iter().map(|of| of.direct_us)));
    for (name, figures) in [("mutual TLS", &tls), ("Unix socket", &unix)] {
        let (through, inner) = (
            median(figures.iter().map(|of| of.through_us)),
            median(figures.iter().map(|of| of.through_us - of.direct_us)),
        );
        println!("| host to guest to remote guest, {name} | {through:.0} |");
        println!("| the inner call's share | {inner:.0} |");
    }
    let inner = median(tls.iter().map(|of| of.through_us - of.direct_us));
    goals.most("guest to remote guest, mutual TLS: p50 of raw hyper's", hyper.map(|hyper| inner / hyper), 2.0);
}

/// Measures a cage among a thousand others.
fn many(goals: &mut Goals) {
    println!("\n| a cage among 1,000 others | found | one looked up us | all listed us | idle, % of a core |");
    println!("|---|---|---|---|---|");
    for way in ["registry", "multicast"] {
        let many::Figures { found, lookup_us, list_us, idle_percent } = many::measure(way);
        println!("| {way} | {found} | {lookup_us:.2} | {list_us:.0} | {idle_percent:.2} |");
        // Of a thousand announcements at once some are lost, and later ones replace them.
        let of_all = |value| (found * 100 >= many::CAGES as u64 * 99).then_some(value);
        goals.most(&format!("1,000 cages by {way}: lookup us"), of_all(lookup_us), 1.0);
        goals.most(&format!("1,000 cages by {way}: idle % of a core"), of_all(idle_percent), 1.0);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of each figure by itself.
fn median_of(list: &[Measured]) -> Measured {
    let of = |value: fn(&Measured) -> f64| median(list.iter().map(value));
    Measured {
        per_second: of(|of| of.per_second),
        p50_us: of(|of| of.p50_us),
        p99_us: of(|of| of.p99_us),
        cpu_us: of(|of| of.cpu_us),
    }
}

/// The goals, each with a text that says whether it was reached.
struct Goals(Vec<String>);

impl Goals {
    fn most(&mut self, what: &str, value: Option<f64>, limit: f64) {
        self.add(what, value, "at most", limit, |value| value <= limit);
    }

    fn least(&mut self, what: &str, value: Option<f64>, limit: f64) {
        self.add(what, value, "at least", limit, |value| value >= limit);
    }

    fn add(&mut self, what: &str, value: Option<f64>, bound: &str, limit: f64, kept: impl Fn(f64) -> bool) {
        let line = match value {
            None => format!("| {what} | not run | {bound} {limit} | - |"),
            Some(value) => {
                format!("| {what} | {value:.2} | {bound} {limit} | {} |", if kept(value) { "yes" } else { "no" })
            }
        };
        self.0.push(line);
    }

    fn print(&self) {
        println!("\n| goal | measured | wanted | kept |\n|---|---|---|---|");
        self.0.iter().for_each(|line| println!("{line}"));
    }
}
