//! Clients that break the rules: each gets an answer or a closed connection, and costs the next one nothing.

use std::time::Duration;

use super::super::config::HttpConfig;
use super::fake::{Running, config};
use wasmcage_protocol::RouteKind;

/// The statuses of all answers on a connection that the server then closes.
fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.").skip(1).filter_map(|answer| answer.get(2..5)).collect()
}

async fn check(server: &Running, sent: impl AsRef<[u8]>, expected: &[&str]) {
    let sent = sent.as_ref();
    let answers = server.exchange(sent).await;
    assert_eq!(statuses(&answers), expected, "{:?}\n{answers}", String::from_utf8_lossy(sent));
}

/// A second request hides in what some servers would take for the first one's body: it must not be served.
#[tokio::test]
async fn smuggled_requests_are_not_served() {
    let server = Running::start(config(), RouteKind::Whole).await;
    let hidden = "GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n";
    for head in [
        // Two lengths that differ, in one line and in two; lengths that are none.
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
        // Names and lines that other parsers read otherwise.
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

/// Both a length and chunks: the chunks count, the length is gone, and the connection ends, as RFC 9112 section 6.1 demands.
#[tokio::test]
async fn a_length_beside_chunks_does_not_count() {
    let server = Running::start(config(), RouteKind::Whole).await;
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
async fn a_coding_that_is_not_taken_off_is_refused() {
    let server = Running::start(config(), RouteKind::Whole).await;
    let head = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n";
    check(&server, format!("{head}0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"), &["501"]).await;
    server.check_alive().await;
}

#[tokio::test]
async fn broken_chunks_end_the_connection() {
    let server = Running::start(config(), RouteKind::Whole).await;
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
async fn what_is_not_http_is_refused() {
    let server = Running::start(config(), RouteKind::Whole).await;
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
    // Half of HTTP/2's preface, then another thing.
    check(&server, "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &["400"]).await;
    // Nothing at all, or half of it: no answer, no harm.
    drop(server.connect().await);
    let mut half = server.connect().await;
    half.send("PRI * HT").await;
    drop(half);
    server.check_alive().await;
}

#[tokio::test]
async fn hosts_and_methods_are_checked() {
    let server = Running::start(config(), RouteKind::Whole).await;
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
async fn sizes_are_bounded() {
    let server = Running::start(config(), RouteKind::Whole).await;
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
    let streaming = Running::start(config(), RouteKind::Streamed).await;
    check(&streaming, chunked.replace("POST /", "POST /collect"), &["413"]).await;
}

/// The answer must arrive though the client has sent much that nobody reads.
#[tokio::test]
async fn an_upload_that_is_refused_gets_its_answer() {
    let server = Running::start(config(), RouteKind::Whole).await;
    let upload = vec![b'y'; 2 << 20];
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", upload.len());
    check(&server, [head.as_bytes(), &upload].concat(), &["413"]).await;
}

#[tokio::test]
async fn slow_clients_are_left() {
    let short = Duration::from_millis(50);
    let limits = HttpConfig { header_timeout: short, body_timeout: short, idle_timeout: short, ..config() };
    let server = Running::start(limits, RouteKind::Whole).await;
    // Half a head, half a body, nothing, and nothing after an answer.
    check(&server, "GET / HTTP/1.1\r\nhost", &["408"]).await;
    check(&server, "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf", &["408"]).await;
    check(&server, "", &[]).await;
    check(&server, "GET / HTTP/1.1\r\nhost: x\r\n\r\n", &["200"]).await;
    // A byte now and then does not help.
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
async fn a_client_that_reads_nothing_is_left() {
    let limits = HttpConfig { write_timeout: Duration::from_millis(50), ..config() };
    let server = Running::start(limits, RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "));
    // The server's drain needs no force: the stuck connection is gone.
    server.drain.begin();
    assert!(server.drain.complete(super::fake::PATIENCE).await);
    assert!(client.rest().await.len() < 64 << 20);
}
