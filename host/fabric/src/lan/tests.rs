//! The contract of fabrics over Unix sockets and over TLS, and tests of hostile and hanging peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::contract::{RunningCopy, TestBed, call, call_of, contract};
use crate::fabric::CopyId;
use crate::keys::{Authority, KEYS_DIRECTORY};
use crate::link::frame::{self, Hello, RefusalReason};
use crate::link::{greet, say_bye};

/// Cages of one machine; with an authority, cages that can reach each other over TCP only.
struct LanTestBed {
    directory: TempDir,
    authority: Option<Authority>,
    /// The addresses of all copies, for those that join later.
    peers: Mutex<BTreeMap<String, Vec<PeerAddress>>>,
    joined: Mutex<Vec<(LocalCopy, Arc<Lan>)>>,
}

impl LanTestBed {
    fn unix() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory, authority: None, peers: Mutex::default(), joined: Mutex::default() }
    }

    fn tls() -> Self {
        let mut bed = Self::unix();
        let authority = Authority::create(&bed.directory.path().join("authority"), "default").unwrap();
        bed.authority = Some(authority);
        bed
    }

    fn config(&self, local: &LocalCopy) -> LanConfig {
        let keys = self.directory.path().join(local.copy.to_string()).join(KEYS_DIRECTORY);
        LanConfig {
            listen: self.authority.as_ref().map(|_| "127.0.0.1:0".to_owned()),
            keys,
            peers: self.peers.lock().clone(),
            multicast: false,
            multicast_port: 1,
            multicast_loopback: true,
            near_first: true,
            connections_max: 100,
            connect_timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(1),
            attempts_max: 3,
        }
    }

    /// The runtime directory of a copy: one for each when they have to use the network.
    fn runtime_directory(&self, local: &LocalCopy) -> PathBuf {
        match self.authority {
            None => self.directory.path().join("run"),
            Some(_) => self.directory.path().join(local.copy.to_string()).join("run"),
        }
    }

    async fn open(&self, local: &LocalCopy, limits: CallLimits) -> Arc<Lan> {
        let config = self.config(local);
        std::fs::create_dir_all(config.keys.parent().unwrap()).unwrap();
        if let Some(authority) = self.authority.as_ref().filter(|_| *local.flock == *"default") {
            authority.issue(&local.cage, 1).unwrap().write(&config.keys, false).unwrap();
        } else if self.authority.is_some() {
            let directory = self.directory.path().join(format!("authority-{}", local.copy));
            let other = Authority::create(&directory, &local.flock).unwrap();
            other.issue(&local.cage, 1).unwrap().write(&config.keys, false).unwrap();
        }
        let lanes = Arc::new(Lanes::start(2).unwrap());
        let runtime_directory = self.runtime_directory(local);
        Arc::new(
            Lan::open(local.clone(), "rpc", config, limits, &runtime_directory, lanes, Tasks::new(&local.cage))
                .await
                .unwrap(),
        )
    }
}

#[async_trait]
impl TestBed for LanTestBed {
    async fn join(&self, local: &LocalCopy, limits: CallLimits) -> Arc<dyn Fabric> {
        let lan = self.open(local, limits).await;
        self.joined.lock().push((local.clone(), lan.clone()));
        lan
    }

    async fn introduce(&self, local: &LocalCopy, fabric: &Arc<dyn Fabric>) {
        let addresses = fabric.addresses();
        let Some(address) = addresses.iter().find_map(|address| address.strip_prefix("tls://")) else { return };
        let address: PeerAddress = address.parse().unwrap();
        for (known, lan) in self.joined.lock().iter().filter(|(known, _)| known.copy != local.copy) {
            let _ = known;
            lan.add_peer(&local.cage, &address);
        }
        self.peers.lock().entry(local.cage.to_string()).or_default().push(address);
    }

    async fn kill(&self, local: &LocalCopy, fabric: Arc<dyn Fabric>) {
        let mut joined = self.joined.lock();
        let at = joined.iter().position(|(known, _)| known.copy == local.copy).unwrap();
        let (_, lan) = joined.remove(at);
        lan.inner.lanes.stop();
        drop(fabric);
    }
}

mod unix {
    use super::*;
    contract!(Arc::new(LanTestBed::unix()));
}

mod tls {
    use super::*;
    contract!(Arc::new(LanTestBed::tls()));
}

/// Starts a worker over TLS; returns also its address.
async fn exposed() -> (LanTestBed, RunningCopy, SocketAddr) {
    let bed = LanTestBed::tls();
    let worker = RunningCopy::start(&bed, "worker").await;
    let address = worker.fabric.addresses().iter().find_map(|address| address.strip_prefix("tls://")?.parse().ok());
    (bed, worker, address.unwrap())
}

async fn still_serves(bed: &LanTestBed) {
    let front = bed.join(&RunningCopy::local("default", "front"), CallLimits::default()).await;
    front.call(call("echo"), None).await.unwrap();
}

