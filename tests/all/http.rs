//! HTTP as modules and clients see it: what of a request arrives, what of an answer goes out, and what a client is told
//! when there is no answer. The wire itself is tested in the host, beside its code.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wasmcage_tests::{Client, RunningCage, StreamedRequest, TestCage, Version, eventually, raw};

async fn started(guest: &str, config: &str) -> RunningCage {
    TestCage::new().module(guest, "interface_web").http("web").config(config).start().await
}

/// Head and body of an answer that was read to the connection's end.
fn parts(answer: &str) -> (&str, &str) {
    answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole head: {answer:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_arrives_as_it_was_sent() {
    let cage = started("echo", "").await;
    let mut request = b"PUT /a%20b/c?x=1&y=%C3%A4&x=2 HTTP/1.1\r\nHost: example.org:81\r\nX-Repeated: one\r\n\
        X-Other: 1\r\nx-repeated: two\r\nX-Latin: gr\xfc\xdfe\r\nX-Utf: gr\xc3\xbc\xc3\x9fe\r\nX-Empty:\r\n\
        Content-Length: 5\r\nConnection: close\r\n\r\nhello"
        .to_vec();
    let answer = raw(&cage.address("web"), &request).await;
    let seen: Value = serde_json::from_str(parts(&answer).1).unwrap();
    assert_eq!(seen["method"], "PUT");
    assert_eq!(seen["target"], "/a%20b/c?x=1&y=%C3%A4&x=2");
    assert_eq!((&seen["interface"], &seen["protocol"]), (&json!("web"), &json!("http")));
    assert_eq!(seen["body"], "hello");
    let headers: Vec<(String, String)> = serde_json::from_value(seen["headers"].clone()).unwrap();
    let values = |name: &str| -> Vec<&str> {
        headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(values("host"), ["example.org:81"]);
    assert_eq!(values("x-repeated"), ["one", "two"]);
    assert_eq!(values("x-latin"), ["grüße"]);
    assert_eq!(values("x-utf"), ["grüße"]);
    assert_eq!(values("x-empty"), [""]);
    assert!(headers.iter().all(|(name, _)| *name == name.to_lowercase()), "{headers:?}");

    // A body of any bytes, in chunks.
    request = b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".to_vec();
    request.extend_from_slice(b"3\r\na\0b\r\n2\r\n\xff\n\r\n0\r\n\r\n");
    let answer = raw(&cage.address("web"), &request).await;
    assert_eq!(parts(&answer).1, String::from_utf8_lossy(b"a\0b\xff\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_served_by_prior_knowledge() {
    let cage = started("echo", "").await;
    let client = Client::http2(&cage.address("web"));
    let seen = client.send(Method::PATCH, "/x?y=1", &[("x-a", "1")], Bytes::from("two")).await.json();
    assert_eq!((&seen["method"], &seen["target"], &seen["body"]), (&json!("PATCH"), &json!("/x?y=1"), &json!("two")));
    assert!(seen["headers"].as_array().unwrap().contains(&json!(["x-a", "1"])), "{seen}");
    assert!(seen["headers"].as_array().unwrap().contains(&json!(["host", client.address()])), "{seen}");
    // Many at once on the one connection.
    let body = Bytes::from(vec![b'x'; 100_000]);
    let answers: Vec<_> = (0..50)
        .map(|_| {
            let (client, body) = (client.clone(), body.clone());
            tokio::spawn(async move { client.post("/body", body).await })
        })
        .collect();
    for answer in answers {
        assert_eq!(answer.await.unwrap().body, body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_has_the_answers_head_only() {
    let cage = started("echo", "").await;
    let answer = raw(&cage.address("web"), b"HEAD /status/418 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let (head, body) = parts(&answer);
    assert!(head.starts_with("HTTP/1.1 418 "), "{head}");
    assert!(head.to_lowercase().contains(&format!("content-length: {}", "status 418".len())), "{head}");
    assert_eq!(body, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modules_status_is_the_answers() {
    let cage = started("echo", "").await;
    let client = cage.client("web");
    for status in [200, 201, 299, 301, 400, 404, 418, 500, 503, 599] {
        let answer = client.get(&format!("/status/{status}")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, format!("status {status}")));
    }
    // These have no body, whatever the module says.
    for status in [204, 304] {
        let answer = client.get(&format!("/status/{status}")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, String::new()));
    }
    // And these are no answers.
    for status in [0, 100, 101, 199, 600, 1000] {
        let answer = client.get(&format!("/status/{status}")).await;
        assert_eq!(answer.status, 502, "{status}");
        assert!(answer.text().starts_with("invalid-reply: "), "{}", answer.text());
    }
    cage.logged("reply not sendable").await;
}

/// An authority, and the files of a server in `directory`.
fn authority(directory: &Path) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(directory.join("ca.pem"), issuer.pem()).unwrap();
    let (certificate, key) = identity(&issuer, &["localhost"], "server");
    std::fs::write(directory.join("cert.pem"), certificate).unwrap();
    std::fs::write(directory.join("key.pem"), key).unwrap();
    issuer
}

/// Certificate and key, PEM.
fn identity(issuer: &CertifiedIssuer<'static, KeyPair>, dns: &[&str], common_name: &str) -> (String, String) {
    let names: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_the_clients_certificate_become_facts() {
    let test = TestCage::new().module("echo", "interface_web").http("web");
    let issuer = authority(&test.directory());
    let files =
        r#"tls = { certificate = "cert.pem", key = "key.pem", client_auth = "optional", client_ca = "ca.pem" }"#;
    let cage = test.config(files).start().await;
    assert!(cage.host().serving()[0].address.starts_with("https://127.0.0.1:"), "{:?}", cage.host().serving());

    let mut roots = RootCertStore::empty();
    roots.add(issuer.der().clone()).unwrap();
    let builder = || {
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
    };
    let (certificate, key) = identity(&issuer, &[], "Alice");
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    for (client, name) in
        [(builder().with_client_auth_cert(chain, key).unwrap(), Some("Alice")), (builder().with_no_client_auth(), None)]
    {
        let socket = TcpStream::connect(cage.address("web")).await.unwrap();
        let server = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(client)).connect(server, socket).await.unwrap();
        stream.write_all(b"GET /context HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let facts = &serde_json::from_str::<Value>(parts(&answer).1).unwrap()["facts"];
        assert_eq!(facts["encrypted"], "true");
        assert_eq!(facts["peer-address"], "127.0.0.1");
        assert_eq!(facts.get("peer-name").and_then(Value::as_str), name);
    }
    // No TLS at all: no answer, and nobody else suffers.
    assert_eq!(raw(&cage.address("web"), b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.find("HTTP/1.1 200"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_and_a_trusted_proxys_word_become_facts() {
    let cage = TestCage::new()
        .module("echo", "interface_web")
        .http("web")
        .http("behind")
        .config("module = \"interface_web\"\ntrusted_proxies = [\"127.0.0.0/8\"]")
        .start()
        .await;
    let headers = [
        ("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-proto", "https"),
    ];
    let ask = async |interface: &str, headers: &[(&str, &str)]| {
        let answer = cage.client(interface).send(Method::GET, "/context", headers, Bytes::new()).await;
        answer.json()["facts"].clone()
    };
    let plain = json!({ "peer-address": "127.0.0.1" });
    assert_eq!(ask("web", &[]).await, plain);
    // Nobody is trusted there: what a client says of itself changes nothing.
    assert_eq!(
        ask("web", &headers).await,
        json!({ "peer-address": "127.0.0.1", "username": "Aladdin", "password": "open sesame" })
    );
    assert_eq!(
        ask("behind", &headers).await,
        json!({
            "peer-address": "198.51.100.7", "encrypted": "true", "username": "Aladdin", "password": "open sesame"
        })
    );
    // One client's facts are not the next one's, though the instance is the same.
    assert_eq!(ask("behind", &[]).await, plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_methods_are_bounded() {
    let cage = started("echo", "max_body_bytes = 1000\nallowed_methods = [\"GET\", \"POST\"]").await;
    let client = cage.client("web");
    assert_eq!(client.post("/body", vec![b'x'; 1000]).await.body.len(), 1000);
    let answer = client.post("/body", vec![b'x'; 1001]).await;
    assert_eq!(answer.status, 413);
    assert!(answer.text().starts_with("body-too-large: "), "{}", answer.text());
    // One that does not say how long it is.
    let mut exchange = StreamedRequest::begin(client.address(), Version::Http1, "/body", &[]).await;
    exchange.send(vec![b'x'; 700]).await;
    exchange.send(vec![b'x'; 700]).await;
    assert_eq!(exchange.status().await, 413);

    let answer = client.send(Method::DELETE, "/", &[], Bytes::new()).await;
    assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "GET, POST"));
    assert!(answer.text().starts_with("method-not-allowed: "), "{}", answer.text());
    // No module worked on any of these.
    assert_eq!(cage.module("interface_web").unwrap().readings.requests, 1);
}

/// The request's name in log lines.
fn short(id: &str) -> &str {
    &id[id.len() - 4..]
}

/// Asks for JSON, checks status and code, and returns the log's lines about this request.
async fn check_error(cage: &RunningCage, target: &str, status: u16, code: &str, text: &str) -> String {
    let client = cage.client("web");
    let answer = client.send(Method::GET, target, &[("accept", "application/json")], Bytes::new()).await;
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/json");
    let body = answer.json();
    assert_eq!((&body["code"], &body["text"]), (&json!(code), &json!(text)));
    let id = body["request_id"].as_str().unwrap();
    assert_eq!(answer.header("x-request-id"), id);
    let tail = format!("# RQ-{} via web ", short(id));
    let log = cage.logged(&tail).await;
    log.lines().filter(|line| line.contains(&tail)).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_status_and_its_line_in_the_log() {
    let cage = started("echo", "").await;
    let text = "the request cannot be understood";
    let lines = check_error(&cage, "/misread?text=secret%20zero", 400, "bad-request", text).await;
    assert!(lines.contains("INF [web] request failed") && lines.contains("bad request: secret zero"), "{lines}");
    assert_eq!(cage.client("web").post("/json", "[1, 2.5]").await.text(), "[1.0,2.5]");
    assert_eq!(cage.client("web").post("/json", "[1, ]").await.status, 400);
    let lines = check_error(&cage, "/refuse?text=secret%20one", 422, "refused", "the request was refused").await;
    assert!(lines.contains("INF [web] request failed") && lines.contains("refused: secret one"), "{lines}");
    let lines = check_error(&cage, "/fail?text=secret%20two", 500, "failed", "the request failed").await;
    assert!(lines.contains("WRN [web] request failed") && lines.contains("failed: secret two"), "{lines}");
    let target = "/call?cage=elsewhere&module=m&function=f";
    let lines = check_error(&cage, target, 500, "failed", "the request failed").await;
    assert!(lines.contains("not permitted") && lines.contains("allow = { cages = [..] }"), "{lines}");

    let cage = started("hostile", "timeout_ms = 300").await;
    for target in ["/unreachable", "/recurse", "/exit?code=3"] {
        let lines = check_error(&cage, target, 500, "trapped", "the request failed").await;
        assert!(lines.contains("ERR [web] request failed"), "{lines}");
    }
    let lines = check_error(&cage, "/panic", 500, "trapped", "the request failed").await;
    // What the guest says of its end, with file and line, and the failure itself: one request.
    assert!(lines.contains("as asked") && lines.contains("src/lib.rs:"), "{lines}");
    let late = "the request was not answered in time";
    for target in ["/loop", "/sleep?ms=60000", "/loop-host"] {
        let lines = check_error(&cage, target, 504, "deadline-exceeded", late).await;
        assert!(lines.contains("WRN [web] request failed"), "{lines}");
    }
    let traps = cage.module("interface_web").unwrap();
    assert_eq!((traps.traps, traps.readings.outcomes["deadline-exceeded"]), (4, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_no_json_gets_text() {
    let cage = started("echo", "").await;
    let client = cage.client("web");
    for accept in ["text/html", "*/*", "image/png", "application/json;q=0.1, text/plain"] {
        let answer = client.send(Method::GET, "/fail?text=inside", &[("accept", accept)], Bytes::new()).await;
        assert_eq!(answer.status, 500);
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        let expected = format!("failed: the request failed\nrequest {}\n", answer.header("x-request-id"));
        assert_eq!(answer.text(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cage_says_so_at_once() {
    let cage = TestCage::new()
        .config("concurrency = 1\nqueue = 1")
        .module("hostile", "interface_web")
        .module("hello", "interface_other")
        .http("web")
        .http("other")
        .start()
        .await;
    let client = cage.client("web");
    let busy = |in_work: usize, waiting: usize| {
        let snapshot = &cage.snapshot().cages[0];
        ((snapshot.in_work, snapshot.waiting) == (in_work, waiting)).then_some(())
    };
    let sleeping = |ms: u64| {
        let client = client.clone();
        tokio::spawn(async move { client.get(&format!("/sleep?ms={ms}")).await })
    };
    let working = sleeping(600);
    eventually("a request in work", || busy(1, 0)).await;
    let waiting = sleeping(1);
    eventually("a waiting request", || busy(1, 1)).await;
    // The limit is the cage's, whichever interface a request comes by.
    let answer = cage.client("other").get("/").await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
    assert!(answer.text().starts_with("overloaded: "), "{}", answer.text());
    assert_eq!(working.await.unwrap().text(), "slept");
    assert_eq!(waiting.await.unwrap().text(), "slept");
    assert_eq!(cage.client("other").get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_compressed_where_that_is_configured() {
    let cage = TestCage::new()
        .module("echo", "interface_web")
        .http("web")
        .config("compress = [\"text/*\"]")
        .http("plain")
        .config("module = \"interface_web\"")
        .start()
        .await;
    let text = Bytes::from("all work and no play ".repeat(500));
    let ask = async |interface: &str, kind: &str, accept: &str| {
        let headers = [("content-type", kind), ("accept-encoding", accept)];
        cage.client(interface).send(Method::POST, "/body", &headers, text.clone()).await
    };
    let answer = ask("web", "text/plain", "gzip").await;
    assert_eq!((answer.header("content-encoding"), &answer.body[..2]), ("gzip", b"\x1f\x8b".as_slice()));
    assert!(answer.body.len() < text.len() / 10 && answer.header("vary").contains("accept-encoding"));
    assert_eq!(ask("web", "text/plain", "br").await.header("content-encoding"), "br");
    for answer in [
        ask("web", "text/plain", "identity").await,
        ask("web", "image/png", "gzip").await,
        ask("plain", "text/plain", "gzip").await,
    ] {
        assert_eq!((answer.headers.get("content-encoding"), &answer.body), (None, &text));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_without_a_module_shows_that_it_is_there() {
    let cage = TestCage::new().http("web").start().await;
    let client = cage.client("web");
    let answer = client.get("/some/page?x=1").await;
    assert_eq!(answer.status, 200);
    let text = answer.text();
    assert!(text.starts_with("wasmcage HTTP server is up and running\nURL: /some/page?x=1\n"), "{text}");
    assert!(text.contains("wasmcage new rust interface_web --cage"), "{text}");
    // It may be work, which nobody has done.
    let answer = client.post("/some/page", "an order").await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
    let request = b"GET /?a&b='c' HTTP/1.1\r\nhost: x\r\naccept: text/html\r\nconnection: close\r\n\r\n";
    let answer = raw(client.address(), request).await;
    assert!(answer.contains("<p>URL: /?a&amp;b=&#39;c&#39;</p>"), "{answer}");
    // The module comes, and nothing else has to happen.
    cage.deploy("interface_web", &std::fs::read(wasmcage_tests::guest("hello")).unwrap());
    cage.swapped("interface_web", None).await;
    assert_eq!(client.get("/").await.text(), "Hello, world !");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_interfaces_share_a_module() {
    let module = "module = \"shared\"";
    let cage =
        TestCage::new().module("echo", "shared").http("one").config(module).http("two").config(module).start().await;
    for interface in ["one", "two"] {
        assert_eq!(cage.client(interface).get("/x").await.json()["interface"], interface);
        let name = cage.client(interface).get("/context").await.json()["module"].clone();
        assert_eq!(name, "shared");
    }
    let requests = |name: &str| {
        let snapshot = cage.snapshot();
        snapshot.cages[0].interfaces.iter().find(|known| known.interface == name).unwrap().readings.requests
    };
    assert_eq!((requests("one"), requests("two")), (2, 2));
    assert_eq!(cage.module("shared").unwrap().readings.requests, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_export_that_serves_can_be_chosen() {
    let module = "module = \"two_handlers\"";
    let cage = TestCage::new()
        .module("two_handlers", "two_handlers")
        .http("auto")
        .config(module)
        .http("standard")
        .config(&format!("{module}\nexport = \"wasi:http\""))
        .http("own")
        .config(&format!("{module}\nexport = \"handler\""))
        .module("hello", "interface_unfit")
        .http("unfit")
        .config("export = \"wasi:http\"")
        .start()
        .await;
    for (interface, export) in [("auto", "wasi:http"), ("standard", "wasi:http"), ("own", "handler")] {
        assert_eq!(cage.client(interface).get("/").await.text(), export, "{interface}");
    }
    let answer = cage.client("unfit").get("/").await;
    assert_eq!(answer.status, 500);
    assert!(answer.text().starts_with("host-error: the server failed"), "{}", answer.text());
    cage.logged("module interface_unfit exports no handler that interface unfit can use").await;
    let log = cage.logged("ERR [unfit] request not routed").await;
    assert!(log.contains(&format!("# RQ-{}", short(answer.header("x-request-id")))), "{log}");
}
