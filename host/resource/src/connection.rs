//! What a protocol gives the host for `[resources.x]`: a way to make connections, and what is done on one.

use async_trait::async_trait;
use wasmcage_core::request::Deadline;

use crate::{Operation, OperationReply, Phase, ReplyStream, ResourceError};

/// The outbound side, one for each `[resources.x]`. `pool` and `cache` of its section are not its business.
#[async_trait]
pub trait Resource: Send + Sync {
    /// What can be said of an operation before there is a connection.
    ///
    /// # Errors
    /// In phase `Check`: it cannot be done.
    fn check(&self, _operation: &Operation) -> Result<(), ResourceError> {
        Ok(())
    }

    /// Whether a rollback takes back what this operation did.
    fn undoes(&self, _operation: &Operation) -> bool {
        true
    }

    /// What keeps it from working now, for an operator; none if nothing is known. Answers at once.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Whether a connection that one module has used is never given to another, since its session may hold what the module
    /// left there and `Connection::reset` does not take away.
    fn keeps_modules_apart(&self) -> bool {
        false
    }

    /// # Errors
    /// In phase `Connect`: the other side cannot be reached.
    async fn connect(&self, deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError>;
}

/// One connection, used by one participant at a time: `begin`, `execute` (once or several times), then `commit` or
/// `rollback`. A future that is dropped, at the deadline or because nobody waits, leaves a connection that is discarded. Errors
/// say whether anything irreversible happened, and whether the connection can be used again.
#[async_trait]
pub trait Connection: Send {
    /// Begins a transaction, where the protocol has such.
    ///
    /// # Errors
    /// In phase `Begin`; an option that is not known: `BAD_OPERATION`, harmless.
    async fn begin(&mut self, options: &[(String, String)], deadline: Deadline) -> Result<(), ResourceError>;

    /// # Errors
    /// In phase `Execute`.
    async fn execute(&mut self, operation: Operation, deadline: Deadline) -> Result<OperationReply, ResourceError>;

    /// # Errors
    /// In phase `Commit`.
    async fn commit(&mut self, deadline: Deadline) -> Result<(), ResourceError>;

    /// # Errors
    /// In phase `Rollback`.
    async fn rollback(&mut self, deadline: Deadline) -> Result<(), ResourceError>;

    /// One operation as a transaction of its own; overridden where that is cheaper than four steps.
    ///
    /// # Errors
    /// See the steps.
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

    /// One operation as a transaction of its own, whose reply comes in parts. The connection comes back with the end of the
    /// stream, if it can be used again.
    ///
    /// # Errors
    /// `BAD_OPERATION` where replies come whole only; see the steps.
    async fn open(
        self: Box<Self>,
        _operation: Operation,
        _options: &[(String, String)],
        _deadline: Deadline,
    ) -> Result<(OperationReply, Box<dyn ReplyStream>), ResourceError> {
        let text = "its replies come whole: use `execute`";
        Err(ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, text))
    }

    /// That it must not be used again. Asked when it is given back and before each use; answers at once, without the other side.
    fn is_used_up(&self) -> bool {
        false
    }

    /// Whether it can be used now, asked when it was unused for a while.
    async fn is_healthy(&mut self) -> bool;

    /// What must happen before somebody else uses it, asked when its user gives it back.
    fn reuse(&self) -> Reuse {
        Reuse::AsItIs
    }

    /// Takes away what its user has left in it. Done after the user has the reply.
    ///
    /// # Errors
    /// The connection is discarded.
    async fn reset(&mut self) -> Result<(), ResourceError> {
        Ok(())
    }
}

/// Whether another may use a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    AsItIs,
    /// Once `Connection::reset` has succeeded.
    AfterReset,
    /// It is closed.
    Never,
}
