//! Stopping in order: what is in flight is finished, nothing new is taken, and neither guests nor clients can hold it up
//! for longer than `request_timeout_ms`.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wasmcage_tests::{Client, RunningCage, StreamedRequest, TestCage, Version, eventually, query};

/// Far longer than any test runs.
const LONG: &str = "request_timeout_ms = 600000";

/// Begins to stop, and returns when the port is closed.
async fn stopping(cage: RunningCage, interface: &str) -> tokio::task::JoinHandle<bool> {
    let address = cage.address(interface);
    let stopped = tokio::spawn(cage.stop());
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(&address).await.is_ok() {
        assert!(tokio::time::Instant::now() < until, "{address} still takes connections");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    stopped
}

/// Waits for the end of a stop, which must not take as long as the requests' own time; says whether nothing was cut off.
async fn outcome(stopped: tokio::task::JoinHandle<bool>) -> bool {
    tokio::time::timeout(Duration::from_secs(60), stopped).await.expect("the stop comes to its end").expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_streams_goes_on_to_its_end() {
    for guest in ["wasi_http_p2", "wasi_http_p3"] {
        for version in [Version::Http1, Version::Http2] {
            let cage = TestCage::new().config(LONG).module(guest, "interface_web").http("web").start().await;
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, "/echo", &[]).await;
            exchange.send("before").await;
            exchange.expect("before").await;
            let stopped = stopping(cage, "web").await;
            exchange.send("meanwhile").await;
            exchange.expect("meanwhile").await;
            assert!(!stopped.is_finished());
            exchange.end().await;
            assert_eq!(exchange.rest().await.unwrap().0, "", "{guest} {version:?}");
            // HTTP/2 was told by GOAWAY; either way the connection ends in order.
            exchange.closed().await;
            assert!(outcome(stopped).await, "{guest} {version:?}");
        }
    }
}

/// A request of eight bytes, of which the server has the head and waits for the body: it asks for it by `100 Continue`.
async fn begun(address: &str, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\nexpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![];
    while !answer.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "{answer:?}");
    }
    assert!(answer.starts_with(b"HTTP/1.1 100 "), "{answer:?}");
    stream
}

/// Sends the body, and reads the answer to the connection's end.
async fn ended(mut stream: TcpStream) -> String {
    stream.write_all(b"the body").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_has_come_is_answered_and_its_connection_closed() {
    let cage = TestCage::new().config(LONG).module("echo", "interface_web").http("web").start().await;
    let stream = begun(&cage.address("web"), "/body").await;
    let stopped = stopping(cage, "web").await;
    let answer = ended(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nthe body"), "{answer}");
    assert!(outcome(stopped).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed() {
    let cage = TestCage::new().config(LONG).module("hello", "interface_web").http("web").start().await;
    let mut idle = TcpStream::connect(cage.address("web")).await.unwrap();
    let mut silent = TcpStream::connect(cage.address("web")).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = vec![];
    while !answer.ends_with(b"Hello, world !") {
        assert_ne!(idle.read_buf(&mut answer).await.unwrap(), 0, "{answer:?}");
    }
    let client = Client::http2(&cage.address("web"));
    assert_eq!(client.get("/").await.status, 200);
    assert!(cage.stop().await);
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_flight_can_still_call_another_cage() {
    // Both stop at once, and the callee has nothing in flight of its own.
    let worker = wasmcage_tests::unique_name("worker");
    let cage = TestCage::new()
        .config(LONG)
        .module("echo", "interface_web")
        .http("web")
        .config(&format!("[modules.interface_web]\nallow = {{ cages = [\"{worker}\"] }}"))
        .cage(&worker)
        .config(LONG)
        .module("service_echo", "service_echo")
        .start()
        .await;
    let target = query("/call", &[("cage", &worker), ("module", "service_echo"), ("function", "echo_raw")]);
    let stream = begun(&cage.address("web"), &target).await;
    let stopped = stopping(cage, "web").await;
    let answer = ended(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nthe body"), "{answer}");
    assert!(outcome(stopped).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_end_is_cut_off() {
    // The interface's requests may take longer than the cage is ready to wait for at its end.
    for (guest, target) in [("hostile", "/loop"), ("hostile", "/sleep?ms=600000"), ("wasi_http_p2", "/hang")] {
        let cage = TestCage::new()
            .config("request_timeout_ms = 300")
            .module(guest, "interface_web")
            .http("web")
            .config("timeout_ms = 600000")
            .start()
            .await;
        let client = cage.client("web");
        let request = tokio::spawn(async move {
            client.try_send(http::Method::GET, target, &[], bytes::Bytes::new()).await.map(|answer| answer.status)
        });
        eventually("a request in work", || (cage.snapshot().cages[0].in_work == 1).then_some(())).await;
        assert!(!outcome(tokio::spawn(cage.stop())).await, "{target}");
        assert!(request.await.unwrap().is_err(), "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_does_not_stop_a_handler_that_has_begun() {
    let cage = TestCage::new()
        .module("echo", "interface_web")
        .module("service_echo", "service_echo")
        .http("web")
        .start()
        .await;
    let args = r#"["info", "the work was done", 300]"#;
    let target = query("/call", &[("module", "service_echo"), ("function", "log"), ("args", args)]);
    let mut client = TcpStream::connect(cage.address("web")).await.unwrap();
    client.write_all(format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    eventually("a request in work", || (cage.snapshot().cages[0].in_work == 1).then_some(())).await;
    drop(client);
    cage.logged("the work was done").await;
    cage.quiet().await;
    let readings = cage.module("interface_web").unwrap().readings;
    assert_eq!((readings.outcomes.get("ok"), readings.outcomes.get("abandoned")), (Some(&1), None));
    assert!(cage.stop().await);
}
