//! Requests as a pool sends them, to servers that follow the rules and servers that do not.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use wasmcage_config::testing::resource_section;
use wasmcage_web_client::{ClientSettings, Http2, Tls, WebErrorKind};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn client(directory: &Path, keys: &str) -> Result<HttpResource, String> {
    let section = resource_section("http", directory, keys).map_err(|error| error.to_string())?;
    HttpResource::read(section).map_err(|error| error.to_string())
}

fn resource_for(address: &str, keys: &str) -> HttpResource {
    client(Path::new("/"), &format!("url = 'http://{address}/api'\n{keys}")).unwrap()
}

fn operation(action: &str, target: &str) -> Operation {
    Operation { action: action.into(), target: target.into(), ..Operation::default() }
}

async fn send(server: &HttpResource, operation: Operation) -> Result<OperationReply, ResourceError> {
    server.connect(soon()).await?.execute_alone(operation, &[], soon()).await
}

async fn get(server: &HttpResource) -> Result<OperationReply, ResourceError> {
    send(server, operation("GET", "/a")).await
}

#[track_caller]
fn check(result: Result<OperationReply, ResourceError>, code: &str, phase: Phase, recoverable: bool) {
    let error = result.expect_err("it fails");
    assert_eq!((error.code.as_str(), error.phase, error.recoverable), (code, phase, recoverable), "{error}");
}

/// How many connections and requests a server has got.
#[derive(Default)]
struct ServerCounts {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

/// Responds with the request as text; paths beneath `/api/to/` redirect.
async fn describe(request: http::Request<Incoming>) -> http::Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    if let Some(location) = head.uri.path().strip_prefix("/api/to/") {
        let (status, location) = location.split_once('/').unwrap();
        return http::Response::builder()
            .status(status.parse::<u16>().unwrap())
            .header("location", location.replace("~", "/"))
            .body(Full::default())
            .unwrap();
    }
    let mut lines = vec![format!("{} {} {:?}", head.method, head.uri.path_and_query().unwrap(), head.version)];
    lines.extend(head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())));
    lines.push(String::from_utf8(body.to_vec()).unwrap());
    http::Response::new(Full::from(lines.join("\n")))
}

/// A server that follows the rules, over TLS if given.
async fn server(tls: Option<TlsAcceptor>) -> (String, Arc<ServerCounts>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Arc::new(ServerCounts::default());
    let counted = seen.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            counted.connections.fetch_add(1, Ordering::SeqCst);
            let (tls, counted) = (tls.clone(), counted.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    counted.requests.fetch_add(1, Ordering::SeqCst);
                    async { Ok::<_, std::convert::Infallible>(describe(request).await) }
                });
                match tls {
                    None => {
                        let mut first = [0; 2];
                        // A client of HTTP/2 begins with PRI, which is no method.
                        tcp.peek(&mut first).await.unwrap();
                        serve(TokioIo::new(tcp), first == *b"PR", service).await;
                    }
                    // This fails if the client rejects the certificate.
                    Some(tls) => {
                        let Ok(tls) = tls.accept(tcp).await else { return };
                        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                        serve(TokioIo::new(tls), http2, service).await;
                    }
                }
            });
        }
    });
    (address, seen)
}

async fn serve<I, S>(io: I, http2: bool, service: S)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: HttpService<Incoming, ResBody = Full<Bytes>, Error = std::convert::Infallible>,
    S::Future: Send + 'static,
{
    // An error here is the client's.
    match http2 {
        true => {
            drop(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await)
        }
        false => drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await),
    }
}

/// A server that reads one request's head from each connection, responds with the next of these texts, and then closes
/// the connection or stays silent.
async fn scripted_server(answers: Vec<&'static str>, then_closes: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut answers = answers.into_iter();
        let mut open = Vec::new();
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            take_head(&mut tcp).await;
            tcp.write_all(answers.next().unwrap_or_default().as_bytes()).await.unwrap();
            if !then_closes {
                open.push(tcp);
            }
        }
    });
    address
}

async fn take_head(tcp: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.unwrap());
    }
}

fn body(reply: &OperationReply) -> &str {
    std::str::from_utf8(&reply.body).unwrap()
}

#[tokio::test]
async fn one_connection_serves_one_request_after_the_other() {
    let (address, seen) = server(None).await;
    let server = resource_for(&address, "");
    for _ in 0..20 {
        assert_eq!(get(&server).await.unwrap().status, 200);
    }
    assert_eq!((seen.connections.load(Ordering::SeqCst), seen.requests.load(Ordering::SeqCst)), (1, 20));
}

