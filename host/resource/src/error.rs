//! Why an operation did not do what it was to do.

use std::fmt;

/// What was being done when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Before anything was done.
    Check,
    /// While waiting for a connection of the pool.
    Acquire,
    Connect,
    Begin,
    Execute,
    Commit,
    Rollback,
}

/// One failure of one participant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceError {
    /// The resource's name, or `state`, `retried-call`, `call`. Set by `resource/`.
    pub participant: String,
    /// Its number in a transaction.
    pub index: usize,
    /// Stable, for programs: one of the constants here, or the protocol's own, such as an SQLSTATE.
    pub code: String,
    pub text: String,
    /// Nothing irreversible happened: it may be tried again.
    pub recoverable: bool,
    /// The connection is discarded.
    pub terminal: bool,
    pub phase: Phase,
}

impl ResourceError {
    pub const TIMED_OUT: &'static str = "timed-out";
    pub const NOT_PERMITTED: &'static str = "not-permitted";
    pub const NO_SUCH_RESOURCE: &'static str = "no-such-resource";
    /// The operation cannot be done by this resource: its action, a parameter.
    pub const BAD_OPERATION: &'static str = "bad-operation";
    /// The other side cannot be reached.
    pub const CONNECT: &'static str = "connect";
    /// The other side, or its answer, is gone.
    pub const DISCONNECTED: &'static str = "disconnected";
    /// A reply, or a part of one, that is longer than allowed.
    pub const TOO_LARGE: &'static str = "too-large";
    pub const OVERLOADED: &'static str = "overloaded";
    /// A bug in the host.
    pub const HOST_ERROR: &'static str = "host-error";

    /// Nothing was done, and the connection is as good as before.
    pub fn harmless(phase: Phase, code: impl Into<String>, text: impl Into<String>) -> Self {
        let (code, text) = (code.into(), text.into());
        Self { participant: String::new(), index: 0, code, text, recoverable: true, terminal: false, phase }
    }

    /// It may have been done, and the connection is of no more use.
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