/// Reads until the other side closes; returns what was read.
async fn until_closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut said = Vec::new();
    // The connection may also be reset.
    let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut said)).await.expect("a close");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nowhere() {
    let (bed, _worker, address) = exposed().await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0x16, 3, 1, 0xff, 0xff, 0]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        until_closed(&mut stream).await;
    }
    still_serves(&bed).await;
}

/// Makes a connection with valid keys of cage `mallory`.
async fn insider(bed: &LanTestBed, address: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
    let keys_directory = bed.directory.path().join("mallory");
    let authority = bed.authority.as_ref().unwrap();
    authority.issue("mallory", 1).unwrap().write(&keys_directory, true).unwrap();
    let keys = crate::keys::CageKeys::load(&keys_directory, &Identity::new("default", "mallory")).unwrap().unwrap();
    let connector = tokio_rustls::TlsConnector::from(keys.client());
    connector.connect(keys.server_name(), TcpStream::connect(address).await.unwrap()).await.unwrap()
}

fn hello(cage: &str, flock: &str) -> Hello {
    let (copy, node, version) = (77, "n".to_owned(), "0".to_owned());
    Hello { copy, flock: flock.into(), cage: cage.into(), node, version, listen_port: None, reverse: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insider_is_who_its_certificate_says() {
    let (bed, _worker, address) = exposed().await;
    let check = async |cage: &str, flock: &str, words: &str| {
        let mut stream = insider(&bed, address).await;
        // The greeting comes first, then the reason for closing.
        let (_, mut said) = greet(&mut stream, &hello(cage, flock), Duration::from_secs(5)).await.unwrap();
        said.extend_from_slice(&until_closed(&mut stream).await);
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(words), "{said}");
    };
    check("front", "default", "cage mallory was expected, cage front greeted").await;
    check("mallory", "other", "not of flock other").await;
    still_serves(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insider_that_breaks_the_rules_is_cut_off() {
    let (bed, worker, address) = exposed().await;
    let frames: [&dyn Fn(&mut bytes::BytesMut); 5] = [
        &|out| out.extend_from_slice(&[0xff; 32]),
        &|out| frame::put_part(out, frame::Direction::Call, 9, b"x"),
        &|out| drop(frame::put_begin(out, frame::Direction::Answer, 1, b"", bytes::Bytes::new())),
        &|out| hello("mallory", "default").put(out),
        &|out| frame::put_cancel(out, 5),
    ];
    for put in frames {
        let mut stream = insider(&bed, address).await;
        greet(&mut stream, &hello("mallory", "default"), Duration::from_secs(5)).await.unwrap();
        let mut out = bytes::BytesMut::new();
        put(&mut out);
        stream.write_all(&out).await.unwrap();
        stream.flush().await.unwrap();
        until_closed(&mut stream).await;
    }
    // A call that cannot be decoded is answered; an incomplete frame does no harm.
    let mut stream = insider(&bed, address).await;
    greet(&mut stream, &hello("mallory", "default"), Duration::from_secs(5)).await.unwrap();
    let mut out = bytes::BytesMut::new();
    drop(frame::put_begin(&mut out, frame::Direction::Call, 1, b"nonsense", bytes::Bytes::new()));
    stream.write_all(&out).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 64];
    assert!(stream.read(&mut answer).await.unwrap() > 0);
    stream.write_all(&out[..7]).await.unwrap();
    say_bye(&mut stream, "enough").await;
    assert_eq!(worker.handler.counts().begun, 0);
    still_serves(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_refused_beyond_the_bound() {
    let bed = LanTestBed::tls();
    let limits = CallLimits { calls_per_peer_max: 10, ..CallLimits::default() };
    let worker = RunningCopy::start_as(&bed, RunningCopy::local("default", "worker"), limits).await;
    let addresses = worker.fabric.addresses();
    let address = addresses.iter().find_map(|address| address.strip_prefix("tls://")?.parse().ok()).unwrap();
    let mut stream = insider(&bed, address).await;
    greet(&mut stream, &hello("mallory", "default"), Duration::from_secs(5)).await.unwrap();
    let message = envelope::encode_call(&call("wait")).unwrap();
    let mut out = bytes::BytesMut::new();
    for id in 1..=1_000 {
        drop(frame::put_begin(&mut out, frame::Direction::Call, id, &message.head, message.body.clone()));
    }
    stream.write_all(&out).await.unwrap();
    stream.flush().await.unwrap();
    let mut received = bytes::BytesMut::new();
    let mut refused = 0;
    while refused < 990 {
        while let Some(frame) = frame::Frame::take(&mut received).unwrap() {
            refused += usize::from(matches!(frame, frame::Frame::Refused { reason: RefusalReason::TooMany, .. }));
        }
        assert!(refused == 990 || stream.read_buf(&mut received).await.unwrap() > 0);
    }
    assert!(worker.handler.counts().begun <= 10);
    still_serves(&bed).await;
    drop(stream);
    worker.handler.until(|counts| counts.dropped == 10).await;
}

/// A copy of `worker` that greets while `greets` is set, and neither reads nor answers.
struct HangingCopy {
    id: CopyId,
    greets: Arc<AtomicBool>,
    accepting: tokio::task::JoinHandle<()>,
}

impl HangingCopy {
    /// Starts it, and waits until `front` knows it and one other copy.
    async fn start(front: &Lan) -> Self {
        let (id, greets) = (CopyId::random(), Arc::new(AtomicBool::new(true)));
        let path = front.inner.registry.registration_path("worker", id);
        let listener = wasmcage_core::unix_socket::bind(&path).unwrap();
        let (greeting, greets_now) = (Hello { copy: id.0, ..hello("worker", "default") }, greets.clone());
        let accepting = tokio::spawn(async move {
            let mut held: Vec<UnixStream> = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if greets_now.load(Ordering::Relaxed) {
                    greet(&mut stream, &greeting, Duration::from_secs(5)).await.unwrap();
                }
                held.push(stream);
            }
        });
        front.inner.scan();
        eventually("two copies are known", || front.copies("worker").len() == 2).await;
        Self { id, greets, accepting }
    }

    fn copy(&self, front: &Lan) -> Arc<super::copy::RemoteCopy> {
        front.inner.copies.find("worker", self.id).unwrap()
    }
}

impl Drop for HangingCopy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn eventually(what: &str, is: impl Fn() -> bool) {
    let looking = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looking).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Makes a call that is not idempotent, with a timeout shorter than that for connecting.
async fn call_in_time(front: &Lan) {
    let echo = call_of("worker", "echo", Payload::Json("{}".into()), Duration::from_secs(4));
    front.call(echo, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_peer_is_noticed_and_costs_an_idempotent_call_one_attempt() {
    let bed = LanTestBed::unix();
    let front = bed.open(&RunningCopy::local("default", "front"), CallLimits::default()).await;
    let worker = RunningCopy::start(&bed, "worker").await;
    let hung = HangingCopy::start(&front).await;
    for _ in 0..20 {
        let idempotent = Call { idempotent: true, ..call("echo") };
        front.call(idempotent, None).await.unwrap();
    }
    let to_it = front.call(call("echo"), Some(&hung.id.to_string())).await;
    assert!(matches!(&to_it, Err(DispatchError::Lost(text)) if text.contains("nothing was heard")), "{to_it:?}");
    assert!(worker.handler.counts().ended >= 20);
}

/// A hanging copy was once noticed only by a lost call: if it hung while it had none, each of the next calls waited for a
/// connection to it until the timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_hung_while_nobody_called_it_holds_up_no_call() {
    let bed = LanTestBed::unix();
    let front = bed.open(&RunningCopy::local("default", "front"), CallLimits::default()).await;
    let _worker = RunningCopy::start(&bed, "worker").await;
    let hung = HangingCopy::start(&front).await;
    let copy = hung.copy(&front);
    front.inner.link(&copy).await.unwrap();
    hung.greets.store(false, Ordering::Relaxed);
    eventually("it is given up", || !copy.is_connected()).await;
    for _ in 0..40 {
        call_in_time(&front).await;
    }
}

/// A lane without a connection once waited for one to a hanging copy, although another copy could be called.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_no_connection_while_another_copy_has_one() {
    let bed = LanTestBed::unix();
    let front = bed.open(&RunningCopy::local("default", "front"), CallLimits::default()).await;
    let worker = RunningCopy::start(&bed, "worker").await;
    let hung = HangingCopy::start(&front).await;
    front.call(call("echo"), Some(&worker.local.copy.to_string())).await.unwrap();
    front.inner.link(&hung.copy(&front)).await.unwrap();
    hung.greets.store(false, Ordering::Relaxed);
    let on_another_lane = front.clone();
    let calling = async move {
        for _ in 0..20 {
            call_in_time(&on_another_lane).await;
        }
    };
    front.inner.lanes.handle(1).spawn(calling).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_and_small_calls_share_a_connection() {
    let bed = LanTestBed::tls();
    let _worker = RunningCopy::start(&bed, "worker").await;
    let front = bed.join(&RunningCopy::local("default", "front"), CallLimits::default()).await;
    let echo = |bytes: usize| Call { arguments: Payload::Bytes(vec![bytes as u8; bytes].into()), ..call("echo") };
    let callers = (0..9).map(|caller| {
        let front = front.clone();
        let (bytes, calls) = if caller == 0 { (200, 400) } else { (900_000 + caller, 40) };
        tokio::spawn(async move {
            for _ in 0..calls {
                match front.call(echo(bytes), None).await {
                    Ok(Payload::Bytes(received)) => assert_eq!(received.len(), bytes),
                    other => panic!("{other:?}"),
                }
            }
        })
    });
    for ended in futures_util::future::join_all(callers).await {
        ended.unwrap();
    }
}
