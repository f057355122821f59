//! TLS for clients: the certificate authorities that are trusted, public ones or those of a file, and the certificate
//! that this side shows. Protocols with a client library of their own take `client_config` from here.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use wasmcage_core::regular_file;

/// The settings with the public authorities. They are made once because that takes a while.
static PUBLIC: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    Arc::new(builder(roots).with_no_client_auth())
});

/// The TLS settings of a client.
#[derive(Clone, Debug)]
pub struct Tls {
    pub(super) config: Arc<ClientConfig>,
    /// The name that the server's certificate must have; none: the URL's host.
    pub(super) server_name: Option<ServerName<'static>>,
}

/// Why a file of certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    #[error("no usable PEM section in {}: {source}", file.display())]
    Pem { file: PathBuf, source: pem::Error },
    #[error("no usable PEM section in {}: {}", file.display(), pem::Error::NoItemsFound)]
    NoCertificate { file: PathBuf },
    /// One of the trusted certificates.
    #[error("certificate {} cannot be used: {source}", file.display())]
    Authority { file: PathBuf, source: rustls::Error },
    /// The certificate and the key that this side shows, by the certificate's file.
    #[error("certificate {} cannot be used: {source}", file.display())]
    Identity { file: PathBuf, source: rustls::Error },
}

impl TlsFileError {
    pub fn file(&self) -> &Path {
        match self {
            Self::Pem { file, .. }
            | Self::NoCertificate { file }
            | Self::Authority { file, .. }
            | Self::Identity { file, .. } => file,
        }
    }
}

impl Tls {
    /// Trusts the public authorities.
    pub fn public() -> Self {
        Self { config: PUBLIC.clone(), server_name: None }
    }

    /// Trusts the public authorities and these.
    pub fn beside_public(authorities: &[CertificateDer<'static>]) -> Self {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        // Unusable ones were refused when they were read.
        roots.add_parsable_certificates(authorities.iter().cloned());
        Self { config: Arc::new(builder(roots).with_no_client_auth()), server_name: None }
    }

    /// Reads settings from files. `ca` is trusted instead of the public authorities; `identity` are the files of certificate and
    /// key for servers that ask for one.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn from_files(
        ca: Option<&Path>,
        identity: Option<(&Path, &Path)>,
        server_name: Option<ServerName<'static>>,
    ) -> Result<Self, TlsFileError> {
        Ok(Self { config: Arc::new(client_config(ca, identity)?), server_name })
    }
}

/// Trusts the authorities in the file `ca`, or the public ones if there is none. `identity` names the files of the
/// certificate and the key that are shown to servers which ask for them.
///
/// # Errors
/// A file cannot be read or used.
pub fn client_config(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, TlsFileError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            for certificate in certificates(file)? {
                let unusable = |source| TlsFileError::Authority { file: file.to_owned(), source };
                roots.add(certificate).map_err(unusable)?;
            }
        }
        None => roots.roots = webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    }
    let Some((certificate, key_file)) = identity else { return Ok(builder(roots).with_no_client_auth()) };
    let key = regular_file::read_pem(key_file)
        .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem))
        .map_err(|source| TlsFileError::Pem { file: key_file.to_owned(), source })?;
    builder(roots)
        .with_client_auth_cert(certificates(certificate)?, key)
        .map_err(|source| TlsFileError::Identity { file: certificate.to_owned(), source })
}

fn builder(roots: RootCertStore) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows the default versions of TLS")
        .with_root_certificates(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let unusable = |source| TlsFileError::Pem { file: file.to_owned(), source };
    let pem = regular_file::read_pem(file).map_err(unusable)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsFileError::NoCertificate { file: file.to_owned() }),
        found => found.map_err(unusable),
    }
}
