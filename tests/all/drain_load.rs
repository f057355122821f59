//! Stops under load: every request on a connection that the cage had before it stopped is answered, and what is answered was
//! done. `WASMCAGE_STOPS` says how often each cage is stopped; a few times by default.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use wasmcage_tests::{RunningCage, TestCage, eventually};

const CLIENTS: usize = 24;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const BODY: &[u8] = b"Hello, world !";

/// The outcomes of the requests of all clients together.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicUsize,
    lost: AtomicUsize,
    /// The cage takes no connections any more: the clients end.
    closed: AtomicBool,
}

fn stops() -> usize {
    std::env::var("WASMCAGE_STOPS").map_or(3, |text| text.parse().unwrap())
}

async fn cage() -> RunningCage {
    TestCage::new().module("hello", "interface_web").http("web").start().await
}

/// Reads an answer: none when it is not whole, else whether it is the connection's last.
async fn answered(stream: &mut TcpStream) -> Option<bool> {
    let mut answer = Vec::new();
    while !answer.ends_with(BODY) {
        if stream.read_buf(&mut answer).await.ok()? == 0 {
            return None;
        }
    }
    let head = String::from_utf8_lossy(&answer).to_lowercase();
    head.starts_with("http/1.1 200 ").then(|| head.contains("connection: close"))
}

impl Tally {
    /// Counts a request on an accepted connection; whether another may follow on it.
    async fn ask(&self, stream: &mut TcpStream) -> bool {
        let asked = async {
            stream.write_all(REQUEST).await.ok()?;
            answered(stream).await
        };
        let answer = asked.await;
        match answer {
            Some(_) => &self.answered,
            None => &self.lost,
        }
        .fetch_add(1, Ordering::Relaxed);
        answer == Some(false)
    }

    /// A new connection; none when the cage takes no more.
    async fn connect(&self, address: &str) -> Option<TcpStream> {
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        let connected = TcpStream::connect(address).await;
        if connected.is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
        connected.ok()
    }
}

/// Stops cages while clients do this with an address until they cannot connect any more; none of their requests is lost.
async fn check_stops<F, W>(client: F)
where
    F: Fn(Arc<Tally>, String) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    let mut all = 0;
    for _ in 0..stops() {
        let cage = cage().await;
        let (tally, address) = (Arc::new(Tally::default()), cage.address("web"));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(client(tally.clone(), address.clone()));
        }
        eventually("some answers", || (tally.answered.load(Ordering::Relaxed) > 10 * CLIENTS).then_some(())).await;
        assert!(cage.stop().await);
        let ended = async {
            while let Some(client) = clients.join_next().await {
                client.unwrap()
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the clients end");
        let (answered, lost) = (tally.answered.load(Ordering::Relaxed), tally.lost.load(Ordering::Relaxed));
        assert_eq!(lost, 0, "of {}", answered + lost);
        all += answered;
    }
    println!("{all} requests in {} stops, 0 lost", stops());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_loses_no_request_of_clients_with_a_connection_for_each() {
    check_stops(async |tally: Arc<Tally>, address: String| {
        while let Some(mut stream) = tally.connect(&address).await {
            tally.ask(&mut stream).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_loses_no_request_of_clients_that_think_between_connecting_and_asking() {
    check_stops(async |tally: Arc<Tally>, address: String| {
        while let Some(mut stream) = tally.connect(&address).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
            tally.ask(&mut stream).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_loses_no_request_of_clients_that_keep_their_connections() {
    check_stops(async |tally: Arc<Tally>, address: String| {
        while let Some(mut stream) = tally.connect(&address).await {
            while tally.ask(&mut stream).await {}
        }
    })
    .await;
}
