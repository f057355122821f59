//! Certificates for both sides, and a mutual TLS 1.3 stream between them, or a plain stream for kinds without TLS.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The name in the certificate, which both sides share.
pub const NAME: &str = "peer.rpc-peers.test";

/// Writes `ca.pem`, `cert.pem` and `key.pem`.
pub fn make_keys(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let ca_key = rcgen::KeyPair::generate()?;
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key)?;
    let key = rcgen::KeyPair::generate()?;
    let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
    let certificate = rcgen::CertificateParams::new([NAME.to_owned()])?.signed_by(&key, &issuer)?;
    fs::write(directory.join("ca.pem"), ca_certificate.pem())?;
    fs::write(directory.join("cert.pem"), certificate.pem())?;
    fs::write(directory.join("key.pem"), key.serialize_pem())?;
    Ok(())
}

pub fn acceptor(keys: &Path) -> Result<TlsAcceptor> {
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(keys)?)).build()?;
    let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(keys)?, key(keys)?)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

pub fn connector(keys: &Path) -> Result<(TlsConnector, ServerName<'static>)> {
    let config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots(keys)?)
        .with_client_auth_cert(certificates(keys)?, key(keys)?)?;
    Ok((TlsConnector::from(Arc::new(config)), ServerName::try_from(NAME)?))
}

fn roots(keys: &Path) -> Result<RootCertStore> {
    let file = keys.join("ca.pem");
    let ca = CertificateDer::from_pem_file(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(roots)
}

fn certificates(keys: &Path) -> Result<Vec<CertificateDer<'static>>> {
    Ok(vec![CertificateDer::from_pem_file(keys.join("cert.pem"))?])
}

fn key(keys: &Path) -> Result<PrivateKeyDer<'static>> {
    Ok(PrivateKeyDer::from_pem_file(keys.join("key.pem"))?)
}
