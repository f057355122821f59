//! A protocol that is written outside of the host serves like the host's own: the crate `tests/lines`.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use wasmcage::Protocols;
use wasmcage::host::StartError;
use wasmcage_core::telemetry::error_chain;
use wasmcage_tests::{RunningCage, TestCage};

fn protocols() -> Protocols {
    Protocols::new(vec![Box::new(wasmcage_lines::Lines)])
}

fn cage(keys: &str) -> TestCage {
    // The guest answers with the body to a target of this name, which is the interface's.
    let interface = format!("[interfaces.body]\nprotocol = \"lines\"\nmodule = \"echo\"\n{keys}");
    TestCage::new().protocols(protocols()).module("echo", "echo").config(&interface)
}

async fn connect(running: &RunningCage) -> BufReader<TcpStream> {
    let serving = running.host().serving();
    let address = serving[0].address.strip_prefix("lines://").unwrap();
    BufReader::new(TcpStream::connect(address).await.unwrap())
}

/// None at the end of the connection.
async fn line(client: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    let read = tokio::time::timeout(Duration::from_secs(20), client.read_line(&mut line)).await.unwrap();
    // A connection that the server ends while it is written to is reset.
    (read.unwrap_or(0) > 0).then(|| line.trim_end().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_is_a_request_and_is_counted_once() {
    let running = cage("").start().await;
    let mut client = connect(&running).await;
    for text in ["one", "", "three"] {
        client.write_all(format!("{text}\n").as_bytes()).await.unwrap();
        assert_eq!(line(&mut client).await.unwrap(), text);
    }
    let snapshot = running.snapshot();
    let interface = snapshot.cages[0].interfaces.iter().find(|known| known.interface == "body").unwrap();
    assert_eq!((interface.protocol.as_str(), interface.readings.requests), ("lines", 3));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_too_long_ends_its_connection_only() {
    let running = cage("line_bytes_max = 10").start().await;
    let (mut hostile, mut other) = (connect(&running).await, connect(&running).await);
    hostile.write_all(&[b'x'; 100]).await.unwrap();
    assert_eq!(line(&mut hostile).await, None);
    other.write_all(b"short\n").await.unwrap();
    assert_eq!(line(&mut other).await.unwrap(), "short");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_idle_connections_and_frees_the_port() {
    let running = cage("").start().await;
    let mut client = connect(&running).await;
    let address = client.get_ref().peer_addr().unwrap();
    assert!(running.stop().await, "nothing was in work");
    assert_eq!(line(&mut client).await, None);
    assert!(TcpStream::connect(address).await.is_err(), "somebody still listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_and_other_protocols_are_not_there() {
    let check = async |cage: TestCage, expected: &str| match cage.try_start().await {
        Err(error @ StartError::Config { .. }) => {
            let told = error_chain(&error);
            assert!(told.contains(expected), "{told}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it started"),
    };
    check(cage("listne = 1"), "did you mean `listen`").await;
    check(cage("line_bytes_max = 0"), "line_bytes_max").await;
    check(TestCage::new().protocols(protocols()).http("web"), "the string \"http\" is not a protocol").await;
}
