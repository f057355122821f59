//! A cage that serves for long takes no more memory than it took when it had warmed up: HTTP, state, retried calls, calls
//! between modules, beside guests that leak, trap, loop and bomb, and a swap every few seconds.
//!
//! `WASMCAGE_SOAK_SECONDS` sets the length. From ten minutes on the drift after the warm-up is checked; a short run shows
//! that the load is answered. The last line tells the figures.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use wasmcage_tests::{Client, Root, guest};

const SECONDS_DEFAULT: u64 = 8;
/// The part of a run that warms up: stores, caches and pools fill to their bounds.
const WARM_UP: f64 = 0.4;
/// Runs that are shorter tell nothing of drift.
const CHECKED_FROM: Duration = Duration::from_secs(600);
const DRIFT_MAX: f64 = 0.02;
const SWAP_INTERVAL: Duration = Duration::from_secs(5);

fn length() -> Duration {
    let seconds = std::env::var("WASMCAGE_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(SECONDS_DEFAULT))
}

/// KiB of memory of a process that no file stands behind.
fn anonymous_kib(pid: i64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    unexpected: AtomicU64,
    swaps: AtomicU64,
}

/// Asks until the end, for one target after the other, each with the statuses that it may be answered with.
async fn ask(client: Client, targets: Vec<(String, Vec<u16>)>, pause: Duration, until: Instant, counts: Arc<Counts>) {
    let mut number = 0_usize;
    while Instant::now() < until {
        let (target, expected) = &targets[number % targets.len()];
        let target = target.replace("{number}", &(number % 500).to_string());
        let answer = client.get(&target).await;
        if !expected.contains(&answer.status.as_u16()) {
            eprintln!("{target}: {} {}", answer.status, answer.text());
            counts.unexpected.fetch_add(1, Ordering::Relaxed);
        }
        counts.requests.fetch_add(1, Ordering::Relaxed);
        number += 1;
        tokio::time::sleep(pause).await;
    }
}

/// Replaces a module by one of a few builds of it, again and again.
async fn swap(cage: &Path, module: &str, guest_name: &str, until: Instant, counts: Arc<Counts>) {
    let original = fs::read(guest(guest_name)).unwrap();
    let mut number = 0_u8;
    while Instant::now() + SWAP_INTERVAL < until {
        tokio::time::sleep(SWAP_INTERVAL).await;
        let mut bytes = original.clone();
        // An unknown section at its end makes it another build.
        bytes.extend([0, 3, 1, b'v', number % 8]);
        let temporary = cage.join(".next.wasm");
        fs::write(&temporary, bytes).unwrap();
        fs::rename(temporary, cage.join(format!("{module}.wasm"))).unwrap();
        number = number.wrapping_add(1);
        counts.swaps.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the interfaces listen, by name.
async fn client(root: &Root, interface: &str) -> Client {
    let answer: Value = serde_json::from_str(&root.done(&["ps", "--json", "soak"]).await).unwrap();
    let interfaces = answer["processes"][0]["cages"][0]["interfaces"].as_array().unwrap();
    let found = interfaces.iter().find(|known| known["interface"] == interface || known["name"] == interface);
    let address = found.unwrap_or_else(|| panic!("{answer}"))["addresses"][0].as_str().unwrap();
    Client::new(address.split("://").last().unwrap().trim_end_matches('/'))
}

fn mean(values: &[u64]) -> f64 {
    values.iter().sum::<u64>() as f64 / values.len().max(1) as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_the_time_that_a_cage_serves() {
    let root = Root::new(&[("soak", &["counter", "state_user", "service_echo", "retried_user"])]);
    let cage = root.cage("soak");
    for (name, module) in [("hello", "interface_good"), ("hostile", "interface_bad"), ("echo", "interface_calls")] {
        fs::copy(guest(name), cage.join(format!("{module}.wasm"))).unwrap();
    }
    fs::create_dir(cage.join("data")).unwrap();
    let mut toml = "request_timeout_ms = 20_000\nlog_level = \"error\"\nlog_day_mb = 16\n".to_owned();
    for interface in ["good", "bad", "calls"] {
        toml += &format!("[interfaces.{interface}]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n");
    }
    toml += "[modules.retried_user]\n";
    toml += "allow = { files = [{ host = \"data\", guest = \"/data\", mode = \"rw\" }] }\n";
    toml += "[modules.interface_bad]\ntimeout_ms = 300\nmemory_mb = 32\n";
    root.configure("soak", &toml);
    let run = root.run("soak").await;
    let pid = root.serving("soak").await;
    let (length, counts) = (length(), Arc::<Counts>::default());
    let until = Instant::now() + length;

    let served = vec![200, 204];
    let plain =
        |targets: &[&str]| targets.iter().map(|target| ((*target).to_owned(), served.clone())).collect::<Vec<_>>();
    let set = "/call?module=state_user&function=set&args=[%22key-{number}%22,{number}]";
    let increment = "/call?module=state_user&function=increment&args=[%22count%22,1]";
    let retried =
        "/call?module=retried_user&function=ask&args=[%22{number}%22,%22ok%22,null,null,null,null,null,null,null]";
    let calls =
        plain(&["/call?module=counter&function=increment", retried, set, increment, "/body", "/context?describe=soak"]);
    let bad = ["/panic", "/leak?mb=2", "/memory", "/loop", "/exit?code=1", "/recurse", "/log?mb=1", "/sleep?ms=2"];
    let bad = bad.iter().map(|target| ((*target).to_owned(), vec![200, 204, 500, 502, 503, 504])).collect::<Vec<_>>();
    let (good, hostile, echo) = tokio::join!(client(&root, "good"), client(&root, "bad"), client(&root, "calls"));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let pause = Duration::from_millis(5);
        tasks.push(tokio::spawn(ask(good.clone(), plain(&["/"]), pause, until, counts.clone())));
        tasks.push(tokio::spawn(ask(echo.clone(), calls.clone(), pause, until, counts.clone())));
    }
    tasks.push(tokio::spawn(ask(hostile, bad, Duration::from_millis(50), until, counts.clone())));
    let swapping = swap(&cage, "interface_good", "hello", until, counts.clone());
    let measuring = async {
        let interval = length / 200;
        let mut measured = Vec::new();
        while Instant::now() < until {
            tokio::time::sleep(interval).await;
            measured.push(anonymous_kib(pid));
        }
        measured
    };
    let ((), measured) = tokio::join!(swapping, measuring);
    for task in tasks {
        task.await.unwrap();
    }
    let warm = &measured[(measured.len() as f64 * WARM_UP) as usize..];
    let (first, last) = (mean(&warm[..warm.len() / 3]), mean(&warm[warm.len() - warm.len() / 3..]));
    let drift = last / first - 1.0;
    let tenths: Vec<_> = measured.chunks(measured.len().div_ceil(10)).map(|part| mean(part) as u64 / 1024).collect();
    eprintln!(
        "{} s, {} requests, {} swaps, anonymous memory in MiB {tenths:?}, drift after the warm-up {:.1} %",
        length.as_secs(),
        counts.requests.load(Ordering::Relaxed),
        counts.swaps.load(Ordering::Relaxed),
        drift * 100.0
    );
    assert_eq!(counts.unexpected.load(Ordering::Relaxed), 0);
    assert_eq!(root.serving("soak").await, pid, "the process is another one");
    if length >= CHECKED_FROM {
        assert!(drift <= DRIFT_MAX, "memory grows: {measured:?}");
    }
    root.stop("soak").await;
    drop(run);
}
