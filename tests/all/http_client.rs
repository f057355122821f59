//! HTTP servers as resources, and requests of modules by `wasi:http`: granted hosts only, connections kept, errors as they
//! are.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wasmcage_tests::{RunningCage, TestCage};

const FETCHING: [&str; 2] = ["fetch_p2", "fetch_p3"];

/// A server that tells what it was asked, and how many connections it has seen.
async fn telling() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(|request: Request<Incoming>| async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let agent = head.headers.get("user-agent").map_or("", |agent| agent.to_str().unwrap());
                let host = head.headers["host"].to_str().unwrap();
                let text = format!("{} {} {host} {agent} {}", head.method, head.uri, body.len());
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service));
        }
    });
    (address, connections)
}

/// A server that answers each connection's first bytes with these, and closes it, or leaves it open without a word.
async fn saying(answer: &'static str, closes: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let _ = tcp.read(&mut [0; 4096]).await;
            let _ = tcp.write_all(answer.as_bytes()).await;
            if !closes {
                open.push(tcp);
            }
        }
    });
    address
}

/// A port where nobody listens.
async fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

/// A cage whose module is the guest, granted requests to these hosts.
async fn fetching(guest: &str, hosts: &str) -> RunningCage {
    let allow = format!("[modules.interface_web]\nallow = {{ http = [{hosts}] }}");
    TestCage::new().module(guest, "interface_web").http("web").config(&allow).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_asks_the_server_that_its_resource_names() {
    let (address, connections) = telling().await;
    let config = format!(
        "[resources.api]\nprotocol = \"http\"\nurl = \"http://{address}/v1\"\nuser_agent = \"me\"\n\
         [modules.interface_web]\nallow = {{ resources = [\"api\"] }}"
    );
    let cage = TestCage::new().module("relay", "interface_web").http("web").config(&config).start().await;
    let client = cage.client("web");
    for _ in 0..50 {
        let answer = client.get("/a?b=c").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, format!("GET /v1/a?b=c {address} me 0")));
    }
    assert_eq!(client.post("/a", Bytes::from_static(b"hello")).await.text(), format!("POST /v1/a {address} me 5"));
    // A connection is free again a moment after its answer is there, which the next request may not wait for.
    assert!(connections.load(Ordering::SeqCst) < 25);
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_without_the_grant_asks_nobody() {
    let config = format!("[resources.api]\nprotocol = \"http\"\nurl = \"http://{}\"", nobody().await);
    let cage = TestCage::new().module("relay", "interface_web").http("web").config(&config).start().await;
    let answer = cage.client("web").get("/").await;
    assert!(answer.status == 502 && answer.text().starts_with("not-permitted"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn wasi_http_reaches_granted_hosts_over_kept_connections() {
    for guest in FETCHING {
        let (address, connections) = telling().await;
        let cage = fetching(guest, &format!("\"{address}\"")).await;
        let client = cage.client("web");
        for _ in 0..50 {
            let answer = client.get(&format!("/http/{address}/a")).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (200, format!("GET /a {address}  0")), "{guest}");
        }
        // Long enough to be in pieces.
        let answer = client.post(&format!("/http/{address}/a"), Bytes::from(vec![b'x'; 1_000_000])).await;
        assert_eq!(answer.text(), format!("POST /a {address}  1000000"), "{guest}");
        // A connection is free again a moment after its answer is there, which the next request may not wait for.
        assert!(connections.load(Ordering::SeqCst) < 25, "{guest}");
        assert!(cage.stop().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wasi_http_reaches_no_other_host() {
    let (address, connections) = telling().await;
    let port = address.rsplit(':').next().unwrap();
    for guest in FETCHING {
        let cage = fetching(guest, &format!("\"localhost:{port}\", \"127.0.0.1:1\"")).await;
        for other in [address.clone(), format!("[::1]:{port}"), format!("x.localhost:{port}"), "localhost".to_owned()] {
            let answer = cage.client("web").get(&format!("/http/{other}/")).await;
            assert!(answer.status == 502 && answer.text().contains("HttpRequestDenied"), "{guest}: {}", answer.text());
        }
        assert_eq!(cage.client("web").get(&format!("/http/LOCALHOST:{port}/")).await.status, 200, "{guest}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), FETCHING.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_without_any_grant_loads_and_each_of_its_requests_is_denied() {
    let (address, connections) = telling().await;
    for guest in FETCHING {
        let cage = TestCage::new().module(guest, "interface_web").http("web").start().await;
        let answer = cage.client("web").get(&format!("/http/{address}/")).await;
        assert!(answer.status == 502 && answer.text().contains("HttpRequestDenied"), "{guest}: {}", answer.text());
        cage.logged(&format!("outgoing request denied: {address} is not in allow.http of cage.toml")).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wasi_http_is_told_what_went_wrong() {
    let (plain, _) = telling().await;
    let refused = nobody().await;
    let silent = saying("", false).await;
    let gone = saying("", true).await;
    let half = saying("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", true).await;
    let stuck = saying("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", false).await;
    let other = saying("SSH-2.0-OpenSSH\r\n\r\n", true).await;
    let cases = [
        (format!("/http/{refused}/"), "ConnectionRefused"),
        ("/http/no-such-host.invalid/".to_owned(), "DnsError"),
        (format!("/https/{plain}/"), "TlsProtocolError"),
        (format!("/http/{silent}/?first_byte_ms=50"), "HttpResponseTimeout"),
        (format!("/https/{silent}/?connect_ms=50"), "ConnectionTimeout"),
        (format!("/http/{gone}/"), "HttpResponseIncomplete"),
        (format!("/http/{other}/"), "HttpProtocolError"),
    ];
    // For a body that breaks off, wasmtime tells components of 0.2 a text, and no code.
    let broken = [
        (format!("/http/{half}/"), ["incomplete HTTP response", "HttpResponseIncomplete"]),
        (format!("/http/{stuck}/?between_bytes_ms=50"), ["connection read timeout", "ConnectionReadTimeout"]),
    ];
    for (index, guest) in FETCHING.into_iter().enumerate() {
        let cage = fetching(guest, "\"*\"").await;
        let broken = broken.iter().map(|(target, codes)| (target, &codes[index]));
        for (target, code) in cases.iter().map(|(target, code)| (target, code)).chain(broken) {
            let answer = cage.client("web").get(target).await;
            assert!(answer.status == 502 && answer.text().contains(code), "{guest} {target}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_waits_for_a_silent_server_ends_at_its_deadline() {
    let silent = saying("", false).await;
    for guest in FETCHING {
        let allow = "[modules.interface_web]\ntimeout_ms = 300\nallow = { http = [\"*\"] }";
        let cage = TestCage::new().module(guest, "interface_web").http("web").config(allow).start().await;
        let answer = cage.client("web").get(&format!("/http/{silent}/")).await;
        assert!([502, 504].contains(&answer.status.as_u16()), "{guest}: {}", answer.text());
        cage.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_does_not_exist_is_not_taken_for_another() {
    let cage = fetching("fetch_p2", "\"*\"").await;
    for port in ["65536", "65616", "4294967376", "0"] {
        let answer = cage.client("web").get(&format!("/http/127.0.0.1:{port}/a")).await;
        let text = answer.text();
        assert!(answer.status == 502 && text.contains("HttpRequestUriInvalid"), "{port}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wasi_http_goes_through_the_proxy_that_the_module_has() {
    for guest in FETCHING {
        let (proxy, _) = telling().await;
        let (direct, _) = telling().await;
        let config = format!(
            "[modules.interface_web]\nallow = {{ http = [\"nowhere.example\", \"{direct}\"] }}\n\
             [modules.interface_web.http]\nproxy = \"http://user:secret@{proxy}\"\nno_proxy = [\"127.0.0.1\"]"
        );
        let cage = TestCage::new().module(guest, "interface_web").http("web").config(&config).start().await;
        let client = cage.client("web");
        // The name has no address; the proxy reads the whole URL.
        let answer = client.get("/http/nowhere.example/a").await;
        assert_eq!(answer.text(), "GET http://nowhere.example/a nowhere.example  0", "{guest}");
        let answer = client.get(&format!("/http/{direct}/a")).await;
        assert_eq!(answer.text(), format!("GET /a {direct}  0"), "{guest}");
        // The grant holds as ever.
        let answer = client.get("/http/elsewhere.example/a").await;
        assert!(answer.text().contains("HttpRequestDenied"), "{guest}: {}", answer.text());
        assert!(!cage.log().contains("secret"));
        // A proxy that makes no tunnel is none for https.
        let proxy = saying("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", false).await;
        let config = format!(
            "[modules.interface_web]\nallow = {{ http = [\"*\"] }}\n\
             [modules.interface_web.http]\nproxy = \"http://{proxy}\""
        );
        let cage = TestCage::new().module(guest, "interface_web").http("web").config(&config).start().await;
        let answer = cage.client("web").get("/https/nowhere.example/a").await;
        assert!(answer.text().contains("DestinationUnavailable"), "{guest}: {}", answer.text());
    }
}
