//! TLS of the server: made of files, and again when the files change. If the new files cannot be used, the old
//! certificate stays in use.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::events::HttpEvents;
use wasmcage_core::regular_file;

pub(super) const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";
/// A longer file of certificates or keys is refused.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The rule for client certificates. The file has the authorities that may sign them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClientAuth {
    None,
    /// A client without a certificate is served; one with an invalid certificate is not.
    Optional(PathBuf),
    Required(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsFiles {
    /// A PEM file, with the server's own certificate first.
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_auth: ClientAuth,
    pub(super) handshake_timeout: Duration,
    /// How often the files are polled.
    pub(super) reload_interval: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("cannot read {}", file.display())]
    Read {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no usable PEM section in {}", file.display())]
    Pem {
        file: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("certificate {} and key {} cannot serve", certificate.display(), key.display())]
    Certificate {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("certificates in {} cannot verify clients", file.display())]
    ClientCa {
        file: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

pub(super) struct ServerTls {
    files: TlsFiles,
    current: ArcSwap<ServerConfig>,
    /// The hash of the contents that were tried last, so that unusable files are logged once.
    last_tried: Mutex<[u8; 32]>,
}

impl ServerTls {
    /// # Errors
    /// The files cannot be read or used.
    pub(super) async fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = TlsFileContents::read(&files).await?;
        let config = contents.config(&files)?;
        Ok(Self { files, current: ArcSwap::from_pointee(config), last_tried: Mutex::new(contents.hash()) })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }

    pub(super) fn handshake_timeout(&self) -> Duration {
        self.files.handshake_timeout
    }

    /// Polls the files for ever and reloads changed ones. It compares their contents rather than their times, since
    /// links may be swapped and clocks have coarse ticks.
    pub(super) async fn reload_forever(&self, events: &HttpEvents) {
        let mut missing = false;
        loop {
            tokio::time::sleep(self.files.reload_interval).await;
            match TlsFileContents::read(&self.files).await {
                Ok(contents) => {
                    missing = false;
                    self.reload(&contents, events);
                }
                // A file may be missing while it is being replaced.
                Err(error) if !missing => {
                    missing = true;
                    events.certificates_kept(&error);
                }
                Err(_) => {}
            }
        }
    }

    fn reload(&self, contents: &TlsFileContents, events: &HttpEvents) {
        let hash = contents.hash();
        if std::mem::replace(&mut *self.last_tried.lock(), hash) == hash {
            return;
        }
        match contents.config(&self.files) {
            Ok(config) => {
                self.current.store(Arc::new(config));
                events.certificates_changed(&self.files.certificate);
            }
            Err(error) => events.certificates_kept(&error),
        }
    }
}

/// The contents of all files at one moment.
struct TlsFileContents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
}

impl TlsFileContents {
    async fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read(&files.certificate).await?,
            key: read(&files.key).await?,
            client_ca: match &files.client_auth {
                ClientAuth::None => Vec::new(),
                ClientAuth::Optional(file) | ClientAuth::Required(file) => read(file).await?,
            },
        })
    }

    fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [&self.certificate, &self.key, &self.client_ca] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    fn config(&self, files: &TlsFiles) -> Result<ServerConfig, TlsError> {
        let certificate =
            |source| TlsError::Certificate { certificate: files.certificate.clone(), key: files.key.clone(), source };
        let chain = certificates(&files.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|source| TlsError::Pem { file: files.key.clone(), source })?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(certificate)?;
        let builder = match &files.client_auth {
            ClientAuth::None => builder.with_no_client_auth(),
            ClientAuth::Optional(file) => builder.with_client_cert_verifier(self.verifier(file, false)?),
            ClientAuth::Required(file) => builder.with_client_cert_verifier(self.verifier(file, true)?),
        };
        // This refuses a key that is not the certificate's, such as between the replacement of one file and of the
        // other.
        let mut config = builder.with_single_cert(chain, key).map_err(certificate)?;
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
        Ok(config)
    }

    fn verifier(
        &self,
        file: &Path,
        required: bool,
    ) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
        let unusable =
            |source: Box<dyn std::error::Error + Send + Sync>| TlsError::ClientCa { file: file.to_owned(), source };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file, &self.client_ca)? {
            roots.add(certificate).map_err(|error| unusable(Box::new(error)))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()));
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        builder.build().map_err(|error: VerifierBuilderError| unusable(Box::new(error)))
    }
}

async fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || regular_file::read(&path, FILE_BYTES_MAX)).await;
    let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
    read.map_err(|source| TlsError::Read { file: file.to_owned(), source })
}

fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |source| TlsError::Pem { file: file.to_owned(), source };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(unusable)?;
    if chain.is_empty() { Err(unusable(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

/// The name in a client's certificate, which the handshake has verified: its first DNS name, or else its subject's
/// common name.
pub(super) fn name_in(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let dns = alternatives.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
    });
    dns.or_else(|| certificate.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned))
}
