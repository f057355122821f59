//! A cage's keys as TLS configurations. Both ends of a connection show a certificate of the flock's CA; after the
//! handshake each calls `CageKeys::verify_peer`. TLS 1.3 only, by the ring provider, whatever the process has installed
//! as its default.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};

use super::certificate::CertificateInfo;
use super::error::KeysError;
use super::files::{self, CA_FILE, CERTIFICATE_FILE, KEY_FILE};
use super::identity::{Identity, IdentityError, peer_identity};
use super::reason::tls_reason;
use wasmcage_core::telemetry::utc;

/// Application protocol of connections between cages, agreed on in the TLS handshake.
pub(super) const ALPN: &[u8] = b"wasmcage-rpc/1";

/// The checked keys of one cage.
#[derive(Debug)]
pub struct CageKeys {
    identity: Identity,
    info: CertificateInfo,
    server_name: ServerName<'static>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// Mode of `key.pem`, if others than its owner may read it.
    open_mode: Option<u32>,
}

/// Why a peer is refused after the TLS handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("the peer's certificate does not identify a cage")]
    Identity(#[from] IdentityError),
    #[error("the peer is {found}, and this is flock {expected}")]
    Flock { found: Identity, expected: String },
    #[error("the peer is {found}, where cage {expected} was expected")]
    Cage { found: Identity, expected: String },
    #[error("certificate of {identity} expired on {on}")]
    Ended { identity: Identity, on: String },
}

impl CageKeys {
    /// Reads and checks `cert.pem`, `key.pem` and `ca.pem` of the cage; none when none of them exists. Blocks on files.
    ///
    /// # Errors
    /// The first reason why they cannot be used, with the file.
    pub fn load(directory: &Path, identity: &Identity) -> Result<Option<Self>, KeysError> {
        match KeyFiles::read(directory)? {
            Some(contents) => contents.keys(identity, SystemTime::now()).map(Some),
            None => Ok(None),
        }
    }

    /// Returns the cage to which the keys belong.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the content of the cage's certificate.
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// Returns the server name for connections to any cage of the flock.
    pub fn server_name(&self) -> ServerName<'static> {
        self.server_name.clone()
    }

    /// Returns the TLS configuration for connections that this cage makes.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// Returns the TLS configuration for connections that this cage accepts.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// Returns the peer's identity after the handshake: a cage of this flock, and with `cage` that one. The end of its
    /// certificate is checked here, too, since a resumed handshake does not check it again.
    ///
    /// # Errors
    /// The peer is another cage, or its certificate has expired or does not identify a cage.
    pub fn verify_peer(
        &self,
        certificates: Option<&[CertificateDer<'_>]>,
        cage: Option<&str>,
    ) -> Result<Identity, PeerError> {
        let found = peer_identity(certificates)?;
        if found.flock != self.identity.flock {
            return Err(PeerError::Flock { found, expected: self.identity.flock.clone() });
        }
        if let Some(expected) = cage.filter(|cage| *cage != found.cage) {
            return Err(PeerError::Cage { found, expected: expected.to_owned() });
        }
        let own = certificates.and_then(<[_]>::first).and_then(CertificateInfo::read);
        let own = own.ok_or(IdentityError::Unreadable)?;
        if own.not_after < SystemTime::now() {
            return Err(PeerError::Ended { identity: found, on: utc(own.not_after) });
        }
        Ok(found)
    }

    /// Returns what an operator should correct although the keys can be used.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(mode) = self.open_mode {
            warnings.push(format!("{KEY_FILE} can be read by other users (mode {mode:03o}): chmod 600"));
        }
        let validity = self.info.validity(now);
        if validity != super::certificate::Validity::Good {
            warnings.push(format!("{CERTIFICATE_FILE} {validity}: wasmcage keys issue {} --renew", self.identity.cage));
        }
        warnings
    }
}

/// The bytes of a cage's key files, read at one time.
pub(super) struct KeyFiles {
    directory: PathBuf,
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Vec<u8>,
    key_mode: u32,
}

