//! CONNECT to a streaming module: after its success the HTTP/1 connection or the HTTP/2 stream is a tunnel.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::super::config::HttpConfig;
use super::fake::{RawClient, TEST_TIMEOUT, TestServer, config, header};
use wasmcage_protocol::RouteKind;

fn tunnels() -> HttpConfig {
    HttpConfig { allowed_methods: vec![Method::CONNECT, Method::GET], ..config() }
}

async fn serving(config: HttpConfig) -> TestServer {
    TestServer::start(config, RouteKind::Streamed).await
}

/// A server whose exchanges have a short timeout.
async fn serving_briefly() -> TestServer {
    let short = Duration::from_millis(50);
    let server = serving(HttpConfig { stream_timeout: short, write_timeout: short, ..tunnels() }).await;
    server.endpoint.set_timeout(short);
    server
}

/// A connection that has sent a CONNECT to `host`, and `ahead` right after it.
async fn connect(server: &TestServer, host: &str, ahead: &str) -> RawClient<TcpStream> {
    let mut client = server.connect().await;
    client.send(format!("CONNECT {host}:1 HTTP/1.1\r\nhost: {host}:1\r\n\r\n{ahead}")).await;
    client
}

/// Such a connection that has got the tunnel.
async fn open_tunnel(server: &TestServer, host: &str, ahead: &str) -> RawClient<TcpStream> {
    let mut client = connect(server, host, ahead).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 2"), "{head}");
    for name in ["content-length", "transfer-encoding"] {
        assert_eq!(header(&head, name), None, "{head}");
    }
    client
}

/// Reads until the end, which has to be a reset.
async fn read_until_reset(client: &mut RawClient<TcpStream>) -> Vec<u8> {
    let mut came = Vec::new();
    let read = tokio::time::timeout(TEST_TIMEOUT, client.stream.read_to_end(&mut came)).await.expect("an end");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    came
}

/// The body that the module has received, once `count` of them have ended.
async fn received(server: &TestServer, count: usize) -> String {
    server.until_inside(count).await;
    server.fake.received.lock().clone()
}

#[tokio::test]
async fn bytes_go_both_ways() {
    let server = serving(tunnels()).await;
    let mut client = open_tunnel(&server, "echo", "ahead").await;
    assert_eq!(client.take(5).await, "ahead");
    for piece in ["one", "GET / HTTP/1.1\r\nhost: x\r\n\r\n", "three"] {
        client.send(piece).await;
        assert_eq!(client.take(piece.len()).await, piece);
    }
    client.end().await;
    assert_eq!(client.rest().await, "");
    server.check_alive().await;
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let server = serving(tunnels()).await;
    let mut client = open_tunnel(&server, "converse", "hel").await;
    client.send("lo").await;
    client.end().await;
    assert_eq!(client.rest().await, "goodbye");
    assert_eq!(received(&server, 1).await, "hello, the end");
    let mut client = open_tunnel(&server, "listen", "").await;
    assert_eq!(client.rest().await, "listening");
    client.send("still here").await;
    client.end().await;
    assert_eq!(received(&server, 2).await, "still here, the end");
}

