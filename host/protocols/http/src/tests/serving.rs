//! Clients that follow the rules.

use super::super::compress::Compress;
use super::fake::{TestServer, config, header};
use wasmcage_protocol::RouteKind;

#[tokio::test]
async fn requests_follow_one_another_on_a_connection() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("GET /a?b=%20c HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.body, "GET /a?b=%20c ");
    client.send("POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello").await;
    assert_eq!(client.answer().await.body, "POST /b hello");
    let chunked =
        "POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nx-t: y\r\n\r\n";
    // The next request is sent before the response.
    client.send(format!("{chunked}GET http://x/d HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    assert_eq!(client.answer().await.body, "POST /c hello");
    assert_eq!(client.answer().await.body, "GET /d ");
    client.send("GET /e HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let last = client.rest().await;
    assert!(
        last.contains("connection: close\r\n") && last.contains("\r\ndate: ") && last.ends_with("GET /e "),
        "{last}"
    );
}

#[tokio::test]
async fn old_clients_are_served() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let answer = server.exchange("GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("GET / "), "{answer}");
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("HEAD /a HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(header(&client.head().await, "content-length"), Some("8"));
    client.send("HEAD /refused HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 422 "));
    client.send("GET /empty HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 204 ") && header(&head, "content-length").is_none(), "{head}");
    client.send("GET /b HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.body, "GET /b ");
}

#[tokio::test]
async fn head_of_a_stream_has_no_body() {
    let server = TestServer::start(config(), RouteKind::Streamed).await;
    let mut client = server.connect().await;
    client.send("HEAD /trailers HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    client.send("GET /b HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.body, "GET /b ");
}

#[tokio::test]
async fn without_a_module_the_server_shows_its_welcome_page() {
    let server = TestServer::try_start(config(), None).await.unwrap();
    let mut client = server.connect().await;
    client.send("GET /x?y HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(answer.head.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(answer.body.starts_with("wasmcage HTTP server is up and running\nURL: /x?y\n"), "{}", answer.body);
    assert!(answer.body.contains("put interface_my_http.wasm into cages/runner"), "{}", answer.body);
    client.send("GET /<b> HTTP/1.1\r\nhost: x\r\naccept: text/html\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(!answer.body.contains("<b>"), "{}", answer.body);
}

#[tokio::test]
async fn a_request_with_effects_never_succeeds_without_a_module() {
    let server = TestServer::try_start(config(), None).await.unwrap();
    let status = async |method: &str| {
        let answer = server.exchange(format!("{method} / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(header(&answer, "retry-after").is_some(), answer.starts_with("HTTP/1.1 503 "), "{answer}");
        answer[9..12].to_owned()
    };
    for (method, expected) in [("GET", "200"), ("HEAD", "200"), ("POST", "503")] {
        assert_eq!(status(method).await, expected, "{method}");
    }
    // The cage has had a file for the module: it is being compiled, cannot be loaded, or was removed.
    server.fake.had_module.store(true, std::sync::atomic::Ordering::SeqCst);
    for method in ["GET", "HEAD", "POST"] {
        assert_eq!(status(method).await, "503", "{method}");
    }
}

/// Checks the status and code that a client gets for an error of the dispatcher.
async fn check_error(target: &str, status: u16, code: &str) {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send(format!("GET {target} HTTP/1.1\r\nhost: x\r\naccept: application/json\r\n\r\n")).await;
    let answer = client.answer().await;
    assert!(answer.head.starts_with(&format!("HTTP/1.1 {status} ")), "{}", answer.head);
    let json: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(json["code"], code);
    assert_eq!(header(&answer.head, "x-request-id"), json["request_id"].as_str());
    assert!(!answer.body.contains("secret") && !answer.head.contains("set-cookie"), "{}", answer.body);
    assert_eq!(header(&answer.head, "retry-after").is_some(), status == 503);
    client.send("GET /on HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.body, "GET /on ", "an error does not cost the connection");
}

#[tokio::test]
async fn errors_are_answered_by_the_table() {
    check_error("/refused", 422, "refused").await;
    check_error("/overloaded", 503, "overloaded").await;
    check_error("/late", 504, "deadline-exceeded").await;
    check_error("/trap", 500, "trapped").await;
    check_error("/missing", 404, "no-such-module").await;
    check_error("/split", 502, "invalid-reply").await;
    check_error("/status", 502, "invalid-reply").await;
    check_error("/panic", 500, "host-error").await;
}

#[tokio::test]
async fn connect_reaches_a_module_where_it_is_allowed_and_makes_no_tunnel() {
    let allowed_methods = vec![http::Method::CONNECT, http::Method::GET];
    let server =
        TestServer::start(super::super::config::HttpConfig { allowed_methods, ..config() }, RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(answer.head.starts_with("HTTP/1.1 502 ") && answer.body.starts_with("invalid-reply"), "{}", answer.head);
    client.send("GET /on HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.body, "GET /on ");
}

#[tokio::test]
async fn streams_go_both_ways_at_once() {
    let server = TestServer::start(config(), RouteKind::Streamed).await;
    let mut client = server.connect().await;
    client
        .send("POST /echo HTTP/1.1\r\nhost: x\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    // The response's first part arrives before the request's last part.
    assert_eq!(header(&client.head().await, "transfer-encoding"), Some("chunked"));
    client.send("3\r\ntwo\r\n0\r\nx-t: y\r\n\r\n").await;
    client.send("GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let rest = client.rest().await;
    assert!(rest.starts_with("3\r\none\r\n3\r\ntwo\r\n0\r\n"), "{rest}");
    assert!(rest.ends_with("GET /last "), "{rest}");
}

#[tokio::test]
async fn trailers_reach_a_client_that_accepts_them() {
    let server = TestServer::start(config(), RouteKind::Streamed).await;
    let taken = server.exchange("GET /trailers HTTP/1.1\r\nhost: x\r\nte: trailers\r\nconnection: close\r\n\r\n").await;
    assert!(taken.ends_with("4\r\nbody\r\n0\r\nx-sum: 42\r\n\r\n"), "{taken}");
    let not_taken = server.exchange("GET /trailers HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(not_taken.ends_with("4\r\nbody\r\n0\r\n\r\n"), "{not_taken}");
}

#[tokio::test]
async fn a_response_may_come_before_the_body() {
    let server = TestServer::start(config(), RouteKind::Streamed).await;
    let mut client = server.connect().await;
    client.send("POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\nhalf").await;
    assert_eq!(client.answer().await.body, "early");
    client.send("y".repeat(896)).await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn a_response_that_breaks_off_does_not_look_complete() {
    let server = TestServer::start(config(), RouteKind::Streamed).await;
    let answer = server.exchange("GET /broken HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.contains("half") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    let answer = server.exchange("GET /connection HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn continue_is_sent_only_if_the_body_is_wanted() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello").await;
    assert_eq!(client.answer().await.body, "POST / hello");
    client.send("POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1001\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(answer.head.starts_with("HTTP/1.1 413 "), "{}", answer.head);
    let answer = server.exchange("GET / HTTP/1.1\r\nhost: x\r\nexpect: tea\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
}

#[tokio::test]
async fn answers_are_compressed_when_configured() {
    let compress = Some(Compress { types: vec!["text/*".to_owned()], bytes_min: 100 });
    let server = TestServer::start(super::super::config::HttpConfig { compress, ..config() }, RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("GET /text HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.body.len(), 5000);
    client.send("GET /text HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(header(&head, "content-encoding"), Some("gzip"));
    assert_eq!(header(&head, "content-length"), None);
}

#[tokio::test]
async fn facts_reach_the_module() {
    let mut config = config();
    config.trusted_proxies.nets.push("127.0.0.0/8".parse().unwrap());
    let server = TestServer::start(config, RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("GET /facts HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.body, "peer-address=127.0.0.1");
    client
        .send("GET /facts HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 1.2.3.4\r\nauthorization: Basic dTpw\r\n\r\n")
        .await;
    assert_eq!(client.answer().await.body, "peer-address=1.2.3.4;username=u;password=p");
}
