//! Errors of making and using keys.

use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem;

use super::identity::{Identity, IdentityError};

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("cannot read {}", file.display())]
    Read {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", file.display())]
    Write {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is missing, while other files of the keys are there", file.display())]
    Missing { file: PathBuf },
    #[error("no usable PEM section in {}", file.display())]
    Pem {
        file: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("{} holds no certificate that can be read", file.display())]
    Certificate { file: PathBuf },
    #[error("certificate {} names no cage", file.display())]
    Identity {
        file: PathBuf,
        #[source]
        source: IdentityError,
    },
    #[error("certificate {} is of {found}, but these are the keys of {expected}", file.display())]
    Name { file: PathBuf, found: Identity, expected: Identity },
    #[error("key {} does not belong to certificate {}", key.display(), certificate.display())]
    KeyMismatch { certificate: PathBuf, key: PathBuf },
    /// The text is from `tls_reason`.
    #[error("{reason}")]
    Unusable { reason: String },
    #[error("{} cannot serve as CA certificates", file.display())]
    Roots {
        file: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("key {} and certificate {} cannot be used", key.display(), certificate.display())]
    Tls {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("{text}")]
    BadName { text: String },
    #[error("{} is there already", file.display())]
    Exists { file: PathBuf },
    #[error("flock {flock} has no CA here: there is no {}", file.display())]
    NoAuthority { flock: String, file: PathBuf },
    #[error("no certificate in {} belongs to the CA's key {}", certificates.display(), key.display())]
    AuthorityMismatch { certificates: PathBuf, key: PathBuf },
    #[error("the CA of flock {flock} expired on {on}")]
    AuthorityEnded { flock: String, on: String },
    #[error("{} holds no key that a CA can sign with", file.display())]
    AuthorityKey {
        file: PathBuf,
        #[source]
        source: rcgen::Error,
    },
    #[error("cannot make a certificate for {subject}")]
    Make {
        subject: String,
        #[source]
        source: rcgen::Error,
    },
}

impl KeysError {
    pub(super) fn read(file: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { file: file.to_owned(), source }
    }

    pub(super) fn write(file: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { file: file.to_owned(), source }
    }
}
