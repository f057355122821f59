//! Who a server is and who this side is, by certificates; the version of HTTP that they agree on; what is no TLS.

use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use super::*;

/// The number of TLS's alert `no_application_protocol`.
const NO_APPLICATION_PROTOCOL: u8 = 120;
/// The number of TLS's alert `certificate_required`.
const CERTIFICATE_REQUIRED: u8 = 116;

/// A certificate authority, whose files and those of whom it vouches for are in a directory.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    directory: TempDir,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        let certificate = CertificateDer::from(certificate.der().to_vec());
        Self { issuer: Issuer::new(params, key), certificate, directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a certificate for a host and its key; returns the files.
    fn issue(&self, host: &str) -> (PathBuf, PathBuf) {
        let (certificate_file, key_file) = (self.file(&format!("{host}.pem")), self.file(&format!("{host}.key")));
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        fs::write(&certificate_file, certificate.pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        (certificate_file, key_file)
    }

    /// A client that trusts this authority alone.
    fn trusted(&self) -> ClientSettings {
        ClientSettings { tls: Tls::from_files(Some(&self.file("ca.pem")), None, None).unwrap(), ..settings() }
    }

    /// A server for `https://127.0.0.1:port/` with a certificate for `host`, which speaks these protocols, and takes only
    /// clients that this authority vouches for if `clients` says so.
    async fn server(&self, host: &str, protocols: &[&str], clients: bool) -> String {
        let (certificate, key) = self.issue(host);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            false => builder.with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                roots.add(self.certificate.clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.unwrap())
            }
        };
        let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
        let mut config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        server(move |_, stream| {
            let acceptor = acceptor.clone();
            // A client that turns away is what some tests are about.
            async move { drop(serve(acceptor, stream).await) }
        })
        .await
    }
}

/// Answers requests over TLS with the version of HTTP that they came by. The answer to `/long` has a header of 20,000 bytes.
async fn serve(acceptor: TlsAcceptor, stream: TcpStream) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = acceptor.accept(stream).await?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(async |request: Request<Incoming>| {
        assert!(!request.headers().contains_key(PROXY_AUTHORIZATION), "this is no proxy");
        let mut response = Response::new(Full::<Bytes>::from(format!("{:?}", request.version())));
        if request.uri().path() == "/long" {
            response.headers_mut().insert("x-long", "x".repeat(20_000).try_into().unwrap());
        }
        Ok::<_, Infallible>(response)
    });
    let io = TokioIo::new(stream);
    match is_http2 {
        true => hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await?,
        false => hyper::server::conn::http1::Builder::new().serve_connection(io, service).await?,
    }
    Ok(())
}

async fn tls_error(settings: &ClientSettings, address: &str) -> WebError {
    get(&Client::new(settings), &format!("https://{address}/"), times()).await.err().expect("no answer")
}

