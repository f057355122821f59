//! TLS: both versions of HTTP, certificates of clients, and new files while serving.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::config::HttpConfig;
use super::super::tls::{ClientAuth, TlsFiles};
use super::fake::{RawClient, TEST_TIMEOUT, TestServer, config};
use wasmcage_protocol::{InterfaceError, RouteKind};

/// A certificate authority, and a directory with the files of a server.
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
        let authority = Self { issuer, directory };
        authority.renew("localhost");
        authority
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A certificate and its key as PEM.
    fn issue(&self, dns: &[&str], common_name: &str) -> (String, String) {
        let names: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Gives the server a certificate for `localhost` and another name.
    fn renew(&self, name: &str) {
        let (certificate, key) = self.issue(&["localhost", name], "server");
        std::fs::write(self.path().join("key.pem"), key).unwrap();
        std::fs::write(self.path().join("cert.pem"), certificate).unwrap();
    }

    fn config(&self, client_auth: ClientAuth) -> HttpConfig {
        let files = TlsFiles {
            certificate: self.path().join("cert.pem"),
            key: self.path().join("key.pem"),
            client_auth,
            handshake_timeout: TEST_TIMEOUT,
            reload_interval: Duration::from_millis(10),
        };
        HttpConfig { tls: Some(files), ..config() }
    }

    fn client(&self, identity: Option<(String, String)>, alpn: &[&[u8]]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

async fn connect(
    server: &TestServer,
    client: &TlsConnector,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.address).await?;
    client.connect(ServerName::try_from(name).unwrap(), stream).await
}

/// The facts that a module gets of a client; none if the client is not let in.
async fn facts(server: &TestServer, client: &TlsConnector) -> Option<String> {
    let mut client = RawClient::new(connect(server, client, "localhost").await.ok()?);
    client.send("GET /facts HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let answer = client.rest().await;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

#[tokio::test]
async fn both_versions_are_negotiated() {
    let authority = TestAuthority::new();
    let server = TestServer::start(authority.config(ClientAuth::None), RouteKind::Whole).await;
    let plain = authority.client(None, &[]);
    assert_eq!(facts(&server, &plain).await.as_deref(), Some("peer-address=127.0.0.1;encrypted=true"));
    let stream = connect(&server, &authority.client(None, &[b"h2", b"http/1.1"]), "localhost").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::builder().uri("https://localhost/a").body(()).unwrap();
    let (response, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    // A client without TLS is disconnected, and others are still served.
    server.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(facts(&server, &plain).await.is_some());
}

#[tokio::test]
async fn a_tunnel_may_begin_within_tls_and_is_reset_when_it_is_cut() {
    let authority = TestAuthority::new();
    let config = HttpConfig { allowed_methods: vec![http::Method::CONNECT], ..authority.config(ClientAuth::None) };
    let server = TestServer::start(config, RouteKind::Streamed).await;
    let opened = async || {
        let mut client = RawClient::new(connect(&server, &authority.client(None, &[]), "localhost").await.unwrap());
        client.send("CONNECT echo:1 HTTP/1.1\r\nhost: echo:1\r\n\r\nahead").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(client.take(5).await, "ahead");
        client
    };
    let mut client = opened().await;
    client.send("on").await;
    assert_eq!(client.take(2).await, "on");
    client.end().await;
    // The end comes with TLS's close_notify.
    assert_eq!(client.stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    let mut client = opened().await;
    server.drain.force();
    let cut = client.stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn clients_are_known_by_their_certificates() {
    let authority = TestAuthority::new();
    let ca = || authority.path().join("ca.pem");
    let known = authority.client(Some(authority.issue(&["worker.example"], "somebody")), &[]);
    let unnamed = authority.client(Some(authority.issue(&[], "somebody")), &[]);
    let anonymous = authority.client(None, &[]);
    let stranger = TestAuthority::new();
    let foreign = authority.client(Some(stranger.issue(&["worker.example"], "somebody")), &[]);
    let name = |name: &str| Some(format!("peer-address=127.0.0.1;encrypted=true;peer-name={name}"));

    let required = TestServer::start(authority.config(ClientAuth::Required(ca())), RouteKind::Whole).await;
    assert_eq!(facts(&required, &known).await, name("worker.example"));
    assert_eq!(facts(&required, &unnamed).await, name("somebody"));
    assert_eq!(facts(&required, &anonymous).await, None);
    assert_eq!(facts(&required, &foreign).await, None);

    let optional = TestServer::start(authority.config(ClientAuth::Optional(ca())), RouteKind::Whole).await;
    assert_eq!(facts(&optional, &known).await, name("worker.example"));
    assert_eq!(facts(&optional, &anonymous).await.as_deref(), Some("peer-address=127.0.0.1;encrypted=true"));
    assert_eq!(facts(&optional, &foreign).await, None);
}

#[tokio::test]
async fn new_files_are_loaded_and_unusable_ones_are_not() {
    let authority = TestAuthority::new();
    let server = TestServer::start(authority.config(ClientAuth::None), RouteKind::Whole).await;
    let client = authority.client(None, &[]);
    assert!(connect(&server, &client, "renewed.example").await.is_err());
    std::fs::write(authority.path().join("cert.pem"), "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(connect(&server, &client, "localhost").await.is_ok());
    std::fs::remove_file(authority.path().join("cert.pem")).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(connect(&server, &client, "localhost").await.is_ok());
    authority.renew("renewed.example");
    let renewed = async { while connect(&server, &client, "renewed.example").await.is_err() {} };
    tokio::time::timeout(TEST_TIMEOUT, renewed).await.unwrap();
}

#[tokio::test]
async fn a_slow_handshake_delays_nobody_else() {
    let authority = TestAuthority::new();
    let mut config = authority.config(ClientAuth::None);
    if let Some(files) = &mut config.tls {
        files.handshake_timeout = Duration::from_millis(50);
    }
    let server = TestServer::start(config, RouteKind::Whole).await;
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    slow.send([0x16, 0x03, 0x01]).await;
    assert!(facts(&server, &authority.client(None, &[])).await.is_some());
    assert_eq!(silent.rest().await, "");
    assert_eq!(slow.rest().await, "");
}

#[tokio::test]
async fn unusable_files_are_reported_at_start() {
    let authority = TestAuthority::new();
    std::fs::write(authority.path().join("key.pem"), authority.issue(&[], "other").1).unwrap();
    let Err(InterfaceError::Setup { source: Some(source), .. }) =
        TestServer::try_start(authority.config(ClientAuth::None), None).await
    else {
        panic!("the key is not the certificate's");
    };
    assert!(source.to_string().contains("cert.pem"), "{source}");
}
