//! The contract of fabrics, kept by this one over Unix sockets and over TLS; and what strangers on the network get to
//! see of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::contract::{Bench, Running, call, call_of, contract};
use crate::fabric::CopyId;
use crate::keys::{Authority, KEYS_DIRECTORY};
use crate::link::frame::{self, Refusal};
use crate::link::{greet, say_bye};

/// Cages of one machine, or each on a machine of its own as far as they can tell.
struct LanBench {
    directory: TempDir,
    authority: Option<Authority>,
    /// Everyone's address, for those who join later.
    peers: Mutex<BTreeMap<String, Vec<PeerAddress>>>,
    joined: Mutex<Vec<(Local, Arc<Lan>)>>,
}

impl LanBench {
    fn unix() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory, authority: None, peers: Mutex::default(), joined: Mutex::default() }
    }

    fn tls() -> Self {
        let mut bench = Self::unix();
        let authority = Authority::create(&bench.directory.path().join("authority"), "default").unwrap();
        bench.authority = Some(authority);
        bench
    }

    fn config(&self, local: &Local) -> LanConfig {
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

    /// Where a copy meets others: each for itself when they are to use the network.
    fn meeting(&self, local: &Local) -> PathBuf {
        match self.authority {
            None => self.directory.path().join("run"),
            Some(_) => self.directory.path().join(local.copy.to_string()).join("run"),
        }
    }

    async fn open(&self, local: &Local, limits: Limits) -> Arc<Lan> {
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
        let meeting = self.meeting(local);
        Arc::new(
            Lan::open(local.clone(), "rpc", config, limits, &meeting, lanes, Tasks::new(&local.cage)).await.unwrap(),
        )
    }
}

#[async_trait]
impl Bench for LanBench {
    async fn join(&self, local: &Local, limits: Limits) -> Arc<dyn Fabric> {
        let lan = self.open(local, limits).await;
        self.joined.lock().push((local.clone(), lan.clone()));
        lan
    }

    async fn introduce(&self, local: &Local, fabric: &Arc<dyn Fabric>) {
        let addresses = fabric.addresses();
        let Some(address) = addresses.iter().find_map(|address| address.strip_prefix("tls://")) else { return };
        let address: PeerAddress = address.parse().unwrap();
        for (known, lan) in self.joined.lock().iter().filter(|(known, _)| known.copy != local.copy) {
            let _ = known;
            lan.add_peer(&local.cage, &address);
        }
        self.peers.lock().entry(local.cage.to_string()).or_default().push(address);
    }

    async fn kill(&self, local: &Local, fabric: Arc<dyn Fabric>) {
        let mut joined = self.joined.lock();
        let at = joined.iter().position(|(known, _)| known.copy == local.copy).unwrap();
        let (_, lan) = joined.remove(at);
        lan.inner.lanes.stop();
        drop(fabric);
    }
}

mod unix {
    use super::*;
    contract!(Arc::new(LanBench::unix()));
}

mod tls {
    use super::*;
    contract!(Arc::new(LanBench::tls()));
}

/// A worker over TLS and its address.
async fn exposed() -> (LanBench, Running, SocketAddr) {
    let bench = LanBench::tls();
    let worker = Running::start(&bench, "worker").await;
    let address = worker.fabric.addresses().iter().find_map(|address| address.strip_prefix("tls://")?.parse().ok());
    (bench, worker, address.unwrap())
}

async fn still_serves(bench: &LanBench) {
    let front = bench.join(&Running::local("default", "front"), Limits::default()).await;
    front.call(call("echo"), None).await.unwrap();
}

/// Reads until the other side closes; what it said.
async fn until_closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset is as good an end as any.
    let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut said)).await.expect("a close");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nowhere() {
    let (bench, _worker, address) = exposed().await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0x16, 3, 1, 0xff, 0xff, 0]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        until_closed(&mut stream).await;
    }
    still_serves(&bench).await;
}

