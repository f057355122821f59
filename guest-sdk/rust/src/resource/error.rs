//! Errors of operations on resources, and of transactions.

use std::fmt;

use crate::bindings::imports::wasmcage::cage::resources;
pub use crate::bindings::imports::wasmcage::cage::resources::Phase;

/// Why an operation or a transaction failed. `?` converts it to [`Error::Failed`](crate::Error::Failed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceError {
    /// The resource's name; in a transaction also `state`, `retried-call`, `call` or `transaction`.
    pub participant: String,
    /// Number of the participant in the transaction, from 0; 0 outside a transaction.
    pub index: u32,
    /// A code for programs, which never changes: `timed-out`, `not-permitted`, `connect`, .. or the protocol's own, such as an SQLSTATE.
    pub code: String,
    pub text: String,
    /// Nothing irreversible happened: the operation may be retried.
    pub recoverable: bool,
    /// The connection was discarded.
    pub terminal: bool,
    /// The step that failed.
    pub phase: Phase,
}

impl From<resources::ResourceError> for ResourceError {
    fn from(error: resources::ResourceError) -> Self {
        let resources::ResourceError { participant, index, code, text, recoverable, terminal, phase } = error;
        Self { participant, index, code, text, recoverable, terminal, phase }
    }
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { participant, code, text, .. } = self;
        let phase = match self.phase {
            Phase::Check => "check",
            Phase::Acquire => "acquire",
            Phase::Connect => "connect",
            Phase::Begin => "begin",
            Phase::Execute => "execute",
            Phase::Commit => "commit",
            Phase::Rollback => "rollback",
        };
        let recoverable = if self.recoverable { "recoverable" } else { "not recoverable" };
        write!(f, "{participant}: {text} (code {code}, phase {phase}, {recoverable})")
    }
}

impl std::error::Error for ResourceError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn an_error_is_readable_by_people() {
        let error = ResourceError {
            participant: "db".into(),
            index: 0,
            code: "23505".into(),
            text: "duplicate key".into(),
            recoverable: true,
            terminal: false,
            phase: Phase::Execute,
        };
        assert_eq!(error.to_string(), "db: duplicate key (code 23505, phase execute, recoverable)");
        let lost = ResourceError { recoverable: false, phase: Phase::Commit, ..error };
        assert_eq!(Error::from(lost), Error::failed("db: duplicate key (code 23505, phase commit, not recoverable)"));
    }
}
