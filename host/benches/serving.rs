//! Measures requests per second and latency of a "hello", for each way of serving it, interleaved in one run.
//!
//! `cargo bench -p wasmcage-benches --bench serving` after `tests/run guests`. The load comes from `wrk` (Debian:
//! `apt-get install wrk`) when it is on PATH, else from a small generator in this file. `wasmtime serve` takes part
//! when `wasmtime` is on PATH (`cargo install wasmtime-cli --version 48.0.8`). Rounds are interleaved and medians
//! printed, because machines drift; compare figures of one run only. `WASMCAGE_BENCH_SECONDS` (3) and
//! `WASMCAGE_BENCH_ROUNDS` (3) change the length.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first thing that is wrong, and prints"
)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use wasmcage_benches::{BenchCage, guest_file};

const CONNECTIONS: usize = 64;

/// The allocator of the program, also for raw hyper.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let setting = |name: &str, default: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let seconds = setting("WASMCAGE_BENCH_SECONDS", 3);
    let rounds = setting("WASMCAGE_BENCH_ROUNDS", 3);
    let only = std::env::args().nth(1).filter(|arg| !arg.starts_with("--"));
    let contestants: Vec<(&str, Start)> = vec![
        ("raw hyper", raw_hyper),
        ("handler, warm", || cage("hello", "")),
        ("handler, fresh instance", || cage("hello", "instances = { mode = \"fresh\" }")),
        ("wasi:http 0.2", || cage("wasi_http_p2", "")),
        ("wasi:http 0.2, warm", || cage("wasi_http_p2", "instances = { mode = \"reuse\" }")),
        ("wasi:http 0.3, warm", || cage("wasi_http_p3", "")),
        ("python handler, warm", || cage("python_hello", "")),
        ("wasmtime serve, reuse", || wasmtime_serve(&["--max-instance-reuse-count", "1000000"])),
        ("wasmtime serve, default", || wasmtime_serve(&["--max-instance-reuse-count", "1"])),
        ("wasmtime serve, tuned pool", || {
            wasmtime_serve(&[
                "--max-instance-reuse-count",
                "1",
                "-Opooling-memory-keep-resident=524288",
                "-Opooling-table-keep-resident=65536",
                "-Opooling-allocator=y",
            ])
        }),
    ];
    let mut figures: Vec<(&str, Vec<Figure>)> = Vec::new();
    for round in 0..rounds {
        for (name, start) in contestants.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| name.contains(only)))
        {
            let Some(server) = start() else {
                if round == 0 {
                    println!("not run: {name}");
                }
                continue;
            };
            load(server.address, Duration::from_millis(500));
            let before = server.cpu();
            let mut figure = load(server.address, Duration::from_secs(seconds));
            figure.cpu_us = (server.cpu() - before).as_secs_f64() * 1e6 / (figure.per_second * seconds as f64);
            drop(server);
            match figures.iter_mut().find(|(known, _)| known == name) {
                Some((_, list)) => list.push(figure),
                None => figures.push((name, vec![figure])),
            }
        }
    }
    print_table(&mut figures);
}

/// Starts a server; none if this machine lacks a program that it needs.
type Start = fn() -> Option<Server>;

/// A running server. Dropping it stops the server.
struct Server {
    address: SocketAddr,
    stop: Stop,
}

impl Server {
    /// The processor time that the server has used, user and system. It varies less than the speed on a shared machine.
    fn cpu(&self) -> Duration {
        let pid = match &self.stop {
            Stop::Process(child) => child.id(),
            Stop::Runtime { .. } | Stop::Cage { .. } => std::process::id(),
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // These are fields 14 and 15, counted after the program's name, which may have spaces; Linux has 100 ticks a
        // second.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = [11, 12].into_iter().map(|field| fields[field].parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }
}

enum Stop {
    Runtime { _runtime: tokio::runtime::Runtime },
    Cage { _cage: BenchCage },
    Process(Child),
}

impl Drop for Stop {
    fn drop(&mut self) {
        match self {
            Self::Runtime { .. } | Self::Cage { .. } => {}
            Self::Process(child) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }
}

fn raw_hyper() -> Option<Server> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let hello = service_fn(async |_| {
                    Ok::<_, Infallible>(
                        hyper::Response::builder()
                            .header("content-type", "text/plain")
                            .body(Full::new(Bytes::from_static(b"Hello, world !")))
                            .unwrap(),
                    )
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), hello);
                // The load generator closes its connections at the end.
                let _ = connection.await;
            });
        }
    });
    Some(Server { address, stop: Stop::Runtime { _runtime: runtime } })
}

