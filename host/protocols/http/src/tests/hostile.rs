//! Clients that break the rules: each gets a response or a closed connection, and the next client is served.

use std::time::Duration;

use super::super::config::HttpConfig;
use super::fake::{TestServer, config};
use wasmcage_protocol::RouteKind;

/// The statuses of all responses on a connection.
fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.").skip(1).filter_map(|answer| answer.get(2..5)).collect()
}

async fn check(server: &TestServer, sent: impl AsRef<[u8]>, expected: &[&str]) {
    let sent = sent.as_ref();
    let answers = server.exchange(sent).await;
    assert_eq!(statuses(&answers), expected, "{:?}\n{answers}", String::from_utf8_lossy(sent));
}

/// A second request is hidden in what some servers would read as the first one's body. It must not be served.
#[tokio::test]
async fn smuggled_requests_are_not_served() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let hidden = "GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n";
    for head in [
        // Two lengths that differ, in one line and in two; invalid lengths.
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 6",
        "content-length: +5",
        "content-length: -1",
        "content-length: 5 5",
        "content-length: 0x5",
        "content-length: 99999999999999999999",
        "content-length:",
        // Encodings that do not end with chunked.
        "transfer-encoding: identity",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: xchunked",
        // Chunks of chunks.
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: \x0bchunked",
        // Names and lines that other parsers read differently.
        "content-length : 5",
        "transfer-encoding : chunked",
        "x: y\r\n z",
        "x: y\r\n\tz",
        "x: y\0",
        "x\0: y",
        "x: y\rz: 1",
        "x y: z",
        ": x",
        "x",
        "x: \x7f",
    ] {
        check(&server, format!("POST / HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n{hidden}"), &["400"]).await;
    }
    server.check_alive().await;
}

/// With both a length and chunks the chunks count, the length is removed, and the connection ends: RFC 9112 section
/// 6.1.
#[tokio::test]
async fn a_length_beside_chunks_does_not_count() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    for lengths in
        ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"]
    {
        let sent =
            format!("POST / HTTP/1.1\r\nhost: x\r\n{lengths}\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: x\r\n\r\n");
        let answers = server.exchange(sent).await;
        assert_eq!(statuses(&answers), ["200"], "{answers}");
        assert!(!answers.contains("/hidden") && answers.ends_with("POST / "), "{answers}");
    }
}

#[tokio::test]
async fn a_coding_that_is_not_decoded_is_refused() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let head = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n";
    check(&server, format!("{head}0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"), &["501"]).await;
    server.check_alive().await;
}

#[tokio::test]
async fn broken_chunks_end_the_connection() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    for chunks in [
        "g\r\n",
        "-1\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\na",
        "1\ra\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "\r\n\r\n",
        &format!("1;{}\r\n", "x".repeat(100_000)),
    ] {
        let head = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        check(&server, format!("{head}{chunks}GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"), &["400"]).await;
    }
    server.check_alive().await;
}

#[tokio::test]
async fn bytes_that_are_not_http_are_refused() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    for sent in [
        "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03\r\n\r\n",
        "GET / HTTP/3.0\r\nhost: x\r\n\r\n",
        "GET / HTTP/1.1\nx y\n\n",
        "GET\r\n\r\n",
        "GET  / HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET / / HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nhost: x\r\n\r\n",
        "G\0ET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "hello\r\n\r\n",
    ] {
        check(&server, sent, &["400"]).await;
    }
    // Half of HTTP/2's preface, then something else.
    check(&server, "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &["400"]).await;
    // Nothing at all, or half of the preface: no response, and no harm.
    drop(server.connect().await);
    let mut half = server.connect().await;
    half.send("PRI * HT").await;
    drop(half);
    server.check_alive().await;
}

#[tokio::test]
async fn hosts_and_methods_are_checked() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let close = "connection: close\r\n\r\n";
    check(&server, format!("GET / HTTP/1.1\r\n{close}"), &["400"]).await;
    check(&server, format!("GET / HTTP/1.1\r\nhost: x\r\nhost: x\r\n{close}"), &["400"]).await;
    check(&server, format!("GET / HTTP/1.1\r\nhost: x y\r\n{close}"), &["400"]).await;
    check(&server, format!("DELETE / HTTP/1.1\r\nhost: x\r\n{close}"), &["405"]).await;
    check(&server, format!("TRACE / HTTP/1.1\r\nhost: x\r\n{close}"), &["405"]).await;
    check(&server, format!("CONNECT x:80 HTTP/1.1\r\nhost: x\r\n{close}"), &["405"]).await;
    let answer = server.exchange(format!("PUT / HTTP/1.1\r\nhost: x\r\n{close}")).await;
    assert!(answer.contains("\r\nallow: GET, HEAD, POST\r\n"), "{answer}");
}

#[tokio::test]
async fn sizes_are_limited() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    check(&server, format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(3000)), &["431"]).await;
    check(&server, format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(30)), &["431"]).await;
    check(&server, format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(100_000)), &["431"]).await;
    let announced = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n{}", "y".repeat(2000));
    check(&server, announced, &["413"]).await;
    let chunk = format!("1f4\r\n{}\r\n", "y".repeat(500));
    let chunked =
        format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(3));
    check(&server, chunked.clone(), &["413"]).await;
    server.check_alive().await;
    let streaming = TestServer::start(config(), RouteKind::Streamed).await;
    check(&streaming, chunked.replace("POST /", "POST /collect"), &["413"]).await;
}

/// The response must arrive although the client has sent much that nobody reads.
#[tokio::test]
async fn an_upload_that_is_refused_gets_its_answer() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let upload = vec![b'y'; 2 << 20];
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", upload.len());
    check(&server, [head.as_bytes(), &upload].concat(), &["413"]).await;
}

#[tokio::test]
async fn slow_clients_are_disconnected() {
    let short = Duration::from_millis(50);
    let limits = HttpConfig { header_timeout: short, body_timeout: short, idle_timeout: short, ..config() };
    let server = TestServer::start(limits, RouteKind::Whole).await;
    // Half a head, half a body, nothing, and nothing after an answer.
    check(&server, "GET / HTTP/1.1\r\nhost", &["408"]).await;
    check(&server, "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf", &["408"]).await;
    check(&server, "", &[]).await;
    check(&server, "GET / HTTP/1.1\r\nhost: x\r\n\r\n", &["200"]).await;
    // A byte now and then does not extend the time.
    let mut client = server.connect().await;
    let head = "GET / HTTP/1.1\r\nhost: x\r\nx: ".to_owned() + &"y".repeat(1000);
    let trickle = async {
        for byte in head.as_bytes().chunks(1) {
            client.send(byte).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), trickle).await;
    assert_eq!(statuses(&client.rest().await), ["408"]);
    server.check_alive().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_disconnected() {
    let limits = HttpConfig { write_timeout: Duration::from_millis(50), ..config() };
    let server = TestServer::start(limits, RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "));
    // The drain need not be forced, since the stuck connection is closed.
    server.drain.begin();
    assert!(server.drain.complete(super::fake::TEST_TIMEOUT).await);
    assert!(client.rest().await.len() < 64 << 20);
}