#[tokio::test]
async fn a_server_is_known_by_an_authority_that_is_trusted() {
    let (authority, other) = (Authority::new(), Authority::new());
    let address = authority.server("127.0.0.1", &[], false).await;
    let url = format!("https://{address}/");
    assert_eq!(answer(&Client::new(&authority.trusted()), &url).await, (200, "HTTP/1.1".into()));
    let tls = Tls::beside_public(std::slice::from_ref(&authority.certificate));
    assert_eq!(answer(&Client::new(&ClientSettings { tls, ..settings() }), &url).await.0, 200);
    for settings in [settings(), other.trusted()] {
        let error = tls_error(&settings, &address).await;
        assert_eq!((error.kind, error.sent), (WebErrorKind::Certificate, false), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_must_name_the_urls_host_or_the_name_that_is_set() {
    let authority = Authority::new();
    let address = authority.server("server.example", &[], false).await;
    let error = tls_error(&authority.trusted(), &address).await;
    assert_eq!((error.kind, error.sent), (WebErrorKind::Certificate, false), "{error}");
    let name = Some(ServerName::try_from("server.example").unwrap());
    let tls = Tls::from_files(Some(&authority.file("ca.pem")), None, name).unwrap();
    let client = Client::new(&ClientSettings { tls, ..settings() });
    assert_eq!(answer(&client, &format!("https://{address}/")).await.0, 200);
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_gets_the_one_that_is_set() {
    let (authority, other) = (Authority::new(), Authority::new());
    let address = authority.server("127.0.0.1", &[], true).await;
    let error = tls_error(&authority.trusted(), &address).await;
    assert_eq!(error.kind, WebErrorKind::Alert(CERTIFICATE_REQUIRED), "{error}");
    let identified = |by: &Authority| {
        let (certificate, key) = by.issue("client.example");
        let identity = Some((certificate.as_path(), key.as_path()));
        ClientSettings { tls: Tls::from_files(Some(&authority.file("ca.pem")), identity, None).unwrap(), ..settings() }
    };
    assert_eq!(answer(&Client::new(&identified(&authority)), &format!("https://{address}/")).await.0, 200);
    let error = tls_error(&identified(&other), &address).await;
    assert!(matches!(error.kind, WebErrorKind::Alert(_)), "{error:?}");
}

#[tokio::test]
async fn both_sides_agree_on_a_version_of_http() {
    let authority = Authority::new();
    let (both, first) = (&["h2", "http/1.1"][..], &["http/1.1"][..]);
    for (http2, protocols, version) in [
        (Http2::Auto, both, "HTTP/2.0"),
        (Http2::Only, both, "HTTP/2.0"),
        (Http2::Never, both, "HTTP/1.1"),
        (Http2::Auto, first, "HTTP/1.1"),
        (Http2::Auto, &[], "HTTP/1.1"),
    ] {
        let address = authority.server("127.0.0.1", protocols, false).await;
        let client = Client::new(&ClientSettings { http2, ..authority.trusted() });
        let answer = answer(&client, &format!("https://{address}/")).await;
        assert_eq!(answer, (200, version.into()), "{http2:?} with {protocols:?}");
    }
    for (http2, protocols) in [(Http2::Only, first), (Http2::Never, &["h2"][..])] {
        let address = authority.server("127.0.0.1", protocols, false).await;
        let error = tls_error(&ClientSettings { http2, ..authority.trusted() }, &address).await;
        assert_eq!((error.kind, error.sent), (WebErrorKind::Alert(NO_APPLICATION_PROTOCOL), false), "{error}");
    }
}

#[tokio::test]
async fn requests_share_a_connection_of_http2() {
    let authority = Authority::new();
    let address = authority.server("127.0.0.1", &["h2"], false).await;
    let settings = ClientSettings { http2: Http2::Only, connections_max: 1, ..authority.trusted() };
    let (client, url) = (Client::new(&settings), format!("https://{address}/"));
    for _ in 0..5 {
        assert_eq!(answer(&client, &url).await.0, 200);
    }
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_refused_by_both_versions_of_http() {
    let authority = Authority::new();
    for (protocol, kind) in [("http/1.1", WebErrorKind::HeadTooLarge), ("h2", WebErrorKind::Protocol)] {
        let url = format!("https://{}/long", authority.server("127.0.0.1", &[protocol], false).await);
        let limited = |response_header_bytes_max| {
            let settings = ClientSettings { response_header_bytes_max, http2: Http2::Auto, ..authority.trusted() };
            Client::new(&settings)
        };
        let error = get(&limited(10_000), &url, times()).await.err().expect("too long a head");
        assert_eq!((error.kind, error.sent), (kind, true), "{protocol}: {error}");
        assert_eq!(answer(&limited(30_000), &url).await.0, 200, "{protocol}");
    }
}

#[tokio::test]
async fn what_is_no_tls_is_told_as_such() {
    // It does not wait for the end of a head: there is none in what TLS says.
    for answer in ["HTTP/1.1 400 Bad Request\r\n\r\n", ""] {
        let address = server(move |_, mut stream| async move {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        })
        .await;
        let error = tls_error(&settings(), &address).await;
        assert_eq!((error.kind, error.sent), (WebErrorKind::Tls, false), "{answer:?}: {error}");
    }
}

#[tokio::test]
async fn a_handshake_that_never_ends_costs_no_more_than_the_time_for_a_connection() {
    let address = silent_server("").await;
    let error = tls_error(&ClientSettings { connect_timeout: SHORT, ..settings() }, &address).await;
    assert_eq!((error.kind, error.sent), (WebErrorKind::ConnectTimedOut, false), "{error}");
    assert!(error.text.contains("the TLS handshake took longer than 50 ms"), "{error}");
    // The request's own time for it, or its deadline.
    for times in
        [Timeouts { connect: Some(SHORT), ..times() }, Timeouts { deadline: Deadline::after(SHORT), ..times() }]
    {
        let error = get(&Client::new(&settings()), &format!("https://{address}/"), times).await.err().unwrap();
        assert_eq!((error.kind, error.sent), (WebErrorKind::ConnectTimedOut, false), "{error}");
    }
}

#[tokio::test]
async fn tls_goes_through_the_tunnel_of_a_proxy() {
    let authority = Authority::new();
    let address = authority.server("server.example", &[], false).await;
    // It leads every tunnel to that server.
    let proxy = server(move |_, mut stream| {
        let address = address.clone();
        async move {
            let head = read_head(&mut stream).await.unwrap();
            assert!(head.starts_with("CONNECT server.example:443 HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("\r\nproxy-authorization: Basic "), "{head}");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut server = TcpStream::connect(address).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
        }
    })
    .await;
    let proxy = Some(format!("http://user:secret@{proxy}").parse().unwrap());
    let client = Client::new(&ClientSettings { proxy, ..authority.trusted() });
    assert_eq!(answer(&client, "https://server.example/").await, (200, "HTTP/1.1".into()));
}

#[test]
fn files_that_hold_no_certificate_or_no_key_of_it_are_refused() {
    let authority = Authority::new();
    let write = |name: &str, text: &str| {
        fs::write(authority.file(name), text).unwrap();
        authority.file(name)
    };
    let (ca, missing) = (authority.file("ca.pem"), authority.file("missing.pem"));
    let (empty, garbage) = (write("empty.pem", ""), write("garbage.pem", "-----BEGIN CERTIFICATE-----\n!\n"));
    let no_certificate = write("no.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let (certificate, key) = authority.issue("client.example");
    let (_, other_key) = authority.issue("other.example");
    for file in [&missing, &empty, &garbage] {
        let error = Tls::from_files(Some(file), None, None).unwrap_err();
        assert_eq!(error.file(), file, "{error}");
        for identity in [(file, &key), (&certificate, file)] {
            let identity = Some((identity.0.as_path(), identity.1.as_path()));
            let error = Tls::from_files(Some(&ca), identity, None).unwrap_err();
            assert_eq!(error.file(), file, "{error}");
        }
    }
    let error = Tls::from_files(Some(&no_certificate), None, None).unwrap_err();
    assert!(matches!(&error, TlsFileError::Authority { file, .. } if *file == no_certificate), "{error}");
    let error = Tls::from_files(Some(&ca), Some((&certificate, &other_key)), None).unwrap_err();
    assert!(matches!(&error, TlsFileError::Identity { file, .. } if *file == certificate), "{error}");
    Tls::from_files(Some(&ca), Some((&certificate, &key)), None).unwrap();
    Tls::from_files(None, Some((&certificate, &key)), None).unwrap();
}
