//! Keys of a flock: the certificates by which cages prove their identity to cages on other machines. The command `keys`
//! makes them (`authority.rs`). Code that makes or accepts connections gets the current TLS configuration from
//! `WatchedKeys`, and the peer's identity from `CageKeys::verify_peer`. This module knows no protocol, and does not
//! decide what a cage may do.
//!
//! A flock has a certificate authority (CA) of its own. A cage's certificate is signed by it and holds two names: the
//! DNS name `<flock>.flock.wasmcage`, which the TLS library checks, and the URI `wasmcage:<flock>/<cage>`, which is the
//! identity and is compared here, letter by letter.

mod authority;
mod certificate;
mod error;
mod files;
mod identity;
mod reason;
mod tls;
mod watch;

pub use authority::{Authority, CAGE_DAYS, DAYS_MAX, IssuedCertificate, KEYS_DIRECTORY, authority_directory};
pub use certificate::{CertificateInfo, Validity};
pub use error::KeysError;
pub use files::{CA_FILE, CA_KEY_FILE, CERTIFICATE_FILE, KEY_FILE, certificates_in};
pub use identity::{Identity, IdentityError, peer_identity};
pub use reason::handshake_reason;
pub use tls::{CageKeys, PeerError};
pub(crate) use watch::WatchedKeys;

#[cfg(test)]
mod tests;
