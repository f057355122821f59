//! Measures the time from a module's file to its first response, the start of a cage with many modules, a thousand
//! swaps under load, and memory.
//!
//! `cargo bench -p wasmcage-benches --bench life` after `tests/run guests`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first thing that is wrong, and prints"
)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use wasmcage_benches::{BenchCage, guest_file, median, timed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WEB: &str = "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n";
const MODULES: usize = 500;
const SWAPS: usize = 1_000;
const CLIENTS: usize = 64;

fn main() {
    let Some(cage) = BenchCage::start(&[("hello", "interface_web")], WEB) else {
        println!("not run: the guests are not built");
        return;
    };
    println!("| what | figure |\n|---|---|");
    println!("| memory of this process with an idle cage | {} MiB |", resident_mib());
    let new = (0..20).map(|number| overwrite(&cage, &greeting(unique(number)), unique(number))).collect();
    println!("| overwrite to first new answer, not compiled before | {:.0} ms |", millis(median(new)));
    let variants: Vec<_> = (0..8).map(greeting).collect();
    for (number, variant) in variants.iter().enumerate() {
        overwrite(&cage, variant, number);
    }
    let known = (0..40).map(|round| overwrite(&cage, &variants[round % 8], round % 8)).collect();
    println!("| overwrite to first new answer, compiled before | {:.1} ms |", millis(median(known)));
    swaps(&cage, &variants);
    drop(cage);
    many_modules();
    neighbours();
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A number that no earlier run of this bench on this machine has used, so that its component has not been compiled
/// yet.
fn unique(number: usize) -> usize {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as usize;
    10_000 + (std::process::id() as usize * 31 + seconds / 3600 * 7 + number * 1_009) % 89_999
}

/// The guest `hello` with another greeting of the same length.
fn greeting(number: usize) -> Vec<u8> {
    let from = b"Hello, world !";
    let mut bytes = std::fs::read(guest_file("hello").unwrap()).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + from.len()].copy_from_slice(format!("Hello, v{number:05}!").as_bytes());
    bytes
}

fn rename_into(cage: &BenchCage, bytes: &[u8]) {
    let temporary = cage.directory().join(".new");
    std::fs::write(&temporary, bytes).unwrap();
    std::fs::rename(temporary, cage.directory().join("interface_web.wasm")).unwrap();
}

/// The time from the rename to the first response of the new version, including the wait until the file settles.
fn overwrite(cage: &BenchCage, bytes: &[u8], number: usize) -> Duration {
    let expected = format!("Hello, v{number:05}!");
    let mut stream = TcpStream::connect(cage.address()).unwrap();
    stream.set_nodelay(true).unwrap();
    rename_into(cage, bytes);
    let begun = Instant::now();
    while !get(&mut stream).contains(&expected) {
        assert!(begun.elapsed() < Duration::from_secs(20), "the new version never came");
    }
    begun.elapsed()
}

fn get(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n").unwrap();
    let mut buffer = [0; 1024];
    let mut text = String::new();
    // Head and body of the response may arrive separately.
    while !text.ends_with('!') {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the server hung up: {text}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    text
}

fn swaps(cage: &BenchCage, variants: &[Vec<u8>]) {
    let slot = cage.host().cage("bench").unwrap().modules().get("interface_web").unwrap();
    let number = || slot.current().unwrap().number;
    rename_into(cage, &variants[0]);
    overwrite(cage, &variants[1], 1);
    let (visible, begun, stop) =
        (Arc::new(AtomicUsize::new(1)), Arc::new(AtomicUsize::new(1)), Arc::new(AtomicBool::new(false)));
    let before = resident_mib();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (address, visible, begun, stop) = (cage.address(), visible.clone(), begun.clone(), stop.clone());
            std::thread::spawn(move || client(address, &visible, &begun, &stop))
        })
        .collect();
    let ((), elapsed) = timed(|| {
        for swap in 2..2 + SWAPS {
            let old = number();
            begun.store(swap, SeqCst);
            rename_into(cage, &variants[swap % variants.len()]);
            while number() == old {
                std::thread::sleep(Duration::from_micros(200));
            }
            visible.store(swap, SeqCst);
        }
    });
    stop.store(true, SeqCst);
    let results: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let (served, old): (usize, usize) = results.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!(
        "| {SWAPS} swaps under {CLIENTS} clients | {:.1} s, {served} answers, 0 failed, {old} outdated |",
        elapsed.as_secs_f64()
    );
    println!("| memory before and after them | {before} MiB, {} MiB |", resident_mib());
}

