//! Security mechanisms: who may connect, and whether what is sent can be read by others.
//!
//! [`Security`] is what an application chooses. A [`Handshake`] is one connection's way through the mechanism, without any
//! input or output: commands in, commands out, and in the end the peer's metadata. `null.rs`, `plain.rs` and `curve.rs` are
//! the mechanisms,
//! `keys.rs` the keys of CURVE.

mod curve;
mod keys;
mod null;
mod plain;

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

pub(crate) use self::curve::Cipher;
pub use self::keys::{AllowedKeys, KeyError, KeyPair, PublicKey, SecretKey};
use crate::codec::{MechanismName, Metadata, ProtocolError};
use crate::socket_type::SocketType;

type Verifier = dyn Fn(&str, &str) -> bool + Send + Sync;

/// The mechanism of all connections of a socket (RFC 37, "Authentication and Confidentiality").
///
/// Who is server of PLAIN or CURVE has nothing to do with who binds.
#[derive(Clone, Default)]
pub struct Security(Kind);

#[derive(Clone, Default)]
enum Kind {
    #[default]
    Null,
    PlainClient {
        username: Arc<str>,
        password: Arc<str>,
    },
    PlainServer(Arc<Verifier>),
    CurveClient {
        server: PublicKey,
        keys: Arc<KeyPair>,
    },
    CurveServer {
        keys: Arc<KeyPair>,
        allowed: AllowedKeys,
    },
}

impl Security {
    /// Nobody is asked anything, and everything is in clear text.
    #[must_use]
    pub const fn null() -> Self {
        Self(Kind::Null)
    }

    /// Shows a name and password, in clear text.
    ///
    /// # Errors
    /// One of them is longer than 255 bytes, which RFC 24 has no room for.
    pub fn plain_client(username: &str, password: &str) -> Result<Self, CredentialsTooLong> {
        for (what, text) in [("user name", username), ("password", password)] {
            if text.len() > 255 {
                return Err(CredentialsTooLong { what, bytes: text.len() });
            }
        }
        Ok(Self(Kind::PlainClient { username: username.into(), password: password.into() }))
    }

    /// Has clients show a name and a password, and asks `accepts` about them.
    ///
    /// `accepts` is called on the runtime, once per handshake, and must not block. It should compare secrets in constant time.
    pub fn plain_server(accepts: impl Fn(&str, &str) -> bool + Send + Sync + 'static) -> Self {
        Self(Kind::PlainServer(Arc::new(accepts)))
    }

    /// Connects only to the server that has the secret key to `server`, and shows it the public key of `keys`.
    #[must_use]
    pub fn curve_client(server: PublicKey, keys: KeyPair) -> Self {
        Self(Kind::CurveClient { server, keys: Arc::new(keys) })
    }

    /// Has the secret key that clients rely on, and accepts the clients of `allowed`.
    #[must_use]
    pub fn curve_server(keys: KeyPair, allowed: AllowedKeys) -> Self {
        Self(Kind::CurveServer { keys: Arc::new(keys), allowed })
    }

    pub(crate) const fn mechanism(&self) -> MechanismName {
        match self.0 {
            Kind::Null => MechanismName::NULL,
            Kind::PlainClient { .. } | Kind::PlainServer(_) => MechanismName::PLAIN,
            Kind::CurveClient { .. } | Kind::CurveServer { .. } => MechanismName::CURVE,
        }
    }

    pub(crate) const fn is_server(&self) -> bool {
        matches!(self.0, Kind::PlainServer(_) | Kind::CurveServer { .. })
    }

    pub(crate) fn handshake(&self) -> Handshake {
        match &self.0 {
            Kind::Null => Handshake::Null(null::Null),
            Kind::PlainClient { username, password } => {
                Handshake::PlainClient(plain::Client::new(username.clone(), password.clone()))
            }
            Kind::PlainServer(accepts) => Handshake::PlainServer(plain::Server::new(accepts.clone())),
            Kind::CurveClient { server, keys } => {
                Handshake::CurveClient(Box::new(curve::Client::new(server, keys.clone())))
            }
            Kind::CurveServer { keys, allowed } => {
                Handshake::CurveServer(Box::new(curve::Server::new(keys.clone(), allowed.clone())))
            }
        }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.is_server() { "server" } else { "client" };
        match self.0 {
            Kind::Null => f.write_str("NULL"),
            Kind::PlainClient { .. } | Kind::PlainServer(_) | Kind::CurveClient { .. } | Kind::CurveServer { .. } => {
                write!(f, "{} {role}", self.mechanism())
            }
        }
    }
}

/// A name or password does not fit into PLAIN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {what} has {bytes} bytes, and PLAIN has room for 255: use a shorter one")]
pub struct CredentialsTooLong {
    what: &'static str,
    bytes: usize,
}

