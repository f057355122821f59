//! A peer with a good certificate, and strangers without one, that behave as badly as they can: others are called on.
//! `WASMCAGE_FLOOD_ROUNDS` says how often.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmcage_fabric::keys::{Authority, CageKeys, Identity, KEYS_DIRECTORY};
use wasmcage_fabric::link::frame::{self, Hello};
use wasmcage_fabric::link::greet;
use wasmcage_tests::{RunningCage, TestCage, eventually, length, query, unique_name};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A worker, a front that calls it over the network, and keys for cage `mallory` of the same flock.
struct Flock {
    worker_name: String,
    worker: RunningCage,
    front: RunningCage,
    mallory: CageKeys,
    _authority: tempfile::TempDir,
}

impl Flock {
    async fn start(rpc: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("authority"), "default").unwrap();
        let issue = |cage: &str, to: &Path| authority.issue(cage, 1).unwrap().write(to, true).unwrap();
        let worker_name = unique_name("worker");
        let worker = TestCage::named(&worker_name).module("service_echo", "work");
        issue(&worker_name, &worker.directory().join(KEYS_DIRECTORY));
        let listens = format!("[interfaces.rpc]\nmulticast = false\nlisten = \"127.0.0.1:0\"\n{rpc}");
        let worker = worker.config(&listens).start().await;
        let front = TestCage::named(&unique_name("front")).module("echo", "interface_web").http("web");
        issue(front.name(), &front.directory().join(KEYS_DIRECTORY));
        let address = address(&worker);
        let config = format!(
            "[modules.interface_web]\nallow = {{ cages = [\"{worker_name}\"] }}\n[interfaces.rpc]\nmulticast = \
             false\nlisten = \"127.0.0.1:0\"\npeers = {{ {worker_name} = [\"{address}\"] }}"
        );
        let front = front.config(&config).start().await;
        issue("mallory", &directory.path().join("mallory"));
        let identity = Identity::new("default", "mallory");
        let mallory = CageKeys::load(&directory.path().join("mallory"), &identity).unwrap().unwrap();
        Self { worker_name, worker, front, mallory, _authority: directory }
    }

    /// A connection of a new copy of `mallory`, greeted; none when it was sent away.
    async fn insider(&self, to: SocketAddr, copy: u64, reverse: bool) -> Option<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(to).await.ok()?;
        let connecting = TlsConnector::from(self.mallory.client()).connect(self.mallory.server_name(), stream);
        let mut stream = connecting.await.ok()?;
        let hello = Hello {
            copy,
            flock: "default".into(),
            cage: "mallory".into(),
            node: "m".into(),
            version: "0".into(),
            listen_port: Some(1),
            reverse,
        };
        greet(&mut stream, &hello, TIMEOUT).await.ok()?;
        Some(stream)
    }

    /// The front's calls are answered, and none waits for anything that mallory made up.
    async fn is_well(&self) {
        for n in 0..50 {
            let parameters = [("cage", &*self.worker_name), ("module", "work"), ("function", "add")];
            let args = json!([n, 1]).to_string();
            let target = query("/try_call", &[parameters[0], parameters[1], parameters[2], ("args", &args)]);
            let answer = tokio::time::timeout(TIMEOUT, self.front.client("web").get(&target)).await;
            assert_eq!(answer.expect("an answer in time").text(), (n + 1).to_string());
        }
    }

    fn members(&self, of: &RunningCage, cage: &str) -> usize {
        of.snapshot().cages[0].members.iter().filter(|member| member.cage == cage).count()
    }
}

fn address(cage: &RunningCage) -> SocketAddr {
    let serving = cage.host().serving();
    serving.iter().find_map(|line| line.address.strip_prefix("tls://")?.parse().ok()).expect("a TLS address")
}

fn rounds() -> u64 {
    length("WASMCAGE_FLOOD_ROUNDS", 1)
}

/// Copies 1 to 500 of a cage, at an address where nobody answers.
fn made_up(cage: &str, round: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u16(500);
    for copy in 1..=500_u64 {
        out.put_u64(1_000_000 + round * 500 + copy);
        for text in [cage, "m", &format!("192.0.2.{}:{}", copy % 250 + 1, 1_000 + copy)] {
            out.put_u16(text.len() as u16);
            out.put_slice(text.as_bytes());
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_makes_up_copies_of_itself_leaves_none_behind() {
    let flock = Flock::start("max_connections = 200").await;
    let to = address(&flock.worker);
    for round in 0..rounds() {
        let mut held = Vec::new();
        for copy in 0..150 {
            held.push(flock.insider(to, 1_000 * (round + 1) + copy, copy % 2 == 0).await);
        }
        // Half of all connections is what one cage may have.
        let members = || flock.members(&flock.worker, "mallory");
        eventually("copies of mallory", || (members() > 0 && members() <= 100).then_some(())).await;
        flock.is_well().await;
        drop(held);
        eventually("their end", || (members() == 0).then_some(())).await;
    }
    assert!(flock.worker.log().contains("cage mallory has 100 connections here already"));
    flock.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_a_peer_makes_up_delay_no_call() {
    let flock = Flock::start("").await;
    let to = address(&flock.front);
    let mut mallory = flock.insider(to, 7, false).await.expect("a connection");
    for round in 0..10 * rounds() {
        let mut out = BytesMut::new();
        frame::put_members(&mut out, &made_up(&flock.worker_name, round));
        frame::put_members(&mut out, &made_up("nobody", round));
        mallory.write_all(&out).await.unwrap();
        mallory.flush().await.unwrap();
        flock.is_well().await;
    }
    let known = flock.members(&flock.front, &flock.worker_name);
    assert!((2..=501).contains(&known), "{known} copies of the worker are known");
    assert!(flock.members(&flock.front, "nobody") <= 500);
    flock.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_lock_out_nobody() {
    let flock = Flock::start("max_connections = 100").await;
    let to = address(&flock.worker);
    for _ in 0..rounds() {
        let mut silent = Vec::new();
        for _ in 0..300 {
            silent.push(TcpStream::connect(to).await.unwrap());
        }
        // Somebody who comes now.
        let mut insider = flock.insider(to, 9, false).await.expect("a connection");
        flock.is_well().await;
        let mut byte = [0];
        let still = tokio::time::timeout(Duration::from_millis(50), insider.read(&mut byte)).await;
        assert!(!matches!(still, Ok(Ok(0) | Err(_))), "it was cut off: {still:?}");
        drop(silent);
    }
    flock.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_breaks_the_rules_again_and_again_is_logged_seldom() {
    let flock = Flock::start("").await;
    let to = address(&flock.worker);
    for copy in 0..100 * rounds() {
        let Some(mut stream) = flock.insider(to, 100 + copy, false).await else { continue };
        stream.write_all(&[0xff; 32]).await.unwrap();
        let mut rest = Vec::new();
        // It is closed, one way or another.
        let _ = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut rest)).await.expect("a close");
    }
    let log = flock.worker.logged("peer refused").await;
    let lines = log.lines().filter(|line| line.contains("peer refused")).count();
    assert!(lines <= 5, "{lines} lines for one peer\n{log}");
    flock.is_well().await;
}
