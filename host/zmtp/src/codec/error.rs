//! What is wrong with the bytes of a peer.

use super::greeting::MechanismName;
use crate::socket_type::SocketType;

/// Why a connection cannot go on. Each ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The first bytes are no signature of ZMTP.
    #[error("the peer does not speak ZMTP: its first bytes are {0:02x?}")]
    NotZmtp([u8; 10]),
    /// Versions 1 and 2 have no mechanisms, and are not spoken here.
    #[error("the peer speaks ZMTP {0}, and 3 is the lowest version that is accepted here")]
    Version(u8),
    /// Both sides must use the same mechanism.
    #[error("the peer's mechanism is {theirs}, and {ours} is this socket's")]
    Mechanism {
        /// This socket's.
        ours: MechanismName,
        /// The peer's.
        theirs: MechanismName,
    },
    /// Both sides want to be the server of the mechanism.
    #[error("both sides are the server of {mechanism}")]
    Roles {
        /// The mechanism of both.
        mechanism: MechanismName,
    },
    /// Bits that must be zero are set.
    #[error("a frame has the flags {0:#04x}, which are not valid")]
    Flags(u8),
    /// A frame is longer than `frame_bytes_max`.
    #[error("a frame of {bytes} bytes came, and {max} are allowed")]
    FrameTooLong {
        /// Its announced length.
        bytes: u64,
        /// The limit.
        max: usize,
    },
    /// A command is longer than `command_bytes_max`.
    #[error("a command of {bytes} bytes came, and {max} are allowed")]
    CommandTooLong {
        /// Its announced length.
        bytes: u64,
        /// The limit.
        max: usize,
    },
    /// The frames of a message are together longer than `message_bytes_max`.
    #[error("a message of more than {max} bytes came")]
    MessageTooLong {
        /// The limit.
        max: usize,
    },
    /// A message has more frames than `message_frames_max`.
    #[error("a message of more than {max} frames came")]
    TooManyFrames {
        /// The limit.
        max: usize,
    },
    /// A command's body does not follow its grammar.
    #[error("the command {0} is malformed")]
    Malformed(&'static str),
    /// A command came that is not due.
    #[error("{found} came where {expected} was due")]
    Unexpected {
        /// What was due.
        expected: &'static str,
        /// The name of the command that came, or what came instead of one.
        found: String,
    },
    /// A box of CURVE cannot be opened: wrong keys, or somebody changed it.
    #[error("the box in {0} cannot be opened: the keys do not match")]
    Box(&'static str),
    /// A nonce of CURVE is not greater than the one before.
    #[error("a nonce of CURVE came twice")]
    Nonce,
    /// The name and password, or the key, were not accepted here.
    #[error("the peer's credentials are not accepted")]
    Denied,
    /// The peer sent ERROR.
    #[error("the peer refused: {0:?}")]
    Refused(String),
    /// The peer's metadata lacks its socket type, or has an unknown one.
    #[error("the peer's socket type {0:?} is not known")]
    UnknownSocketType(String),
    /// The two socket types may not be connected.
    #[error("a {theirs} peer cannot be connected to a {ours} socket")]
    Incompatible {
        /// This socket's.
        ours: SocketType,
        /// The peer's.
        theirs: SocketType,
    },
}

impl ProtocolError {
    /// Whether trying again with the same settings is unlikely to end otherwise.
    #[must_use]
    pub const fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::NotZmtp(_)
                | Self::Version(_)
                | Self::Mechanism { .. }
                | Self::Roles { .. }
                | Self::Box(_)
                | Self::Denied
                | Self::Refused(_)
                | Self::UnknownSocketType(_)
                | Self::Incompatible { .. }
        )
    }
}
