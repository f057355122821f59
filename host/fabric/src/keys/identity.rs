//! The identity in a certificate: the one URI `wasmcage:<flock>/<cage>` among its names. The bytes come from a peer, so
//! nothing here may panic. The handshake has verified the signature before.

use std::fmt;

use rustls::pki_types::{CertificateDer, DnsName, ServerName};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use wasmcage_config::{is_flock_name, is_name};

const SCHEME: &str = "wasmcage:";
/// Characters of a bad name that an error quotes.
const QUOTED_CHARACTERS_MAX: usize = 120;

/// A cage of a flock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    pub flock: String,
    pub cage: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("no certificate was shown")]
    NoCertificate,
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate has no name `{SCHEME}<flock>/<cage>`")]
    NoName,
    #[error(
        "the certificate has {count} names `{SCHEME}..` where it must have one; the first two are {first} and {second}"
    )]
    SeveralNames { count: usize, first: String, second: String },
    #[error("the certificate's name {found} is not `{SCHEME}<flock>/<cage>`")]
    BadName { found: String },
}

impl Identity {
    pub fn new(flock: impl Into<String>, cage: impl Into<String>) -> Self {
        Self { flock: flock.into(), cage: cage.into() }
    }

    /// Returns the URI that stands for it in a certificate.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.flock, self.cage)
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let (flock, cage) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        (is_flock_name(flock) && is_name(cage)).then(|| Self::new(flock, cage))
    }

    /// Returns the server name that every connection within the flock uses.
    pub(super) fn server_name(&self) -> Option<ServerName<'static>> {
        DnsName::try_from(dns_name(&self.flock)).ok().map(ServerName::DnsName)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cage {} of flock {}", self.cage, self.flock)
    }
}

pub(super) fn dns_name(flock: &str) -> String {
    format!("{flock}.flock.wasmcage")
}

/// Returns the peer's identity from the certificates of the TLS connection.
///
/// # Errors
/// There is no certificate, or it does not name exactly one cage.
pub fn peer_identity(certificates: Option<&[CertificateDer<'_>]>) -> Result<Identity, IdentityError> {
    let own = certificates.and_then(<[_]>::first).ok_or(IdentityError::NoCertificate)?;
    match X509Certificate::from_der(own) {
        Ok(([], certificate)) => identity_of(&certificate),
        Ok(_) | Err(_) => Err(IdentityError::Unreadable),
    }
}

pub(super) fn identity_of(certificate: &X509Certificate<'_>) -> Result<Identity, IdentityError> {
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let ours: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        })
        .collect();
    match ours[..] {
        [] => Err(IdentityError::NoName),
        [uri] => Identity::from_uri(uri).ok_or_else(|| IdentityError::BadName { found: quoted(uri) }),
        [first, second, ..] => {
            Err(IdentityError::SeveralNames { count: ours.len(), first: quoted(first), second: quoted(second) })
        }
    }
}

/// Quotes a name for a log line: cut, and with control characters escaped.
pub(super) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED_CHARACTERS_MAX).collect();
    if short.len() < text.len() {
        short += "..";
    }
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["default.flock.wasmcage".to_owned()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
    }

    #[track_caller]
    fn check(uris: &[&str], expected: Result<(&str, &str), &str>) {
        let found = peer_identity(Some(&[certificate(uris)]));
        match (&found, expected) {
            (Ok(identity), Ok((flock, cage))) => assert_eq!(identity, &Identity::new(flock, cage)),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            _ => panic!("{uris:?}: {found:?}"),
        }
    }

    #[test]
    fn exactly_one_name_of_a_cage_is_an_identity() {
        let long = "x".repeat(64);
        check(&["wasmcage:default/worker"], Ok(("default", "worker")));
        check(&["https://example.org/", "wasmcage:a-1/Work_er-2"], Ok(("a-1", "Work_er-2")));
        check(&[&format!("wasmcage:{}/{long}", "f".repeat(40))], Ok((&"f".repeat(40), &long)));
        check(&[], Err("no name"));
        check(&["https://example.org/"], Err("no name"));
        check(&["WASMCAGE:default/worker"], Err("no name"));
        check(&["wasmcage:default/a", "wasmcage:default/b"], Err("2 names"));
        check(&["wasmcage:default/a", "wasmcage:default/a"], Err("2 names"));
        let bad =
            ["", "worker", "default/", "/worker", "default/a/b", "Default/a", "default/a b", "default/%61", "-/a"];
        for bad in bad {
            check(&[&format!("wasmcage:{bad}")], Err("is not `wasmcage:<flock>/<cage>`"));
        }
        check(&[&format!("wasmcage:default/{}", "x".repeat(65))], Err("is not"));
        check(&[&format!("wasmcage:default/{}\n", "x".repeat(5000))], Err("..\""));
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        assert_eq!(peer_identity(None), Err(IdentityError::NoCertificate));
        assert_eq!(peer_identity(Some(&[])), Err(IdentityError::NoCertificate));
        let good = certificate(&["wasmcage:default/worker"]);
        for length in 0..good.len() {
            assert_eq!(peer_identity(Some(&[good[..length].into()])), Err(IdentityError::Unreadable));
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(peer_identity(Some(&[longer.into()])), Err(IdentityError::Unreadable));
        for at in 0..good.len() {
            let mut changed = good.to_vec();
            changed[at] ^= 0x55;
            // It may return anything, but must not panic.
            let _ = peer_identity(Some(&[changed.into()]));
        }
    }
}
