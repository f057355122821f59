//! The traits that a protocol implements for `[resources.x]`: `Resource` makes connections, `Connection` does operations.

use async_trait::async_trait;
use wasmcage_core::request::Deadline;

use crate::{Operation, OperationReply, Phase, ReplyStream, ResourceError};

/// The outbound side of a protocol, for one `[resources.x]`. It does not handle `pool` and `cache` of the section.
#[async_trait]
pub trait Resource: Send + Sync {
    /// Checks an operation as far as that needs no connection.
    ///
    /// # Errors
    /// In phase `Check`: the operation cannot be done.
    fn check(&self, _operation: &Operation) -> Result<(), ResourceError> {
        Ok(())
    }

    /// Returns whether a rollback undoes the effects of this operation.
    fn can_roll_back(&self, _operation: &Operation) -> bool {
        true
    }

    /// Returns the problem that keeps it from working now, for operators; none if none is known. Answers without waiting.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Returns whether a connection that one module has used must never serve another, because its session may hold state of
    /// the module that `Connection::reset` does not remove.
    fn keeps_modules_apart(&self) -> bool {
        false
    }

    /// Makes a connection.
    ///
    /// # Errors
    /// In phase `Connect`: the other side cannot be reached.
    async fn connect(&self, deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError>;
}

/// One connection, used by one participant at a time: `begin`, `execute` (once or several times), then `commit` or
/// `rollback`. If one of these futures is dropped, at the deadline or because nobody waits, the connection is discarded. Errors
/// say whether anything irreversible happened, and whether the connection can be used again.
#[async_trait]
pub trait Connection: Send {
    /// Begins a transaction, if the protocol has transactions.
    ///
    /// # Errors
    /// In phase `Begin`; `BAD_OPERATION`, harmless, for an unknown option.
    async fn begin(&mut self, options: &[(String, String)], deadline: Deadline) -> Result<(), ResourceError>;

    /// Does an operation.
    ///
    /// # Errors
    /// In phase `Execute`.
    async fn execute(&mut self, operation: Operation, deadline: Deadline) -> Result<OperationReply, ResourceError>;

    /// Commits the transaction.
    ///
    /// # Errors
    /// In phase `Commit`.
    async fn commit(&mut self, deadline: Deadline) -> Result<(), ResourceError>;

    /// Rolls the transaction back.
    ///
    /// # Errors
    /// In phase `Rollback`.
    async fn rollback(&mut self, deadline: Deadline) -> Result<(), ResourceError>;

    /// Does one operation in a transaction of its own. Protocols override it where that is cheaper than the separate steps.
    ///
    /// # Errors
    /// Those of the steps.
    async fn execute_alone(
        &mut self,
        operation: Operation,
        options: &[(String, String)],
        deadline: Deadline,
    ) -> Result<OperationReply, ResourceError> {
        self.begin(options, deadline).await?;
        match self.execute(operation, deadline).await {
            Ok(reply) => self.commit(deadline).await.map(|()| reply),
            Err(error) => {
                if !error.terminal && self.rollback(deadline).await.is_err() {
                    return Err(ResourceError { terminal: true, ..error });
                }
                Err(error)
            }
        }
    }

    /// Does one operation in a transaction of its own, whose reply comes in parts. At its end the stream returns the connection,
    /// if it can be used again.
    ///
    /// # Errors
    /// `BAD_OPERATION` where replies only come whole; those of the steps.
    async fn open(
        self: Box<Self>,
        _operation: Operation,
        _options: &[(String, String)],
        _deadline: Deadline,
    ) -> Result<(OperationReply, Box<dyn ReplyStream>), ResourceError> {
        let text = "it does not stream replies: use `execute`";
        Err(ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, text))
    }

    /// Returns whether it must not be used again. Called when it is returned and before each use; answers without waiting.
    fn is_used_up(&self) -> bool {
        false
    }

    /// Checks that it still works. Called when it was unused for a while.
    async fn is_healthy(&mut self) -> bool;

    /// Returns what must happen before its next use. Called when it is returned.
    fn reuse(&self) -> Reuse {
        Reuse::AsItIs
    }

    /// Removes state that its user has left in the session. Called after the user has the reply.
    ///
    /// # Errors
    /// The reset failed, and the connection is discarded.
    async fn reset(&mut self) -> Result<(), ResourceError> {
        Ok(())
    }
}

/// Whether, and when, a connection may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    AsItIs,
    /// After `Connection::reset` has succeeded.
    AfterReset,
    /// Never: it is closed.
    Never,
}