#[tokio::test]
async fn a_request_has_what_the_module_and_the_resource_give() {
    let (address, _) = server(None).await;
    let server = resource_for(&address, "headers = { authorization = 'Bearer x' }");
    let mut post = operation("POST", "/a?b=c%20d");
    post.headers = vec![("x-a".into(), "1".into()), ("X-A".into(), "2".into()), ("user-agent".into(), "mine".into())];
    post.body = "hello".into();
    let reply = send(&server, post).await.unwrap();
    let text = body(&reply);
    assert!(text.starts_with("POST /api/a?b=c%20d HTTP/1.1\n"), "{text}");
    for line in ["authorization: Bearer x", "x-a: 1", "x-a: 2", "user-agent: mine", "content-length: 5"] {
        assert!(text.lines().any(|known| known == line), "{line} in {text}");
    }
    assert!(text.contains(&format!("host: {address}")) && text.ends_with("\nhello"), "{text}");
}

#[tokio::test]
async fn a_module_cannot_leave_the_server_or_its_path() {
    let server = resource_for("127.0.0.1:1", "headers = { authorization = 'Bearer x' }");
    for target in ["http://other/", "//other/", "a", "/../b", "/%2e%2E/b", "/a/..%2fb", "/a/.", "/\u{1}", "/ b"] {
        // Two slashes at the beginning are an ordinary path, since the host's name comes before it.
        let refused = server.check(&operation("GET", target));
        assert_eq!(refused.is_err(), target != "//other/", "{target}");
    }
    for (name, value) in [("host", "x"), ("content-length", "1"), ("authorization", "y"), ("a b", ""), ("a", "\n")] {
        let mut get = operation("GET", "/");
        get.headers.push((name.into(), value.into()));
        assert_eq!(server.check(&get).unwrap_err().code, ResourceError::BAD_OPERATION, "{name}");
    }
    assert!(server.check(&operation("CONNECT", "/")).is_err());
    assert!(server.check(&operation("G T", "/")).is_err());
    assert!(server.check(&operation("PROPFIND", "?a=../b")).is_ok());
}

#[tokio::test]
async fn redirections_are_followed_as_far_as_allowed() {
    let (address, seen) = server(None).await;
    let server = resource_for(&address, "redirects = 2");
    let mut post = operation("POST", "/to/302/~api~b");
    post.body = "hello".into();
    let reply = send(&server, post.clone()).await.unwrap();
    assert!(body(&reply).starts_with("GET /api/b HTTP") && reply.status == 200);
    post.target = "/to/307/~api~b".into();
    assert!(body(&send(&server, post.clone()).await.unwrap()).starts_with("POST /api/b"));
    // A redirection out of the resource's path or to another server is returned to the module.
    let absolute = format!("/to/302/http:~~{address}~api~c");
    assert_eq!(send(&server, operation("GET", &absolute)).await.unwrap().status, 200);
    for elsewhere in [
        "/to/302/~other",
        "/to/302/http:~~127.0.0.1:1~api~",
        "/to/302/~~127.0.0.1:1~api",
        "/to/302/~apix",
        "/to/302/~api~..~b",
    ] {
        let reply = send(&server, operation("GET", elsewhere)).await.unwrap();
        assert_eq!(reply.status, 302, "{elsewhere}");
        assert!(reply.headers.iter().any(|(name, _)| name == "location"));
    }
    // Without `redirects` none is followed.
    let before = seen.requests.load(Ordering::SeqCst);
    assert_eq!(send(&resource_for(&address, ""), operation("GET", "/to/302/~api~b")).await.unwrap().status, 302);
    assert_eq!(seen.requests.load(Ordering::SeqCst), before + 1);
}

#[tokio::test]
async fn a_request_that_was_not_sent_may_be_retried() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    check(get(&resource_for(&port.to_string(), "")).await, "connect", Phase::Connect, true);
    check(get(&resource_for("no-such-host.invalid", "")).await, "dns", Phase::Connect, true);
}

#[tokio::test]
async fn a_request_that_was_sent_may_not() {
    let check = async |answer: &'static str, closes, code: &str| {
        let address = scripted_server(vec![answer], closes).await;
        let server =
            resource_for(&address, "timeout_ms = 300\nmax_response_bytes = 10\nmax_response_header_bytes = 8192");
        check(get(&server).await, code, Phase::Execute, false);
    };
    check("", true, "disconnected").await;
    check("HTTP/1.1 200 OK\r\ncontent-le", true, "disconnected").await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", true, "disconnected").await;
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc", true, "disconnected").await;
    check("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nabc", true, "bad-response").await;
    check("SSH-2.0-OpenSSH\r\n\r\n", true, "bad-response").await;
    check("", false, "timed-out").await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", false, "timed-out").await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n", false, "too-large").await;
    check("HTTP/1.1 200 OK\r\n\r\n0123456789a", true, "too-large").await;
    let long: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(9000)).into_boxed_str());
    check(long, true, "too-large").await;
}

/// A server that closes a kept connection when the next request has been sent on it.
async fn closing_server(seen: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                take_head(&mut tcp).await;
                tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                take_head(&mut tcp).await;
                seen.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    address
}