fn cage(guest: &str, settings: &str) -> Option<Server> {
    let toml = format!(
        "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n[modules.interface_web]\n{settings}\n"
    );
    let cage = BenchCage::start(&[(guest, "interface_web")], &toml)?;
    Some(Server { address: cage.address(), stop: Stop::Cage { _cage: cage } })
}

fn wasmtime_serve(arguments: &[&str]) -> Option<Server> {
    let file = guest_file("wasi_http_p2")?;
    // This port was free a moment ago, and nothing else in this bench opens one meanwhile.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let child = Command::new("wasmtime")
        .args(["serve", "-Scli", "--addr", &address.to_string()])
        .args(arguments)
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let server = Server { address, stop: Stop::Process(child) };
    let until = Instant::now() + Duration::from_secs(30);
    while std::net::TcpStream::connect(address).is_err() {
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(server)
}

/// One measurement.
struct Figure {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// The processor time of the server for each request.
    cpu_us: f64,
}

fn load(address: SocketAddr, duration: Duration) -> Figure {
    let seconds = duration.as_secs_f64().ceil().max(1.0) as u64;
    let wrk = Command::new("wrk")
        .args([
            "-t1",
            &format!("-c{CONNECTIONS}"),
            &format!("-d{seconds}s"),
            "--latency",
            &format!("http://{address}/"),
        ])
        .output();
    match wrk {
        Ok(output) => parse_wrk(&String::from_utf8_lossy(&output.stdout)),
        Err(_) => generate(address, duration),
    }
}

fn parse_wrk(text: &str) -> Figure {
    let line = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name).map(str::trim));
    let micros = |name: &str| {
        let value = line(name).unwrap_or("0us");
        let split = value.find(|c: char| c.is_alphabetic()).unwrap();
        let unit = match &value[split..] {
            "us" => 1.0,
            "ms" => 1e3,
            _ => 1e6,
        };
        value[..split].parse::<f64>().unwrap() * unit
    };
    assert!(!text.contains("Non-2xx"), "the server answered with errors: {text}");
    let per_second = line("Requests/sec:").unwrap_or_else(|| panic!("no figure from wrk: {text}")).parse().unwrap();
    Figure { per_second, p50_us: micros("50%"), p99_us: micros("99%"), cpu_us: 0.0 }
}

/// The load generator without wrk: one thread, with one request at a time on each connection.
fn generate(address: SocketAddr, duration: Duration) -> Figure {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let until = Instant::now() + duration;
    let mut micros: Vec<f64> = runtime.block_on(async {
        let connections: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                tokio::spawn(async move {
                    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                    let (mut micros, mut buffer) = (Vec::new(), vec![0; 4096]);
                    while Instant::now() < until {
                        let begun = Instant::now();
                        stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n").await.unwrap();
                        assert!(stream.read(&mut buffer).await.unwrap() > 0, "the server hung up");
                        micros.push(begun.elapsed().as_secs_f64() * 1e6);
                    }
                    micros
                })
            })
            .collect();
        let mut all = Vec::new();
        for connection in connections {
            all.extend(connection.await.unwrap());
        }
        all
    });
    micros.sort_by(f64::total_cmp);
    let at = |quantile: f64| micros[((micros.len() - 1) as f64 * quantile) as usize];
    Figure { per_second: micros.len() as f64 / duration.as_secs_f64(), p50_us: at(0.5), p99_us: at(0.99), cpu_us: 0.0 }
}

fn print_table(figures: &mut [(&str, Vec<Figure>)]) {
    let median = |list: &mut Vec<Figure>, of: fn(&Figure) -> f64| {
        list.sort_by(|a, b| of(a).total_cmp(&of(b)));
        of(&list[list.len() / 2])
    };
    let mut raw = None;
    println!(
        "\n| hello, {CONNECTIONS} connections | requests/s | of raw hyper | p50 us | p99 us | server CPU us |\n|---|---|---|---|---|---|"
    );
    for (name, list) in figures {
        let per_second = median(list, |figure| figure.per_second);
        let raw = *raw.get_or_insert(per_second);
        let (p50, p99) = (median(list, |figure| figure.p50_us), median(list, |figure| figure.p99_us));
        let cpu = median(list, |figure| figure.cpu_us);
        println!("| {name} | {per_second:.0} | {:.2} | {p50:.0} | {p99:.0} | {cpu:.1} |", per_second / raw);
    }
}
