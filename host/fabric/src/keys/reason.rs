//! Texts for operators that say why a TLS connection between cages failed: for the log and for `doctor`.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error};

use super::identity::quoted;
use wasmcage_core::telemetry::utc;

/// Describes an error of the stream, as `tls_reason` does for TLS. `peer` names the other side, such as `cage worker at
/// 10.0.0.7:7420`. In TLS 1.3 the client learns that the server refuses its certificate only after its own handshake has
/// ended, at its first read.
pub fn handshake_reason(error: &io::Error, peer: &str) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => tls_reason(error, peer),
        None if error.kind() == io::ErrorKind::UnexpectedEof => format!("{peer} closed the connection at once"),
        None => format!("the connection to {peer} broke: {error}"),
    }
}

/// Describes what is wrong with a certificate or with the handshake.
pub(super) fn tls_reason(error: &Error, peer: &str) -> String {
    match error {
        Error::InvalidCertificate(error) => format!("certificate of {peer} {}", certificate_reason(error)),
        Error::NoCertificatesPresented => format!("{peer} showed no certificate"),
        Error::AlertReceived(alert) => format!("{peer} {}", alert_reason(*alert)),
        Error::NoApplicationProtocol => format!("{peer} is no cage, or one of a version that speaks another protocol"),
        Error::PeerIncompatible(_) => format!("{peer} does not speak TLS 1.3 as cages do: {error}"),
        Error::InvalidMessage(_) => format!("{peer} does not speak TLS: {error}"),
        error => format!("{peer} broke the rules of TLS: {error}"),
    }
}

fn certificate_reason(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => format!("expired on {}", date(*not_after)),
        CertificateError::Expired => "expired".into(),
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("is valid only from {}, and the clock here says {}", date(*not_before), date(*time))
        }
        CertificateError::NotValidYet => "is not valid yet, by the clock here".into(),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "was not signed by a CA of the ca.pem here".into()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!("is of another flock: it names {}, not {}", quoted(&presented.join(", ")), name(expected))
        }
        CertificateError::NotValidForName => "is of another flock".into(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not for calls between cages: it must be allowed to serve both a client and a server".into()
        }
        CertificateError::BadEncoding => "cannot be read".into(),
        error => format!("was refused: {}", Error::InvalidCertificate(error.clone())),
    }
}

fn alert_reason(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => {
            "refused our certificate: expired or not yet valid, by the clock there".into()
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "refused our certificate: not signed by a CA of the ca.pem there".into()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::AccessDenied => format!("refused our certificate: {alert:?}"),
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "wants a certificate, and none was shown".into()
        }
        AlertDescription::NoApplicationProtocol => {
            "is no cage, or one of a version that speaks another protocol".into()
        }
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            format!("does not speak TLS 1.3 as cages do: {alert:?}")
        }
        alert => format!("ended the connection: {alert:?}"),
    }
}

fn name(name: &ServerName<'_>) -> String {
    name.to_str().into_owned()
}

fn date(at: UnixTime) -> String {
    utc(UNIX_EPOCH + Duration::from_secs(at.as_secs()))
}