#[tokio::test]
async fn a_kept_connection_that_closes_costs_a_safe_request_nothing() {
    let closed = Arc::new(AtomicUsize::new(0));
    let server = resource_for(&closing_server(closed.clone()).await, "");
    get(&server).await.unwrap();
    get(&server).await.unwrap();
    assert_eq!(closed.load(Ordering::SeqCst), 1);
    // The request may have had an effect, and only the module knows whether it may be repeated.
    check(send(&server, operation("POST", "/a")).await, "disconnected", Phase::Execute, false);
    assert_eq!(closed.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_long_response_comes_in_parts() {
    let (address, _) = server(None).await;
    let server = resource_for(&address, "max_response_bytes = 10");
    check(get(&server).await, "too-large", Phase::Execute, false);
    let connection = server.connect(soon()).await.unwrap();
    let (reply, mut stream) = connection.open(operation("GET", "/a"), &[], soon()).await.unwrap();
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    let part = stream.next().await.unwrap().unwrap();
    assert!(part.starts_with(b"GET /api/a"));
    assert_eq!(stream.next().await.unwrap(), None);
}

#[tokio::test]
async fn http2_is_used_where_the_server_is_known_to_support_it() {
    let (address, seen) = server(None).await;
    assert!(body(&get(&resource_for(&address, "")).await.unwrap()).contains(" HTTP/1.1\n"));
    let server = resource_for(&address, "http2 = 'only'");
    assert!(body(&get(&server).await.unwrap()).contains(" HTTP/2.0\n"));
    let before = seen.connections.load(Ordering::SeqCst);
    let all = futures_util::future::join_all((0..20).map(|_| get(&server))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(seen.connections.load(Ordering::SeqCst), before, "they share one connection");
}

/// A certificate authority, with its certificate in `ca.pem` of a directory.
struct TestAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl TestAuthority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    /// TLS of a server `localhost`, whose certificate is valid for so many days from yesterday.
    fn acceptor(&self, days: i64, alpn: &[&[u8]]) -> TlsAcceptor {
        self.acceptor_of(days, alpn, None)
    }

    /// The same; if `clients` is given, it accepts only clients with its certificates.
    fn acceptor_of(&self, days: i64, alpn: &[&[u8]], clients: Option<&Self>) -> TlsAcceptor {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let day = 24 * 3600;
        let yesterday = std::time::SystemTime::now() - Duration::from_secs(day);
        params.not_before = yesterday.into();
        params.not_after = params.not_before + Duration::from_secs(days as u64 * day);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = clients.map_or_else(WebPkiClientVerifier::no_client_auth, |clients| {
            let mut roots = RootCertStore::empty();
            roots.add(clients.issuer.der().clone()).unwrap();
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap()
        });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// Writes the files `me.pem` and `me.key` for a client.
    fn identify(&self, directory: &Path) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["me".to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        std::fs::write(directory.join("me.pem"), certificate.pem()).unwrap();
        std::fs::write(directory.join("me.key"), key.serialize_pem()).unwrap();
    }

    fn client(&self, address: &str, keys: &str) -> HttpResource {
        let port = address.rsplit(':').next().unwrap();
        client(self.directory.path(), &format!("url = 'https://localhost:{port}/api'\n{keys}")).unwrap()
    }
}

/// A proxy that opens every tunnel it is asked for, and counts them.
async fn tunnels() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut wish = Vec::new();
            while !wish.ends_with(b"\r\n\r\n") {
                wish.push(tcp.read_u8().await.unwrap());
            }
            let wish = String::from_utf8(wish).unwrap();
            let target = wish.strip_prefix("CONNECT ").and_then(|wish| wish.split(' ').next()).unwrap().to_owned();
            let mut server = TcpStream::connect(target).await.unwrap();
            tcp.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                // The tunnel is over in any case.
                let _ = tokio::io::copy_bidirectional(&mut tcp, &mut server).await;
            });
        }
    });
    (address, made)
}

