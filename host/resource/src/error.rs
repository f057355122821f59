//! Errors of operations on resources.

use std::fmt;

/// The step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The check before anything was done.
    Check,
    /// Waiting for a connection of the pool.
    Acquire,
    Connect,
    Begin,
    Execute,
    Commit,
    Rollback,
}

/// The failure of a participant in a transaction, or of a single operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceError {
    /// The resource's name, or `state`, `retried-call`, `call`. This crate sets it, not the protocol.
    pub participant: String,
    /// The participant's number in the transaction.
    pub index: usize,
    /// A code for programs, which never changes: one of the constants here, or the protocol's own, such as an SQLSTATE.
    pub code: String,
    pub text: String,
    /// Nothing irreversible happened: the operation may be retried.
    pub recoverable: bool,
    /// The connection cannot be used again and is discarded.
    pub terminal: bool,
    pub phase: Phase,
}

impl ResourceError {
    pub const TIMED_OUT: &'static str = "timed-out";
    pub const NOT_PERMITTED: &'static str = "not-permitted";
    pub const NO_SUCH_RESOURCE: &'static str = "no-such-resource";
    /// The resource cannot do this operation, because of its action or a parameter.
    pub const BAD_OPERATION: &'static str = "bad-operation";
    /// The other side cannot be reached.
    pub const CONNECT: &'static str = "connect";
    /// The connection broke before the answer was complete.
    pub const DISCONNECTED: &'static str = "disconnected";
    /// A reply, or a part of one, is longer than allowed.
    pub const TOO_LARGE: &'static str = "too-large";
    pub const OVERLOADED: &'static str = "overloaded";
    /// A bug in the host.
    pub const HOST_ERROR: &'static str = "host-error";

    /// An error after which nothing was done and the connection can be used again.
    pub fn harmless(phase: Phase, code: impl Into<String>, text: impl Into<String>) -> Self {
        let (code, text) = (code.into(), text.into());
        Self { participant: String::new(), index: 0, code, text, recoverable: true, terminal: false, phase }
    }

    /// An error after which the operation may have been done and the connection is discarded.
    pub fn fatal(phase: Phase, code: impl Into<String>, text: impl Into<String>) -> Self {
        Self { recoverable: false, terminal: true, ..Self::harmless(phase, code, text) }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Check => "check",
            Self::Acquire => "acquire",
            Self::Connect => "connect",
            Self::Begin => "begin",
            Self::Execute => "execute",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
        })
    }
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { participant, code, text, phase, .. } = self;
        write!(f, "{participant}: {phase}: {code}: {text}")
    }
}

impl std::error::Error for ResourceError {}
