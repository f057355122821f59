//! CONNECT to a streaming module: what it answers with success to is a tunnel, on a connection of HTTP/1 and on a stream of
//! HTTP/2.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::super::config::HttpConfig;
use super::fake::{Client, PATIENCE, Running, config, header};
use wasmcage_protocol::RouteKind;

fn tunnels() -> HttpConfig {
    HttpConfig { allowed_methods: vec![Method::CONNECT, Method::GET], ..config() }
}

async fn serving(config: HttpConfig) -> Running {
    Running::start(config, RouteKind::Streamed).await
}

/// No exchange may last.
async fn serving_briefly() -> Running {
    let short = Duration::from_millis(50);
    let server = serving(HttpConfig { stream_timeout: short, write_timeout: short, ..tunnels() }).await;
    server.endpoint.set_timeout(short);
    server
}

/// A connection that asks for a tunnel to `host`, and goes on at once with `ahead`.
async fn asked(server: &Running, host: &str, ahead: &str) -> Client<TcpStream> {
    let mut client = server.connect().await;
    client.send(format!("CONNECT {host}:1 HTTP/1.1\r\nhost: {host}:1\r\n\r\n{ahead}")).await;
    client
}

/// One that has got it.
async fn opened(server: &Running, host: &str, ahead: &str) -> Client<TcpStream> {
    let mut client = asked(server, host, ahead).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 2"), "{head}");
    for name in ["content-length", "transfer-encoding"] {
        assert_eq!(header(&head, name), None, "{head}");
    }
    client
}

/// What comes up to the end, which has to be a reset.
async fn cut(client: &mut Client<TcpStream>) -> Vec<u8> {
    let mut came = Vec::new();
    let read = tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut came)).await.expect("an end");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    came
}

async fn heard(server: &Running, count: usize) -> String {
    server.until_inside(count).await;
    server.fake.heard.lock().clone()
}

#[tokio::test]
async fn bytes_go_both_ways() {
    let server = serving(tunnels()).await;
    let mut client = opened(&server, "echo", "ahead").await;
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
    let mut client = opened(&server, "converse", "hel").await;
    client.send("lo").await;
    client.end().await;
    assert_eq!(client.rest().await, "goodbye");
    assert_eq!(heard(&server, 1).await, "hello, the end");
    let mut client = opened(&server, "listen", "").await;
    assert_eq!(client.rest().await, "listening");
    client.send("still here").await;
    client.end().await;
    assert_eq!(heard(&server, 2).await, "still here, the end");
}

#[tokio::test]
async fn a_module_that_takes_no_more_still_ends_in_good_order() {
    let server = serving(tunnels()).await;
    let mut client = asked(&server, "wait", "").await;
    server.until_inside(1).await;
    // Before the module has ended: a socket that is closed on it is reset.
    client.send("nobody reads this ".repeat(500)).await;
    server.fake.gate.open.add_permits(1);
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(client.take(6).await, "waited");
    let end = tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(end.unwrap(), 0);
}

#[tokio::test]
async fn success_has_no_content_whatever_its_status() {
    let server = serving(tunnels()).await;
    let mut client = opened(&server, "length", "").await;
    assert_eq!(client.rest().await, "bytes");
}

#[tokio::test]
async fn another_answer_is_an_ordinary_one_and_the_last() {
    let server = serving(tunnels()).await;
    // What was meant for the tunnel is not taken for a request.
    let mut client = asked(&server, "forbidden", "GET /alive HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("forbidden"), "{answer}");
    assert_eq!((header(&answer, "connection"), answer.matches("HTTP/1.1").count()), (Some("close"), 1), "{answer}");
    assert_eq!(heard(&server, 1).await, ", the end");
    // Refused by the dispatcher.
    let answer = asked(&server, "refused", "GET /alive HTTP/1.1\r\nhost: x\r\n\r\n").await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 422 ") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
}

#[tokio::test]
async fn what_is_no_request_for_a_tunnel_is_refused() {
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
    let answer = asked(&unasked, "echo", "").await.answer().await;
    assert!(answer.head.starts_with("HTTP/1.1 405 "), "{}", answer.head);
}

#[tokio::test]
async fn an_upgrade_that_nobody_makes_is_an_ordinary_request() {
    let server = serving(tunnels()).await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x\r\n";
    let mut client = server.connect().await;
    client.send(format!("GET /a HTTP/1.1\r\nhost: x\r\n{upgrade}\r\n")).await;
    assert_eq!(client.answer().await.body, "GET /a ");
    client.send("GET /b HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.body, "GET /b ");
}

#[tokio::test]
async fn what_breaks_off_is_reset() {
    let server = serving(tunnels()).await;
    let mut client = opened(&server, "broken", "").await;
    // A reset may overtake what was sent before it.
    cut(&mut client).await;
    // The client's side: the module is not told that all has come.
    let client = opened(&server, "converse", "hal").await;
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(heard(&server, 1).await, "hal, the tunnel's client has left");
    server.check_alive().await;
}

#[tokio::test]
async fn a_tunnel_has_limits() {
    // `max_body_bytes`, from the client.
    let server = serving(tunnels()).await;
    let mut client = opened(&server, "converse", "").await;
    client.send("y".repeat(1000)).await;
    client.send("z").await;
    cut(&mut client).await;
    assert!(heard(&server, 1).await.ends_with(", the tunnel's client has left"));
    // `stream_timeout_ms`.
    let server = serving_briefly().await;
    cut(&mut opened(&server, "echo", "").await).await;
    // `write_timeout_ms`: a client that takes nothing.
    let server = serving(HttpConfig { write_timeout: Duration::from_millis(50), ..tunnels() }).await;
    let _client = opened(&server, "large", "").await;
    assert!(server.drain.complete(PATIENCE).await);
}

#[tokio::test]
async fn a_tunnel_is_one_of_the_connections_and_never_idle() {
    let limits = HttpConfig {
        connections_max: 1,
        idle_timeout: Duration::from_millis(20),
        header_timeout: Duration::from_millis(20),
        ..tunnels()
    };
    let server = serving(limits).await;
    let mut client = opened(&server, "echo", "").await;
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
        let mut client = opened(&server, "echo", "").await;
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
            assert!(server.drain.complete(PATIENCE).await);
        } else {
            assert!(!server.drain.complete(Duration::from_millis(10)).await);
            cut(&mut client).await;
            stream.data().await.unwrap().unwrap_err();
        }
        tokio::time::timeout(PATIENCE, &mut server.task).await.unwrap().unwrap();
    }
}

