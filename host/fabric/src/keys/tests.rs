//! Tests of handshakes over in-memory streams, with the texts of refusals, and of the files of a CA.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::tls::{ALPN, KeyFiles};
use super::*;
use wasmcage_core::telemetry::error_chain;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Flock {
    authority: Authority,
    directory: TempDir,
}

impl Flock {
    fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), name).unwrap();
        Self { authority, directory }
    }

    /// Keys that were good at a moment, which may be long ago.
    fn keys_at(&self, identity: &Identity, not_before: SystemTime, not_after: SystemTime) -> CageKeys {
        let directory = self.directory.path().join(&identity.cage);
        let issued = self.authority.sign(identity.clone(), not_before, not_after).unwrap();
        issued.write(&directory, true).unwrap();
        KeyFiles::read(&directory).unwrap().unwrap().keys(identity, not_before + DAY / 2).unwrap()
    }

    fn keys(&self, cage: &str) -> CageKeys {
        let directory = self.directory.path().join(cage);
        self.authority.issue(cage, CAGE_DAYS).unwrap().write(&directory, true).unwrap();
        let flock = self.authority.info().name.split(' ').nth(1).unwrap();
        CageKeys::load(&directory, &Identity::new(flock, cage)).unwrap().unwrap()
    }
}

/// The peer as each side sees it: `client` is the client's view of the server.
struct HandshakeResult {
    client: Result<Identity, String>,
    server: Result<Identity, String>,
    resumed: bool,
}

async fn meet(client: &CageKeys, server: &CageKeys, expected: Option<&str>) -> HandshakeResult {
    meet_with(client.client(), client, server, expected).await
}

async fn meet_with(
    config: Arc<ClientConfig>,
    client: &CageKeys,
    server: &CageKeys,
    expected: Option<&str>,
) -> HandshakeResult {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connecting = async move {
        let reason = |error| handshake_reason(&error, "cage server");
        let connector = TlsConnector::from(config);
        let mut stream = connector.connect(client.server_name(), near).await.map_err(reason)?;
        let kind = stream.get_ref().1.handshake_kind();
        let peer = client.verify_peer(stream.get_ref().1.peer_certificates(), expected);
        // A refusal by the server shows at the first read.
        stream.read_u8().await.map_err(reason)?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(ALPN));
        peer.map(|peer| (peer, kind)).map_err(|error| error_chain(&error))
    };
    let accepting = async move {
        let accepted = TlsAcceptor::from(server.server()).accept(far).await;
        let mut stream = accepted.map_err(|error| handshake_reason(&error, "cage client"))?;
        let peer = server.verify_peer(stream.get_ref().1.peer_certificates(), None);
        // This fails if the client has refused the server.
        let _ = stream.write_u8(1).await;
        let _ = stream.flush().await;
        peer.map_err(|error| error_chain(&error))
    };
    let (client, server) = tokio::join!(connecting, accepting);
    let resumed = matches!(client, Ok((_, Some(HandshakeKind::Resumed))));
    HandshakeResult { client: client.map(|(peer, _)| peer), server, resumed }
}