/// Counts responses, and those of a version older than the one that was active when the request began. A failed request
/// panics.
fn client(address: SocketAddr, visible: &AtomicUsize, begun: &AtomicUsize, stop: &AtomicBool) -> (usize, usize) {
    let mut stream = TcpStream::connect(address).unwrap();
    let (mut served, mut old) = (0, 0);
    while !stop.load(SeqCst) {
        let oldest = visible.load(SeqCst);
        let answer = get(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let newest = begun.load(SeqCst);
        served += 1;
        old += usize::from(!(oldest..=newest).any(|swap| answer.contains(&format!("v{:05}!", swap % 8))));
    }
    (served, old)
}

fn many_modules() {
    let prepare = || {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("bench")).unwrap();
        for number in 0..MODULES {
            let file = root.path().join("bench").join(format!("module{number}.wasm"));
            // The modules differ, so that none is loaded for several.
            std::fs::write(file, greeting(20_000 + number)).unwrap();
        }
        root
    };
    // The first start compiles them, the second finds them compiled.
    wait_for(&BenchCage::start_in(prepare()));
    let root = prepare();
    let begun = Instant::now();
    let cage = BenchCage::start_in(root);
    wait_for(&cage);
    println!("| start with {MODULES} different modules, compiled before | {:.2} s |", begun.elapsed().as_secs_f64());
    println!("| memory with them | {} MiB |", resident_mib());
}

/// Measures how two looping guests and a memory bomb slow a module beside them down, and when they are stopped.
fn neighbours() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let toml = format!(
        "{WEB}[interfaces.bad]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\ntimeout_ms = {}\n",
        TIMEOUT.as_millis()
    );
    let Some(cage) = BenchCage::start(&[("hello", "interface_web"), ("hostile", "interface_bad")], &toml) else {
        return;
    };
    let address = |interface: &str| {
        let serving = cage.host().serving();
        let line = serving.iter().find(|line| line.interface == interface).unwrap();
        line.address.trim_start_matches("http://").trim_end_matches('/').parse::<SocketAddr>().unwrap()
    };
    let quiet = p99(address("web"));
    let stop = Arc::new(AtomicBool::new(false));
    let culprits: Vec<_> = ["/loop", "/loop", "/memory"]
        .into_iter()
        .map(|path| {
            let (address, stop) = (address("bad"), stop.clone());
            std::thread::spawn(move || {
                let mut longest = Duration::ZERO;
                while !stop.load(SeqCst) {
                    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
                    let ((), elapsed) = timed(|| {
                        let mut stream = TcpStream::connect(address).unwrap();
                        stream.write_all(request.as_bytes()).unwrap();
                        let mut answer = String::new();
                        stream.read_to_string(&mut answer).unwrap();
                        assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
                    });
                    longest = longest.max(elapsed);
                }
                longest
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    let loud = p99(address("web"));
    stop.store(true, SeqCst);
    let longest = culprits.into_iter().map(|culprit| culprit.join().unwrap()).max().unwrap();
    println!("| p99 of a module alone | {:.1} ms |", millis(quiet));
    println!("| p99 beside two looping guests and a memory bomb | {:.1} ms |", millis(loud));
    println!(
        "| the longest that one of them lasted beyond its deadline | {:.0} ms |",
        millis(longest.saturating_sub(TIMEOUT))
    );
}

fn p99(address: SocketAddr) -> Duration {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let until = Instant::now() + Duration::from_secs(4);
    let mut all = Vec::new();
    while Instant::now() < until {
        all.push(timed(|| get(&mut stream)).1);
    }
    all.sort();
    all[all.len() * 99 / 100]
}

fn wait_for(cage: &BenchCage) {
    let modules = cage.host().cage("bench").unwrap().modules();
    while modules.names().len() < MODULES {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