type Connected = (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>);

async fn connected2(server: &Running) -> Connected {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    (client.ready().await.unwrap(), tokio::spawn(connection))
}

fn ask2(client: &mut SendRequest<Bytes>, host: &str) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::connect(format!("{host}:1")).body(()).unwrap();
    client.send_request(request, false).unwrap()
}

async fn answer2(response: ResponseFuture) -> Response<RecvStream> {
    tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap()
}

async fn opened2(server: &Running, host: &str) -> (RecvStream, SendStream<Bytes>, Connected) {
    let mut connected = connected2(server).await;
    let (response, sent) = ask2(&mut connected.0, host);
    let response = answer2(response).await;
    assert!(response.status().is_success() && !response.headers().contains_key("content-length"));
    (response.into_body(), sent, connected)
}

/// All data up to the end.
async fn rest2(stream: &mut RecvStream) -> Result<String, h2::Error> {
    let mut came = Vec::new();
    while let Some(data) = tokio::time::timeout(PATIENCE, stream.data()).await.expect("data, or the end") {
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
    assert_eq!(heard(&server, 1).await, "hello, the end");
    let (mut stream, mut sent, _connection) = opened2(&server, "listen").await;
    assert_eq!(rest2(&mut stream).await.unwrap(), "listening");
    sent.send_data(Bytes::from_static(b"still here"), true).unwrap();
    assert_eq!(heard(&server, 2).await, "still here, the end");
}

#[tokio::test]
async fn another_answer_leaves_the_streams_connection_open() {
    let server = serving(tunnels()).await;
    let (mut client, _connection) = connected2(&server).await;
    let (response, _sent) = ask2(&mut client, "forbidden");
    let mut response = answer2(response).await;
    assert_eq!((response.status().as_u16(), response.headers().get("connection")), (403, None));
    assert_eq!(rest2(response.body_mut()).await.unwrap(), "forbidden");
    assert_eq!(heard(&server, 1).await, ", the end");
    let (response, _sent) = ask2(&mut client, "refused");
    assert_eq!(answer2(response).await.status(), 422);
    let (other, _) = client.send_request(Request::get("http://x/on").body(()).unwrap(), true).unwrap();
    assert_eq!(rest2(answer2(other).await.body_mut()).await.unwrap(), "GET /on ");
}

#[tokio::test]
async fn what_breaks_off_in_a_stream_is_reset() {
    let server = serving(tunnels()).await;
    let reason = async |stream: &mut RecvStream| rest2(stream).await.unwrap_err().reason();
    // The end of a whole one and a cut one are told apart each time, however the tasks on the way are scheduled.
    for round in 1..=20 {
        let (mut stream, _sent, _connection) = opened2(&server, "broken").await;
        assert_eq!(reason(&mut stream).await, Some(Reason::CANCEL));
        // hyper takes this for the end of the bytes.
        let (_stream, mut sent, _connection) = opened2(&server, "converse").await;
        sent.send_data(Bytes::from_static(b"hal"), false).unwrap();
        sent.send_reset(Reason::CANCEL);
        let heard = heard(&server, round).await;
        assert!(heard.ends_with(", the tunnel's client has left"), "{round}: {heard}");
    }
    let (mut stream, mut sent, _connection) = opened2(&server, "converse").await;
    sent.send_data(Bytes::from(vec![b'y'; 1001]), false).unwrap();
    assert_eq!(reason(&mut stream).await, Some(Reason::CANCEL));
    let server = serving_briefly().await;
    let (mut stream, _sent, _connection) = opened2(&server, "echo").await;
    assert_eq!(reason(&mut stream).await, Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_gets_no_tunnel() {
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