#[track_caller]
fn refused(who: &Result<Identity, String>, parts: &[&str]) {
    let text = who.as_ref().expect_err("to be refused");
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[tokio::test]
async fn two_cages_of_a_flock_know_each_other() {
    let flock = Flock::new("default");
    let (client, server) = (flock.keys("client"), flock.keys(&"S_-".repeat(21)));
    for resumed in [false, true, true] {
        let met = meet(&client, &server, Some(&server.identity().cage)).await;
        assert_eq!(met.client.as_ref(), Ok(server.identity()));
        assert_eq!(met.server.as_ref(), Ok(client.identity()));
        assert_eq!(met.resumed, resumed);
    }
    let met = meet(&client, &server, Some("other")).await;
    refused(&met.client, &["cage S_-", "where cage other was expected"]);
}

#[tokio::test]
async fn another_ca_is_refused_by_both_sides() {
    let (one, two) = (Flock::new("default"), Flock::new("default"));
    let met = meet(&one.keys("client"), &two.keys("server"), None).await;
    refused(&met.client, &["certificate of cage server", "not signed by a CA of the ca.pem here"]);
    refused(&met.server, &["cage client refused our certificate", "ca.pem there"]);
    // The client would trust the server; the server does not trust the client.
    let client = two.keys("client");
    let stranger = one.keys("client");
    let met = meet_with(with_certificate_of(&stranger, &two), &client, &two.keys("server"), None).await;
    refused(&met.client, &["cage server refused our certificate", "ca.pem there"]);
    refused(&met.server, &["certificate of cage client was not signed by a CA of the ca.pem here"]);
}

/// A client that trusts a flock and shows the certificate of somebody else.
fn with_certificate_of(keys: &CageKeys, trusted: &Flock) -> Arc<ClientConfig> {
    let mut config = (*client_without_certificate(trusted)).clone();
    config.client_auth_cert_resolver = keys.client().client_auth_cert_resolver.clone();
    Arc::new(config)
}

fn client_without_certificate(trusted: &Flock) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let file = trusted.directory.path().join("ca").join(CA_FILE);
    certificates_in(&file).unwrap().unwrap().into_iter().for_each(|certificate| roots.add(certificate).unwrap());
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

#[tokio::test]
async fn a_client_needs_a_certificate_and_the_protocol() {
    let flock = Flock::new("default");
    let (client, server) = (flock.keys("client"), flock.keys("server"));
    let met = meet_with(client_without_certificate(&flock), &client, &server, None).await;
    refused(&met.client, &["cage server wants a certificate, and none was shown"]);
    refused(&met.server, &["cage client showed no certificate"]);
    let mut other = (*client.client()).clone();
    other.alpn_protocols = vec![b"h2".to_vec()];
    let met = meet_with(Arc::new(other), &client, &server, None).await;
    refused(&met.client, &["cage server is no cage"]);
    refused(&met.server, &["cage client is no cage"]);
}

#[tokio::test]
async fn another_flock_is_refused_even_with_the_same_ca() {
    let flock = Flock::new("default");
    let now = SystemTime::now();
    let other = |cage| flock.keys_at(&Identity::new("other", cage), now - DAY, now + DAY);
    let met = meet(&flock.keys("client"), &other("server"), None).await;
    refused(&met.client, &["of another flock", "other.flock.wasmcage", "not default.flock.wasmcage"]);
    let stranger = with_certificate_of(&other("client"), &flock);
    let met = meet_with(stranger, &flock.keys("c"), &flock.keys("server"), None).await;
    refused(&met.server, &["cage client of flock other", "this is flock default"]);
}

#[tokio::test]
async fn certificates_are_refused_before_and_after_their_time() {
    let flock = Flock::new("default");
    let (good, now) = (flock.keys("good"), SystemTime::now());
    let identity = Identity::new("default", "late");
    let expired = flock.keys_at(&identity, now - 9 * DAY, now - DAY);
    let met = meet(&good, &expired, None).await;
    refused(&met.client, &["certificate of cage server expired on 20"]);
    refused(&met.server, &["cage client refused our certificate: expired or not yet valid, by the clock there"]);
    let met = meet(&expired, &good, None).await;
    refused(&met.server, &["certificate of cage client expired on 20"]);
    refused(&met.client, &["cage server refused our certificate: expired"]);
    let early = flock.keys_at(&identity, now + DAY, now + 9 * DAY);
    let met = meet(&good, &early, None).await;
    refused(&met.client, &["certificate of cage server is valid only from 20", "the clock here says"]);
    // A resumed handshake does not check the end of the certificate.
    let chain = certificates_in(&flock.directory.path().join("late").join(CERTIFICATE_FILE)).unwrap().unwrap();
    assert!(good.verify_peer(Some(&chain), None).is_ok(), "its end is what is looked at");
    flock.keys_at(&identity, now - 9 * DAY, now - DAY);
    let chain = certificates_in(&flock.directory.path().join("late").join(CERTIFICATE_FILE)).unwrap().unwrap();
    assert!(matches!(good.verify_peer(Some(&chain), None), Err(PeerError::Ended { .. })));
}

#[tokio::test]
async fn self_signed_certificates_are_refused() {
    let flock = Flock::new("default");
    let directory = flock.directory.path().join("self");
    let mut params = CertificateParams::new(vec!["default.flock.wasmcage".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("wasmcage:default/self".try_into().unwrap()));
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    fs::create_dir(&directory).unwrap();
    for (name, text) in
        [(CERTIFICATE_FILE, certificate.pem()), (CA_FILE, certificate.pem()), (KEY_FILE, key.serialize_pem())]
    {
        fs::write(directory.join(name), text).unwrap();
    }
    let own = CageKeys::load(&directory, &Identity::new("default", "self")).unwrap().unwrap();
    let good = flock.keys("good");
    refused(&meet(&good, &own, None).await.client, &["not signed by a CA of the ca.pem here"]);
    let stranger = with_certificate_of(&own, &flock);
    refused(&meet_with(stranger, &good, &good, None).await.server, &["not signed by a CA of the ca.pem here"]);
}

#[tokio::test]
async fn bytes_that_are_not_tls_are_refused() {
    let flock = Flock::new("default");
    let keys = flock.keys("worker");
    for (bytes, part) in [(&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], "does not speak TLS"), (b"", "closed")] {
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let error = TlsAcceptor::from(keys.server()).accept(far).await.map(|_| ()).unwrap_err();
        let reason = handshake_reason(&error, "the peer at 10.0.0.7:7420");
        assert!(reason.contains(part) && reason.contains("10.0.0.7"), "{reason}");
    }
}

#[tokio::test]
async fn a_renewed_ca_and_the_old_one_are_trusted_together() {
    let flock = Flock::new("default");
    let ca = flock.directory.path().join("ca");
    let (old, worker) = (flock.keys("old"), flock.directory.path().join("worker"));
    let renewed = Authority::renew(&ca, "default").unwrap();
    assert_eq!(renewed.trusted(), 2);
    assert_ne!(renewed.info().name, flock.authority.info().name);
    renewed.issue("worker", 10).unwrap().write(&worker, false).unwrap();
    let identity = Identity::new("default", "worker");
    let new = CageKeys::load(&worker, &identity).unwrap().unwrap();
    refused(&meet(&old, &new, None).await.client, &["not signed by a CA of the ca.pem here"]);
    // With the new bundle, a cage with an old certificate knows the new ones, and they know it.
    renewed.write_bundle(&flock.directory.path().join("old")).unwrap();
    let old = CageKeys::load(&flock.directory.path().join("old"), old.identity()).unwrap().unwrap();
    let met = meet(&old, &new, Some("worker")).await;
    assert_eq!((met.client.as_ref(), met.server.as_ref()), (Ok(new.identity()), Ok(old.identity())));
    // A renewal that was cut off before it wrote the key signs by the old one, and others still trust it.
    let [old_key, file] = [fs::read(ca.join(CA_KEY_FILE)).unwrap(), fs::read(ca.join(CA_FILE)).unwrap()];
    let third = Authority::renew(&ca, "default").unwrap();
    assert_eq!(third.trusted(), 3);
    fs::write(ca.join(CA_KEY_FILE), old_key).unwrap();
    let again = Authority::open(&ca, "default").unwrap();
    assert_eq!(again.info().fingerprint, renewed.info().fingerprint);
    again.issue("worker", 10).unwrap().write(&worker, true).unwrap();
    assert!(CageKeys::load(&worker, &identity).is_ok());
    fs::write(ca.join(CA_FILE), file).unwrap();
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_private_and_never_overwritten_unasked() {
    let flock = Flock::new("default");
    let ca = flock.directory.path().join("ca");
    let worker = flock.directory.path().join("a/worker");
    flock.authority.issue("worker", 1).unwrap().write(&worker, false).unwrap();
    for (file, expected) in
        [(ca.clone(), 0o700), (ca.join(CA_KEY_FILE), 0o600), (worker.clone(), 0o700), (worker.join(KEY_FILE), 0o600)]
    {
        assert_eq!(mode(&file), expected, "{}", file.display());
    }
    let names: Vec<_> = fs::read_dir(&worker).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let before = fs::read(worker.join(KEY_FILE)).unwrap();
    let error = flock.authority.issue("worker", 1).unwrap().write(&worker, false).unwrap_err().to_string();
    assert!(error.contains("cert.pem is there already"), "{error}");
    assert_eq!(fs::read(worker.join(KEY_FILE)).unwrap(), before);
    assert!(matches!(Authority::create(&ca, "default"), Err(KeysError::Exists { .. })));
    flock.authority.issue("worker", 1).unwrap().write(&worker, true).unwrap();
    assert_ne!(fs::read(worker.join(KEY_FILE)).unwrap(), before);
}

#[test]
fn files_that_do_not_fit_are_named() {
    let flock = Flock::new("default");
    let directory = flock.directory.path().join("worker");
    let identity = Identity::new("default", "worker");
    assert!(CageKeys::load(&directory, &identity).unwrap().is_none(), "no keys at all are no mistake");
    let check = |identity: &Identity, parts: &[&str]| {
        let text = error_chain(&CageKeys::load(&directory, identity).unwrap_err());
        parts.iter().for_each(|part| assert!(text.contains(part), "{text:?} lacks {part:?}"));
    };
    let renew = || flock.authority.issue("worker", 1).unwrap().write(&directory, true).unwrap();
    for name in [CERTIFICATE_FILE, KEY_FILE, CA_FILE] {
        renew();
        fs::write(directory.join(name), "-----BEGIN CERTIFICATE-----\n!\n").unwrap();
        check(&identity, &[name]);
        fs::write(directory.join(name), "").unwrap();
        check(&identity, &[name]);
        fs::write(directory.join(name), vec![b'x'; 2 << 20]).unwrap();
        check(&identity, &[name, "longer than"]);
        fs::remove_file(directory.join(name)).unwrap();
        check(&identity, &[name, "missing"]);
    }
    renew();
    check(&Identity::new("default", "other"), &["is of cage worker of flock default", "keys of cage other"]);
    check(&Identity::new("other", "worker"), &["is of cage worker of flock default", "of flock other"]);
    let stranger = Authority::create(&flock.directory.path().join("stranger"), "default").unwrap();
    stranger.write_bundle(&directory).unwrap();
    check(&identity, &["cage worker of flock default", "cert.pem was not signed by a CA"]);
    renew();
    fs::write(directory.join(KEY_FILE), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    check(&identity, &["key.pem does not belong to certificate"]);
    let now = SystemTime::now();
    let write = |from, to| flock.authority.sign(identity.clone(), from, to).unwrap().write(&directory, true).unwrap();
    write(now - 2 * DAY, now - DAY);
    check(&identity, &["cert.pem expired on 20"]);
    write(now + DAY, now + 2 * DAY);
    check(&identity, &["cert.pem is valid only from 20"]);
}

#[test]
fn warnings_name_open_keys_and_near_ends() {
    let flock = Flock::new("default");
    let directory = flock.directory.path().join("worker");
    let identity = Identity::new("default", "worker");
    let now = SystemTime::now();
    assert_eq!(flock.keys("worker").warnings(now), Vec::<String>::new());
    flock.authority.issue("worker", 10).unwrap().write(&directory, true).unwrap();
    fs::set_permissions(directory.join(KEY_FILE), fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = CageKeys::load(&directory, &identity).unwrap().unwrap().warnings(now);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("mode 644") && warnings[1].contains("ends in 9 days"), "{warnings:?}");
}

#[test]
fn names_are_checked_and_a_certificate_ends_with_its_ca() {
    let flock = Flock::new("default");
    let missing = flock.directory.path().join("missing");
    for bad in ["", "a b", "../x", "Default", "-a", "a-", &"x".repeat(41)] {
        assert!(matches!(Authority::create(&missing, bad), Err(KeysError::BadName { .. })), "{bad:?}");
    }
    assert!(matches!(Authority::open(&missing, "default"), Err(KeysError::NoAuthority { .. })));
    for bad in ["", "a b", "../x", "a/b", &"x".repeat(65)] {
        assert!(matches!(flock.authority.issue(bad, 1), Err(KeysError::BadName { .. })), "{bad:?}");
    }
    let longest = flock.authority.issue("worker", u32::MAX).unwrap();
    assert!(longest.not_after <= flock.authority.info().not_after);
    let mixed = flock.directory.path().join("ca");
    fs::write(mixed.join(CA_KEY_FILE), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(Authority::open(&mixed, "default"), Err(KeysError::AuthorityMismatch { .. })));
    fs::write(mixed.join(CA_KEY_FILE), "nothing").unwrap();
    assert!(matches!(Authority::open(&mixed, "default"), Err(KeysError::AuthorityKey { .. })));
    let (long, now) = ("f".repeat(40), SystemTime::now());
    let flock = Flock::new(&long);
    let keys = flock.keys(&"c".repeat(64));
    assert_eq!(keys.info().identity, Ok(Identity::new(&long, "c".repeat(64))));
    assert_eq!(keys.info().validity(now), Validity::Good);
    assert!(CertificateInfo::read(&CertificateDer::from(vec![0; 40])).is_none());
}
