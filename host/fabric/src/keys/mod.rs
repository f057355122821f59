//! Keys of a flock: who a cage is when it talks to cages on other machines, and by which certificate it proves that. The
//! command `keys` makes them (`authority.rs`); whoever opens or takes connections between cages asks `WatchedKeys` for the
//! TLS configuration of the moment and lets `Keys::verify_peer` say who is at the other end. Knows no protocol, and never
//! decides what a cage may do.
//!
//! A flock has a certificate authority (CA) of its own. A cage's certificate is signed by it and holds two names: the DNS
//! name `<flock>.flock.wasmcage`, which the TLS library checks, and the URI `wasmcage:<flock>/<cage>`, which is the identity
//! and is compared here, letter by letter.

mod authority;
mod certificate;
mod error;
mod files;
mod identity;
mod reason;
mod tls;
mod watch;

pub use authority::{Authority, CA_DAYS, CAGE_DAYS, DAYS_MAX, Issued, KEYS_DIRECTORY, authority_directory};
pub use certificate::{CertificateInfo, ENDS_SOON_DAYS, Validity};
pub use error::KeysError;
pub use files::{CA_FILE, CA_KEY_FILE, CERTIFICATE_FILE, KEY_FILE, certificates_in};
pub use identity::{Identity, IdentityError, peer_identity};
pub use reason::{handshake_reason, tls_reason};
pub use tls::{ALPN, Keys, PeerError};
pub use watch::WatchedKeys;

#[cfg(test)]
mod tests;