impl KeyFiles {
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, KeysError> {
        let names = [CERTIFICATE_FILE, KEY_FILE, CA_FILE];
        let mut found = Vec::new();
        for name in names {
            found.push(files::read(&directory.join(name))?);
        }
        if found.iter().all(Option::is_none) {
            return Ok(None);
        }
        let mut parts = names.into_iter().zip(found);
        let mut next = || {
            let (name, bytes) = parts.next().expect("one for each name");
            bytes.ok_or_else(|| KeysError::Missing { file: directory.join(name) })
        };
        let [certificate, key, authorities] = [next()?, next()?, next()?];
        let file = directory.join(KEY_FILE);
        let key_mode = file.metadata().map_err(KeysError::read(&file))?.mode();
        Ok(Some(Self { directory: directory.to_owned(), certificate, key, authorities, key_mode }))
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [&self.certificate, &self.key, &self.authorities] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    pub(super) fn keys(&self, identity: &Identity, now: SystemTime) -> Result<CageKeys, KeysError> {
        let files @ [certificate, key, _] =
            &[CERTIFICATE_FILE, KEY_FILE, CA_FILE].map(|name| self.directory.join(name));
        let chain = files::certificates(certificate, &self.certificate)?;
        let info = CertificateInfo::read(&chain[0]);
        let info = info.ok_or_else(|| KeysError::Certificate { file: certificate.clone() })?;
        match &info.identity {
            Ok(found) if found == identity => {}
            Ok(found) => {
                let (found, expected) = (found.clone(), identity.clone());
                return Err(KeysError::Name { file: certificate.clone(), found, expected });
            }
            Err(error) => return Err(KeysError::Identity { file: certificate.clone(), source: error.clone() }),
        }
        let pair =
            PrivateKeyDer::from_pem_slice(&self.key).map_err(|source| KeysError::Pem { file: key.clone(), source })?;
        let verifiers = self.verifiers(files)?;
        let provider = Arc::new(ring::default_provider());
        let certified = certified(chain, pair, &provider, files)?;
        let server_name = identity.server_name().ok_or_else(|| KeysError::Certificate { file: certificate.clone() })?;
        verifiers.check(&certified.cert, &server_name, now).map_err(|error| KeysError::Unusable {
            reason: tls_reason(&error, &format!("{identity} in {}", certificate.display())),
        })?;
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let unusable = |source| KeysError::Tls { certificate: certificate.clone(), key: key.clone(), source };
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_webpki_verifier(verifiers.server)
            .with_client_cert_resolver(resolver.clone());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifiers.client)
            .with_cert_resolver(resolver);
        client.alpn_protocols = vec![ALPN.to_vec()];
        server.alpn_protocols = vec![ALPN.to_vec()];
        Ok(CageKeys {
            identity: identity.clone(),
            info,
            server_name,
            client: Arc::new(client),
            server: Arc::new(server),
            open_mode: Some(self.key_mode & 0o777).filter(|mode| mode & 0o077 != 0),
        })
    }

    fn verifiers(&self, [_, _, file]: &[PathBuf; 3]) -> Result<Verifiers, KeysError> {
        let unusable = |source| KeysError::Roots { file: file.clone(), source };
        let mut roots = RootCertStore::empty();
        for certificate in files::certificates(file, &self.authorities)? {
            roots.add(certificate).map_err(|error| unusable(error.into()))?;
        }
        let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
        Ok(Verifiers {
            server: WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| unusable(error.into()))?,
            client: WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| unusable(error.into()))?,
        })
    }
}

/// Verifies certificates of peers in both roles, by the CAs that this cage trusts.
struct Verifiers {
    server: Arc<WebPkiServerVerifier>,
    client: Arc<dyn ClientCertVerifier>,
}

impl Verifiers {
    /// Checks that peers that trust the same CAs will accept this certificate in both roles.
    fn check(&self, chain: &[CertificateDer<'_>], name: &ServerName<'_>, now: SystemTime) -> Result<(), rustls::Error> {
        let (own, between) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        self.server.verify_server_cert(own, between, name, &[], now)?;
        self.client.verify_client_cert(own, between, now)?;
        Ok(())
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
    [certificate, file, _]: &[PathBuf; 3],
) -> Result<CertifiedKey, KeysError> {
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            KeysError::KeyMismatch { certificate: certificate.clone(), key: file.clone() }
        }
        source => KeysError::Tls { certificate: certificate.clone(), key: file.clone(), source },
    })
}