#[tokio::test]
async fn a_module_that_stops_reading_still_ends_in_good_order() {
    let server = serving(tunnels()).await;
    let mut client = connect(&server, "wait", "").await;
    server.until_inside(1).await;
    // It is sent before the module has ended: a socket that is closed with unread bytes is reset.
    client.send("nobody reads this ".repeat(500)).await;
    server.fake.gate.open.add_permits(1);
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(client.take(6).await, "waited");
    let end = tokio::time::timeout(TEST_TIMEOUT, client.stream.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(end.unwrap(), 0);
}

#[tokio::test]
async fn success_has_no_content_whatever_its_status() {
    let server = serving(tunnels()).await;
    let mut client = open_tunnel(&server, "length", "").await;
    assert_eq!(client.rest().await, "bytes");
}

#[tokio::test]
async fn a_response_that_is_no_success_is_an_ordinary_one_and_the_last() {
    let server = serving(tunnels()).await;
    // Bytes for the tunnel are not read as a request.
    let mut client = connect(&server, "forbidden", "GET /alive HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("forbidden"), "{answer}");
    assert_eq!((header(&answer, "connection"), answer.matches("HTTP/1.1").count()), (Some("close"), 1), "{answer}");
    assert_eq!(received(&server, 1).await, ", the end");
    // The dispatcher refuses the request.
    let answer = connect(&server, "refused", "GET /alive HTTP/1.1\r\nhost: x\r\n\r\n").await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 422 ") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
}

#[tokio::test]
async fn an_invalid_connect_is_refused() {
    let server = serving(tunnels()).await;
    for target in ["echo", "echo:0", "echo:70000", "http://echo:1/", "/echo"] {
        let answer = server.exchange(format!("CONNECT {target} HTTP/1.1\r\nhost: echo:1\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
    }
    for body in ["content-length: 5\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"] {
        let answer = server.exchange(format!("CONNECT echo:1 HTTP/1.1\r\nhost: echo:1\r\n{body}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("has no body"), "{answer}");
    }
    let unasked = serving(config()).await;
    let answer = connect(&unasked, "echo", "").await.answer().await;
    assert!(answer.head.starts_with("HTTP/1.1 405 "), "{}", answer.head);
}

#[tokio::test]
async fn an_upgrade_that_is_not_supported_is_an_ordinary_request() {
    let server = serving(tunnels()).await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x\r\n";
    let mut client = server.connect().await;
    client.send(format!("GET /a HTTP/1.1\r\nhost: x\r\n{upgrade}\r\n")).await;
    assert_eq!(client.answer().await.body, "GET /a ");
    client.send("GET /b HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.body, "GET /b ");
}

#[tokio::test]
async fn a_tunnel_that_breaks_off_is_reset() {
    let server = serving(tunnels()).await;
    let mut client = open_tunnel(&server, "broken", "").await;
    // A reset may overtake bytes that were sent before it.
    read_until_reset(&mut client).await;
    // If the client's side breaks off, the module does not see an end in good order.
    let client = open_tunnel(&server, "converse", "hal").await;
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(received(&server, 1).await, "hal, the tunnel's client has left");
    server.check_alive().await;
}

#[tokio::test]
async fn a_tunnel_has_limits() {
    // `max_body_bytes`, from the client.
    let server = serving(tunnels()).await;
    let mut client = open_tunnel(&server, "converse", "").await;
    client.send("y".repeat(1000)).await;
    client.send("z").await;
    read_until_reset(&mut client).await;
    assert!(received(&server, 1).await.ends_with(", the tunnel's client has left"));
    // `stream_timeout_ms`.
    let server = serving_briefly().await;
    read_until_reset(&mut open_tunnel(&server, "echo", "").await).await;
    // `write_timeout_ms`: a client that reads nothing.
    let server = serving(HttpConfig { write_timeout: Duration::from_millis(50), ..tunnels() }).await;
    let _client = open_tunnel(&server, "large", "").await;
    assert!(server.drain.complete(TEST_TIMEOUT).await);
}

#[tokio::test]
async fn a_tunnel_counts_as_a_connection_and_is_never_idle() {
    let limits = HttpConfig {
        connections_max: 1,
        idle_timeout: Duration::from_millis(20),
        header_timeout: Duration::from_millis(20),
        ..tunnels()
    };
    let server = serving(limits).await;
    let mut client = open_tunnel(&server, "echo", "").await;
    assert_eq!(server.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await, "");
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send("awake").await;
    assert_eq!(client.take(5).await, "awake");
    client.end().await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn a_drain_waits_for_tunnels_and_cuts_them_at_its_end() {
    for ends in [true, false] {
        let mut server = serving(tunnels()).await;
        let mut client = open_tunnel(&server, "echo", "").await;
        let (mut stream, mut sent, _connection) = opened2(&server, "echo").await;
        server.drain.begin();
        client.send("on").await;
        assert_eq!(client.take(2).await, "on");
        sent.send_data(Bytes::from_static(b"on"), false).unwrap();
        assert_eq!(stream.data().await.unwrap().unwrap(), "on");
        assert!(!server.task.is_finished());
        if ends {
            client.end().await;
            assert_eq!(client.rest().await, "");
            sent.send_data(Bytes::new(), true).unwrap();
            assert_eq!(rest2(&mut stream).await.unwrap(), "");
            assert!(server.drain.complete(TEST_TIMEOUT).await);
        } else {
            assert!(!server.drain.complete(Duration::from_millis(10)).await);
            read_until_reset(&mut client).await;
            stream.data().await.unwrap().unwrap_err();
        }
        tokio::time::timeout(TEST_TIMEOUT, &mut server.task).await.unwrap().unwrap();
    }
}

type Connected = (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>);

async fn connected2(server: &TestServer) -> Connected {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    (client.ready().await.unwrap(), tokio::spawn(connection))
}

fn ask2(client: &mut SendRequest<Bytes>, host: &str) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::connect(format!("{host}:1")).body(()).unwrap();
    client.send_request(request, false).unwrap()
}

async fn answer2(response: ResponseFuture) -> Response<RecvStream> {
    tokio::time::timeout(TEST_TIMEOUT, response).await.unwrap().unwrap()
}

async fn opened2(server: &TestServer, host: &str) -> (RecvStream, SendStream<Bytes>, Connected) {
    let mut connected = connected2(server).await;
    let (response, sent) = ask2(&mut connected.0, host);
    let response = answer2(response).await;
    assert!(response.status().is_success() && !response.headers().contains_key("content-length"));
    (response.into_body(), sent, connected)
}

/// Reads all data until the end.
async fn rest2(stream: &mut RecvStream) -> Result<String, h2::Error> {
    let mut came = Vec::new();
    while let Some(data) = tokio::time::timeout(TEST_TIMEOUT, stream.data()).await.expect("data, or the end") {
        let data = data?;
        stream.flow_control().release_capacity(data.len()).unwrap();
        came.extend_from_slice(&data);
    }
    Ok(String::from_utf8(came).unwrap())
}

#[tokio::test]
async fn bytes_go_both_ways_in_a_stream() {
    let server = serving(tunnels()).await;
    let (mut stream, mut sent, (mut client, _connection)) = opened2(&server, "echo").await;
    for piece in ["one", "two"] {
        sent.send_data(Bytes::from(piece), false).unwrap();
        assert_eq!(stream.data().await.unwrap().unwrap(), piece);
        stream.flow_control().release_capacity(piece.len()).unwrap();
    }
    // Beside other requests of the connection.
    let (other, _) = client.send_request(Request::get("http://x/on").body(()).unwrap(), true).unwrap();
    assert_eq!(rest2(answer2(other).await.body_mut()).await.unwrap(), "GET /on ");
    sent.send_data(Bytes::new(), true).unwrap();
    assert_eq!(rest2(&mut stream).await.unwrap(), "");
}

#[tokio::test]
async fn each_direction_of_a_stream_ends_by_itself() {
    let server = serving(tunnels()).await;
    let (mut stream, mut sent, _connection) = opened2(&server, "converse").await;
    sent.send_data(Bytes::from_static(b"hello"), true).unwrap();
    assert_eq!(rest2(&mut stream).await.unwrap(), "goodbye");
    assert_eq!(received(&server, 1).await, "hello, the end");
    let (mut stream, mut sent, _connection) = opened2(&server, "listen").await;
    assert_eq!(rest2(&mut stream).await.unwrap(), "listening");
    sent.send_data(Bytes::from_static(b"still here"), true).unwrap();
    assert_eq!(received(&server, 2).await, "still here, the end");
}

#[tokio::test]
async fn a_response_that_is_no_success_leaves_the_connection_open() {
    let server = serving(tunnels()).await;
    let (mut client, _connection) = connected2(&server).await;
    let (response, _sent) = ask2(&mut client, "forbidden");
    let mut response = answer2(response).await;
    assert_eq!((response.status().as_u16(), response.headers().get("connection")), (403, None));
    assert_eq!(rest2(response.body_mut()).await.unwrap(), "forbidden");
    assert_eq!(received(&server, 1).await, ", the end");
    let (response, _sent) = ask2(&mut client, "refused");
    assert_eq!(answer2(response).await.status(), 422);
    let (other, _) = client.send_request(Request::get("http://x/on").body(()).unwrap(), true).unwrap();
    assert_eq!(rest2(answer2(other).await.body_mut()).await.unwrap(), "GET /on ");
}

#[tokio::test]
async fn a_tunnel_in_a_stream_that_breaks_off_is_reset() {
    let server = serving(tunnels()).await;
    let reason = async |stream: &mut RecvStream| rest2(stream).await.unwrap_err().reason();
    // A complete tunnel and a cut one differ each time, however the tasks are scheduled.
    for round in 1..=20 {
        let (mut stream, _sent, _connection) = opened2(&server, "broken").await;
        assert_eq!(reason(&mut stream).await, Some(Reason::CANCEL));
        // hyper reads this as the end of the bytes.
        let (_stream, mut sent, _connection) = opened2(&server, "converse").await;
        sent.send_data(Bytes::from_static(b"hal"), false).unwrap();
        sent.send_reset(Reason::CANCEL);
        let received_text = received(&server, round).await;
        assert!(received_text.ends_with(", the tunnel's client has left"), "{round}: {received_text}");
    }
    let (mut stream, mut sent, _connection) = opened2(&server, "converse").await;
    sent.send_data(Bytes::from(vec![b'y'; 1001]), false).unwrap();
    assert_eq!(reason(&mut stream).await, Some(Reason::CANCEL));
    let server = serving_briefly().await;
    let (mut stream, _sent, _connection) = opened2(&server, "echo").await;
    assert_eq!(reason(&mut stream).await, Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_response_gets_no_tunnel() {
    let server = serving(tunnels()).await;
    let (mut client, _connection) = connected2(&server).await;
    let (response, mut sent) = ask2(&mut client, "wait");
    server.until_inside(1).await;
    sent.send_reset(Reason::CANCEL);
    drop(response);
    server.fake.gate.open.add_permits(1);
    let (response, _sent) = ask2(&mut client, "forbidden");
    assert_eq!(answer2(response).await.status(), 403);
}
