//! The content of a certificate, for commands and for the log.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use super::identity::{Identity, IdentityError, identity_of};
use wasmcage_core::telemetry::utc;

/// A certificate is reported as ending soon from this many days before its end.
const ENDS_SOON_DAYS: u32 = 30;

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug)]
pub struct CertificateInfo {
    /// Common name: the cage, or the name of the CA.
    pub name: String,
    /// Common name of its signer.
    pub issuer: String,
    /// The cage that it names; an error if it is not the certificate of a cage.
    pub identity: Result<Identity, IdentityError>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// SHA-256 of the certificate, hex.
    pub fingerprint: String,
    /// Public key, DER.
    pub(super) public_key: Vec<u8>,
}

/// The validity of a certificate at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Good,
    NotYet { from: SystemTime },
    EndsSoon { days: u64 },
    Ended { on: SystemTime },
}

impl CertificateInfo {
    /// Reads a certificate; none when the bytes are no certificate.
    pub fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let ([], parsed) = X509Certificate::from_der(certificate).ok()? else { return None };
        Some(Self {
            name: common_name(parsed.subject()),
            issuer: common_name(parsed.issuer()),
            identity: identity_of(&parsed),
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
            fingerprint: Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect(),
            public_key: parsed.public_key().raw.to_vec(),
        })
    }

    pub fn validity(&self, now: SystemTime) -> Validity {
        if now < self.not_before {
            return Validity::NotYet { from: self.not_before };
        }
        match self.not_after.duration_since(now) {
            Err(_) => Validity::Ended { on: self.not_after },
            Ok(left) if left < DAY * ENDS_SOON_DAYS => Validity::EndsSoon { days: left.as_secs() / DAY.as_secs() },
            Ok(_) => Validity::Good,
        }
    }
}

impl Validity {
    /// Returns whether the certificate can be used.
    pub fn is_valid(self) -> bool {
        match self {
            Self::Good | Self::EndsSoon { .. } => true,
            Self::NotYet { .. } | Self::Ended { .. } => false,
        }
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good => f.write_str("good"),
            Self::NotYet { from } => write!(f, "valid only from {}", utc(*from)),
            Self::EndsSoon { days: 0 } => f.write_str("ends today"),
            Self::EndsSoon { days } => write!(f, "ends in {days} days"),
            Self::Ended { on } => write!(f, "expired on {}", utc(*on)),
        }
    }
}

fn common_name(name: &X509Name<'_>) -> String {
    name.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
}

/// Converts a Unix time. Times before 1970, which no certificate of ours has, become 1970.
fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or_default())
}