/// A connection with good keys of cage `mallory`, to behave badly on.
async fn insider(bench: &LanBench, address: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
    let keys_directory = bench.directory.path().join("mallory");
    let authority = bench.authority.as_ref().unwrap();
    authority.issue("mallory", 1).unwrap().write(&keys_directory, true).unwrap();
    let keys = crate::keys::Keys::load(&keys_directory, &Identity::new("default", "mallory")).unwrap().unwrap();
    let connector = tokio_rustls::TlsConnector::from(keys.client());
    connector.connect(keys.server_name(), TcpStream::connect(address).await.unwrap()).await.unwrap()
}

fn hello(cage: &str, flock: &str) -> Hello {
    let (copy, node, version) = (77, "n".to_owned(), "0".to_owned());
    Hello { copy, flock: flock.into(), cage: cage.into(), node, version, listen_port: None, reverse: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insider_is_who_its_certificate_says() {
    let (bench, _worker, address) = exposed().await;
    let check = async |cage: &str, flock: &str, words: &str| {
        let mut stream = insider(&bench, address).await;
        // Its greeting comes first, then why it leaves.
        let (_, mut said) = greet(&mut stream, &hello(cage, flock), Duration::from_secs(5)).await.unwrap();
        said.extend_from_slice(&until_closed(&mut stream).await);
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(words), "{said}");
    };
    check("front", "default", "cage mallory was expected, cage front greeted").await;
    check("mallory", "other", "not of flock other").await;
    still_serves(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insider_that_breaks_the_rules_is_cut_off() {
    let (bench, worker, address) = exposed().await;
    let frames: [&dyn Fn(&mut bytes::BytesMut); 5] = [
        &|out| out.extend_from_slice(&[0xff; 32]),
        &|out| frame::put_part(out, frame::Way::Call, 9, b"x"),
        &|out| drop(frame::put_begin(out, frame::Way::Answer, 1, b"", bytes::Bytes::new())),
        &|out| hello("mallory", "default").put(out),
        &|out| frame::put_cancel(out, 5),
    ];
    for put in frames {
        let mut stream = insider(&bench, address).await;
        greet(&mut stream, &hello("mallory", "default"), Duration::from_secs(5)).await.unwrap();
        let mut out = bytes::BytesMut::new();
        put(&mut out);
        stream.write_all(&out).await.unwrap();
        stream.flush().await.unwrap();
        until_closed(&mut stream).await;
    }
    // A call that is no call is answered; half a frame harms nobody.
    let mut stream = insider(&bench, address).await;
    greet(&mut stream, &hello("mallory", "default"), Duration::from_secs(5)).await.unwrap();
    let mut out = bytes::BytesMut::new();
    drop(frame::put_begin(&mut out, frame::Way::Call, 1, b"nonsense", bytes::Bytes::new()));
    stream.write_all(&out).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 64];
    assert!(stream.read(&mut answer).await.unwrap() > 0);
    stream.write_all(&out[..7]).await.unwrap();
    say_bye(&mut stream, "enough").await;
    assert_eq!(worker.probe.counts().begun, 0);
    still_serves(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_refused_beyond_the_bound() {
    let bench = LanBench::tls();
    let limits = Limits { calls_per_peer_max: 10, ..Limits::default() };
    let worker = Running::start_as(&bench, Running::local("default", "worker"), limits).await;
    let addresses = worker.fabric.addresses();
    let address = addresses.iter().find_map(|address| address.strip_prefix("tls://")?.parse().ok()).unwrap();
    let mut stream = insider(&bench, address).await;
    greet(&mut stream, &hello("mallory", "default"), Duration::from_secs(5)).await.unwrap();
    let message = envelope::encode_call(&call("wait")).unwrap();
    let mut out = bytes::BytesMut::new();
    for id in 1..=1_000 {
        drop(frame::put_begin(&mut out, frame::Way::Call, id, &message.head, message.body.clone()));
    }
    stream.write_all(&out).await.unwrap();
    stream.flush().await.unwrap();
    let mut came = bytes::BytesMut::new();
    let mut refused = 0;
    while refused < 990 {
        while let Some(frame) = frame::Frame::take(&mut came).unwrap() {
            refused += usize::from(matches!(frame, frame::Frame::Refused { reason: Refusal::TooMany, .. }));
        }
        assert!(refused == 990 || stream.read_buf(&mut came).await.unwrap() > 0);
    }
    assert!(worker.probe.counts().begun <= 10);
    still_serves(&bench).await;
    drop(stream);
    worker.probe.until(|counts| counts.dropped == 10).await;
}

/// A copy of `worker` that greets as long as it is told to, and neither reads nor answers.
struct Hung {
    id: CopyId,
    greets: Arc<AtomicBool>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Hung {
    /// `front` knows it, and one other copy.
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

    fn copy(&self, front: &Lan) -> Arc<super::copy::Copy> {
        front.inner.copies.find("worker", self.id).unwrap()
    }
}

impl Drop for Hung {
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

/// A call that may run once, with less time than it takes to give up connecting.
async fn call_in_time(front: &Lan) {
    let echo = call_of("worker", "echo", Payload::Json("{}".into()), Duration::from_secs(4));
    front.call(echo, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_peer_is_noticed_and_costs_an_idempotent_call_one_attempt() {
    let bench = LanBench::unix();
    let front = bench.open(&Running::local("default", "front"), Limits::default()).await;
    let worker = Running::start(&bench, "worker").await;
    let hung = Hung::start(&front).await;
    for _ in 0..20 {
        let idempotent = Call { idempotent: true, ..call("echo") };
        front.call(idempotent, None).await.unwrap();
    }
    let to_it = front.call(call("echo"), Some(&hung.id.to_string())).await;
    assert!(matches!(&to_it, Err(DispatchError::Lost(text)) if text.contains("nothing was heard")), "{to_it:?}");
    assert!(worker.probe.counts().ended >= 20);
}

/// Only a call that was lost told of it: a copy that hung while it had none was connected to by the calls that came next,
/// each for as long as connecting may take.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_hung_while_nobody_called_it_holds_up_no_call() {
    let bench = LanBench::unix();
    let front = bench.open(&Running::local("default", "front"), Limits::default()).await;
    let _worker = Running::start(&bench, "worker").await;
    let hung = Hung::start(&front).await;
    let copy = hung.copy(&front);
    front.inner.link(&copy).await.unwrap();
    hung.greets.store(false, Ordering::Relaxed);
    eventually("it is given up", || !copy.is_connected()).await;
    for _ in 0..40 {
        call_in_time(&front).await;
    }
}

/// A lane without a connection of its own waited for one to a copy that hung since, though others could be called.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_no_connection_while_another_copy_has_one() {
    let bench = LanBench::unix();
    let front = bench.open(&Running::local("default", "front"), Limits::default()).await;
    let worker = Running::start(&bench, "worker").await;
    let hung = Hung::start(&front).await;
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
    let bench = LanBench::tls();
    let _worker = Running::start(&bench, "worker").await;
    let front = bench.join(&Running::local("default", "front"), Limits::default()).await;
    let echo = |bytes: usize| Call { arguments: Payload::Bytes(vec![bytes as u8; bytes].into()), ..call("echo") };
    let callers = (0..9).map(|caller| {
        let front = front.clone();
        let (bytes, calls) = if caller == 0 { (200, 400) } else { (900_000 + caller, 40) };
        tokio::spawn(async move {
            for _ in 0..calls {
                match front.call(echo(bytes), None).await {
                    Ok(Payload::Bytes(came)) => assert_eq!(came.len(), bytes),
                    other => panic!("{other:?}"),
                }
            }
        })
    });
    for ended in futures_util::future::join_all(callers).await {
        ended.unwrap();
    }
}
