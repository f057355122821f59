//! HTTP/2 without TLS, by prior knowledge.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request};
use tokio::net::TcpStream;

use super::super::config::HttpConfig;
use super::fake::{TEST_TIMEOUT, TestServer, config};
use wasmcage_protocol::RouteKind;

/// A client, and the task of its connection.
async fn connect(server: &TestServer) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    (client.ready().await.unwrap(), tokio::spawn(connection))
}

fn request(method: &str, target: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://x.example{target}")).body(()).unwrap()
}

/// Reads status, body and trailers.
async fn read(response: h2::client::ResponseFuture) -> (u16, String, Option<HeaderMap>) {
    let response = tokio::time::timeout(TEST_TIMEOUT, response).await.unwrap().unwrap();
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    (status, String::from_utf8(bytes).unwrap(), body.trailers().await.unwrap())
}

#[tokio::test]
async fn streams_are_answered_out_of_order() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let (mut client, _connection) = connect(&server).await;
    let (slow, _) = client.send_request(request("GET", "/wait"), true).unwrap();
    server.until_inside(1).await;
    let (fast, mut body) = client.send_request(request("POST", "/fast?a"), false).unwrap();
    body.send_data(Bytes::from_static(b"hello"), true).unwrap();
    assert_eq!(read(fast).await, (200, "POST /fast?a hello".to_owned(), None));
    server.fake.gate.open.add_permits(1);
    assert_eq!(read(slow).await.1, "waited");
    let (head, _) = client.send_request(request("HEAD", "/a"), true).unwrap();
    let head = head.await.unwrap();
    assert_eq!(head.headers()["content-length"], "8");
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let server = TestServer::start(config(), RouteKind::Streamed).await;
    let (mut client, _connection) = connect(&server).await;
    let (response, _) = client.send_request(request("GET", "/trailers"), true).unwrap();
    let (status, body, trailers) = read(response).await;
    assert_eq!((status, body.as_str(), trailers.unwrap()["x-sum"].as_bytes()), (200, "body", b"42".as_slice()));
    let (response, mut body) = client.send_request(request("POST", "/echo"), false).unwrap();
    body.send_data(Bytes::from_static(b"hello"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-t", HeaderValue::from_static("y"));
    body.send_trailers(trailers.clone()).unwrap();
    assert_eq!(read(response).await, (200, "hello".to_owned(), Some(trailers)));
}

#[tokio::test]
async fn the_same_limits_hold() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let (mut client, _connection) = connect(&server).await;
    let (response, mut body) = client.send_request(request("POST", "/"), false).unwrap();
    body.send_data(Bytes::from(vec![b'y'; 2000]), true).unwrap();
    assert_eq!(read(response).await.0, 413);
    let (response, _) = client.send_request(request("DELETE", "/"), true).unwrap();
    assert_eq!(read(response).await.0, 405);
    let mut large = request("GET", "/");
    large.headers_mut().insert("x", HeaderValue::from_str(&"y".repeat(3_000)).unwrap());
    let (response, _) = client.send_request(large, true).unwrap();
    assert_eq!(read(response).await.0, 431);
    let (response, _) = client.send_request(request("GET", "/panic"), true).unwrap();
    assert_eq!(read(response).await.0, 500);
    let (response, _) = client.send_request(request("GET", "/on"), true).unwrap();
    assert_eq!(read(response).await.1, "GET /on ");
}

#[tokio::test]
async fn a_drain_sends_goaway() {
    let mut server = TestServer::start(config(), RouteKind::Whole).await;
    let (mut client, connection) = connect(&server).await;
    let (_idle, idle_connection) = connect(&server).await;
    let (slow, _) = client.send_request(request("GET", "/wait"), true).unwrap();
    server.until_inside(1).await;
    server.drain.begin();
    tokio::time::timeout(TEST_TIMEOUT, idle_connection).await.unwrap().unwrap().unwrap();
    server.fake.gate.open.add_permits(1);
    assert_eq!(read(slow).await.1, "waited");
    drop(client);
    tokio::time::timeout(TEST_TIMEOUT, connection).await.unwrap().unwrap().unwrap();
    tokio::time::timeout(TEST_TIMEOUT, &mut server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go() {
    let limits = HttpConfig { idle_timeout: std::time::Duration::from_millis(50), ..config() };
    let server = TestServer::start(limits, RouteKind::Whole).await;
    let (_client, connection) = connect(&server).await;
    tokio::time::timeout(TEST_TIMEOUT, connection).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn garbage_after_the_preface_ends_the_connection() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.send([0xff; 100]).await;
    client.rest().await;
    server.check_alive().await;
}

/// A proxy whose client has left may reset the stream with NO_ERROR, which hyper reads as the body's end. A handler
/// once got half an upload as a complete one.
#[tokio::test]
async fn a_body_that_is_reset_without_an_error_is_incomplete() {
    let server = TestServer::start(config(), RouteKind::Streamed).await;
    let (mut client, _connection) = connect(&server).await;
    for round in 1..=20 {
        let (_response, mut body) = client.send_request(request("POST", "/converse"), false).unwrap();
        body.send_data(Bytes::from_static(b"half"), false).unwrap();
        body.send_reset(h2::Reason::NO_ERROR);
        server.until_inside(round).await;
        let received = server.fake.received.lock().clone();
        assert!(!received.ends_with("the end"), "{received}");
    }
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let (mut client, _connection) = connect(&server).await;
    for _ in 0..20 {
        let (_response, mut body) = client.send_request(request("POST", "/wait"), false).unwrap();
        body.send_data(Bytes::from_static(b"half"), false).unwrap();
        body.send_reset(h2::Reason::NO_ERROR);
        let (response, _) = client.send_request(request("GET", "/on"), true).unwrap();
        assert_eq!(read(response).await.1, "GET /on ");
    }
    assert_eq!(server.fake.gate.inside.load(std::sync::atomic::Ordering::SeqCst), 0);
}