#[tokio::test]
async fn a_private_authority_counts_beside_the_public_ones_and_through_a_tunnel() {
    let authority = TestAuthority::new();
    let (address, _) = server(Some(authority.acceptor(30, &[b"h2", b"http/1.1"]))).await;
    let port = address.rsplit(':').next().unwrap();
    let (proxy, made) = tunnels().await;
    let asked = async |authorities: &[CertificateDer<'static>], proxy: Option<&str>| {
        let client = Client::new(&ClientSettings {
            tls: Tls::beside_public(authorities),
            proxy: proxy.map(|proxy| format!("http://{proxy}").parse().unwrap()),
            http2: Http2::Auto,
            connect_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(20),
            response_header_bytes_max: 64 << 10,
            connections_max: 10,
        });
        let (head, ()) = http::Request::get(format!("https://localhost:{port}/api")).body(()).unwrap().into_parts();
        let times = Timeouts { connect: None, first_byte: None, between_bytes: None, deadline: soon() };
        client.send(head, RequestBody::Whole(Bytes::new()), times).await.map(|response| response.status().as_u16())
    };
    let der = authority.issuer.der().clone();
    assert_eq!(asked(std::slice::from_ref(&der), None).await, Ok(200));
    assert_eq!(asked(&[], None).await.unwrap_err().kind, WebErrorKind::Certificate);
    assert_eq!(made.load(Ordering::SeqCst), 0);
    assert_eq!(asked(&[der], Some(&proxy)).await, Ok(200));
    assert_eq!(made.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_port_that_does_not_exist_is_a_mistake() {
    let directory = TempDir::new().unwrap();
    for port in ["0", "65536"] {
        let error = client(directory.path(), &format!("url = 'http://localhost:{port}/'")).err().unwrap();
        assert!(error.contains("1 to 65535"), "{error}");
    }
}

#[tokio::test]
async fn only_configured_authorities_are_trusted() {
    let authority = TestAuthority::new();
    let (address, _) = server(Some(authority.acceptor(30, &[b"h2", b"http/1.1"]))).await;
    let ca = "tls = { ca = 'ca.pem' }";
    assert!(body(&get(&authority.client(&address, ca)).await.unwrap()).contains(" HTTP/2.0\n"));
    let old = format!("http2 = 'never'\n{ca}");
    assert!(body(&get(&authority.client(&address, &old)).await.unwrap()).contains(" HTTP/1.1\n"));
    // No public authority has signed it; it has another name; another authority has signed it.
    check(get(&authority.client(&address, "")).await, "tls", Phase::Connect, true);
    let named = "tls = { ca = 'ca.pem', server_name = 'other.example' }";
    check(get(&authority.client(&address, named)).await, "tls", Phase::Connect, true);
    check(get(&TestAuthority::new().client(&address, ca)).await, "tls", Phase::Connect, true);
}

#[tokio::test]
async fn a_server_may_ask_for_a_certificate() {
    let (authority, clients) = (TestAuthority::new(), TestAuthority::new());
    let (address, seen) = server(Some(authority.acceptor_of(30, &[], Some(&clients)))).await;
    let with = "tls = { ca = 'ca.pem', certificate = 'me.pem', key = 'me.key' }";
    clients.identify(authority.directory.path());
    assert!(body(&get(&authority.client(&address, with)).await.unwrap()).contains("GET /api/a"));
    assert_eq!(seen.requests.load(Ordering::SeqCst), 1);
    // Without a certificate, or with one of another authority, there is no response.
    let without = get(&authority.client(&address, "tls = { ca = 'ca.pem' }")).await.unwrap_err();
    authority.identify(authority.directory.path());
    let unknown = get(&authority.client(&address, with)).await.unwrap_err();
    for error in [without, unknown] {
        // The server sends an alert and closes the connection; either may be noticed first.
        assert!(["tls", "disconnected"].contains(&&*error.code), "{error}");
    }
    assert_eq!(seen.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let authority = TestAuthority::new();
    // It was valid from yesterday, for no day at all.
    let (address, _) = server(Some(authority.acceptor(0, &[]))).await;
    let error = get(&authority.client(&address, "tls = { ca = 'ca.pem' }")).await.unwrap_err();
    assert!(error.code == "tls" && error.text.contains("expired"), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_differs_from_one_that_is_slow() {
    let authority = TestAuthority::new();
    let (address, _) = server(None).await;
    check(get(&authority.client(&address, "")).await, "tls", Phase::Connect, true);
    // It accepts the connection and stays silent.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = get(&authority.client(&address, "connect_timeout_ms = 100")).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.recoverable), ("timed-out", true));
    assert!(error.text.contains("TLS handshake"), "{error}");
}

#[test]
fn mistakes_are_reported_together() {
    let refused = |keys: &str, texts: &[&str]| {
        let error = client(Path::new("/nowhere"), keys).err().expect("it is refused");
        texts.iter().for_each(|text| assert!(error.contains(text), "{error}"));
    };
    refused("", &["url: required"]);
    refused("url = 'ftp://a'", &["scheme ftp:// is none of http://, https://"]);
    refused("url = 'https://me:secret@a/'", &["authorization"]);
    refused("url = 'https://a/?b'", &["query"]);
    refused("url = '/a'\ntime_out_ms = 1", &["expected a URL", "did you mean `timeout_ms`"]);
    refused("url = 'http://a'\nheaders = { host = 'b', 'c d' = '' }", &["host is set", "no name of a header"]);
    refused("url = 'http://a'\ntls = { ca = 'ca.pem', key = 'k' }", &["tls.ca", "certificate and key go together"]);
}