/// Whom the mechanism found the peer to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// The name with which the peer passed PLAIN.
    Plain(String),
    /// The public key of which the peer showed with CURVE that it has the secret one.
    Curve(PublicKey),
}

/// What this side of a connection says about itself and thinks of the other.
pub(crate) struct Local<'a> {
    pub(crate) socket_type: SocketType,
    pub(crate) identity: &'a Bytes,
    /// The peer connected to this side.
    pub(crate) accepted: bool,
    /// See `Options::router_accepts_push`.
    pub(crate) accepts_push: bool,
}

impl Local<'_> {
    /// Checks the peer's metadata.
    pub(crate) fn check(&self, metadata: &Metadata) -> Result<SocketType, ProtocolError> {
        let name = metadata.get("Socket-Type").map_or(&b""[..], |name| name);
        let unknown = || ProtocolError::UnknownSocketType(name[..name.len().min(32)].escape_ascii().to_string());
        let theirs = SocketType::from_name(name).ok_or_else(unknown)?;
        // RFC 37, "The Identity Property": 0 to 255 bytes.
        if metadata.get("Identity").is_some_and(|identity| identity.len() > 255) {
            return Err(ProtocolError::Malformed("READY"));
        }
        let disguised = self.socket_type == SocketType::Router && theirs == SocketType::Push;
        if self.socket_type.is_compatible(theirs) || (disguised && self.accepted && self.accepts_push) {
            return Ok(theirs);
        }
        Err(ProtocolError::Incompatible { ours: self.socket_type, theirs })
    }

    /// What this side tells a peer, whose type is known if it spoke first.
    pub(crate) fn metadata(&self, peer: Option<SocketType>) -> Metadata {
        // A PUSH peer checks that it is connected to a PULL one (RFC 37, "The Socket-Type Property"), so it is told that.
        let shown = match peer {
            Some(SocketType::Push) if self.socket_type == SocketType::Router => SocketType::Pull,
            _ => self.socket_type,
        };
        let metadata = Metadata::default().with("Socket-Type", shown.name());
        // RFC 37, "The Identity Property".
        if self.socket_type.announces_identity() {
            return metadata.with("Identity", self.identity.clone());
        }
        metadata
    }
}

/// A handshake came to its end.
pub(crate) struct Done {
    pub(crate) metadata: Metadata,
    pub(crate) peer_type: SocketType,
    pub(crate) user: Option<User>,
    /// What encrypts and decrypts all further frames.
    pub(crate) cipher: Option<Box<Cipher>>,
}

/// One connection's way through the mechanism.
pub(crate) enum Handshake {
    Null(null::Null),
    PlainClient(plain::Client),
    PlainServer(plain::Server),
    CurveClient(Box<curve::Client>),
    CurveServer(Box<curve::Server>),
}

impl Handshake {
    /// Says what is to be said first, when the greetings have been exchanged.
    pub(crate) fn start(&mut self, local: &Local<'_>, out: &mut BytesMut) {
        match self {
            Self::Null(null) => null.start(local, out),
            Self::PlainClient(client) => client.start(out),
            Self::CurveClient(client) => client.start(out),
            Self::PlainServer(_) | Self::CurveServer(_) => {}
        }
    }

    /// Takes a command other than ERROR. What `out` has is to be sent even after an error.
    pub(crate) fn receive(
        &mut self,
        name: &[u8],
        data: Bytes,
        local: &Local<'_>,
        out: &mut BytesMut,
    ) -> Result<Option<Done>, ProtocolError> {
        match self {
            Self::Null(null) => null.receive(name, data, local, out).map(Some),
            Self::PlainClient(client) => client.receive(name, data, local, out),
            Self::PlainServer(server) => server.receive(name, data, local, out),
            Self::CurveClient(client) => client.receive(name, data, local, out),
            Self::CurveServer(server) => server.receive(name, data, local, out),
        }
    }
}

/// Checks that the command which is due has come.
fn expect(expected: &'static str, name: &[u8]) -> Result<(), ProtocolError> {
    if name == expected.as_bytes() {
        return Ok(());
    }
    Err(ProtocolError::Unexpected { expected, found: name.escape_ascii().to_string() })
}

/// The text of ERROR for a peer that is refused. RFC 37, "The NULL Security Mechanism": it has no spaces. libzmq takes a
/// number of three digits for the answer of its authenticator.
pub(crate) fn refusal(error: &ProtocolError) -> Option<String> {
    match error {
        ProtocolError::Denied => Some("400".to_owned()),
        // RFC 37, "The Socket-Type Property".
        ProtocolError::Incompatible { ours, theirs } => Some(format!("socket-type-{theirs}-cannot-connect-to-{ours}")),
        ProtocolError::UnknownSocketType(_) => Some("socket-type-is-not-known".to_owned()),
        _ => None,
    }
}
