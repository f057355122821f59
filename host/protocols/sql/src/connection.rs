//! One connection for the resource's pool: operations, transactions and streams, for any database.

use async_trait::async_trait;

use super::driver::{BeginOptions, DatabaseDriver, RunError};
use super::error;
use super::operation::{self, Statement};
use super::rows::{RowLimits, RowWriter};
use super::statement::{Dialect, StatementKind};
use super::stream::ResultStream;
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Connection, Operation, OperationReply, Phase, ReplyStream, ResourceError, Reuse};

const ISOLATION: &[(&str, &str)] = &[
    ("read-uncommitted", "read uncommitted"),
    ("read-committed", "read committed"),
    ("repeatable-read", "repeatable read"),
    ("serializable", "serializable"),
];

pub(super) struct SqlConnection {
    driver: Box<dyn DatabaseDriver>,
    dialect: Dialect,
    limits: RowLimits,
    transaction: TransactionState,
    /// Statements have run since the session was new or reset.
    used: bool,
    /// One of them may have left state that no reset removes.
    has_session_state: bool,
    /// The last failure was `RunError::Stale`.
    was_stale: bool,
}

/// PostgreSQL's code for a statement that cannot run in a transaction, such as `vacuum`. Nothing ran.
const NOT_IN_TRANSACTION: &str = "25001";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TransactionState {
    None,
    Open,
    /// A statement failed. PostgreSQL would roll it back at a commit without an error.
    Failed,
}

impl SqlConnection {
    pub(super) fn new(driver: Box<dyn DatabaseDriver>, dialect: Dialect, limits: RowLimits) -> Self {
        Self {
            driver,
            dialect,
            limits,
            transaction: TransactionState::None,
            used: false,
            has_session_state: false,
            was_stale: false,
        }
    }

    fn failure(&mut self, phase: Phase, error: RunError) -> ResourceError {
        self.was_stale = matches!(error, RunError::Stale(_));
        let in_transaction = self.transaction != TransactionState::None;
        error::running(phase, self.dialect, in_transaction, error)
    }

    /// Records the effects of a module's statement. It must be called before the statement runs.
    fn record(&mut self, statement: &Statement) -> StatementKind {
        self.used = true;
        self.has_session_state |= statement.kind.leaves_session_state;
        statement.kind
    }

    /// Runs one statement and appends `{"columns":..,"affected":..}` to `json`.
    async fn run(&mut self, statement: Statement, json: &mut Vec<u8>) -> Result<(), RunError> {
        let mut rows = RowWriter::whole(self.limits, json.len());
        let kind = self.record(&statement);
        let result = self.driver.run(statement, &mut rows).await?;
        json.push(b'{');
        json.extend_from_slice(&rows.finish().await?);
        // Without a write, databases report the rows that were read, or those of an earlier statement.
        let affected = if kind.writes { result.affected } else { 0 };
        let last_id = result.last_id.filter(|_| kind.writes);
        let last_id = last_id.map_or("null".to_owned(), |id| id.to_string());
        json.extend_from_slice(format!(",\"affected\":{affected},\"last_id\":{last_id}}}").as_bytes());
        Ok(())
    }

    async fn run_all(&mut self, statements: Vec<Statement>) -> Result<OperationReply, ResourceError> {
        let several = statements.len() > 1;
        let mut json = b"{\"results\":[".to_vec();
        for (index, statement) in statements.into_iter().enumerate() {
            if index > 0 {
                json.push(b',');
            }
            if let Err(error) = self.run(statement, &mut json).await {
                let mut error = self.failure(Phase::Execute, error);
                if several {
                    error.text = format!("statement {}: {}", index + 1, error.text);
                }
                return Err(error);
            }
        }
        json.extend_from_slice(b"]}");
        Ok(OperationReply { status: 200, headers: Vec::new(), body: json.into() })
    }

    /// Runs a statement whose rows are streamed, and commits its own transaction if it has one.
    pub(super) async fn stream(
        mut self: Box<Self>,
        statement: Statement,
        mut rows: RowWriter,
    ) -> Result<Box<Self>, ResourceError> {
        self.record(&statement);
        if let Err(error) = self.driver.run(statement, &mut rows).await {
            return Err(self.failure(Phase::Execute, error));
        }
        if let Err(error) = rows.finish().await {
            return Err(self.failure(Phase::Execute, error));
        }
        if self.transaction == TransactionState::Open {
            self.commit_transaction().await?;
        }
        Ok(self)
    }

    async fn begin_with(&mut self, options: &[(String, String)]) -> Result<(), ResourceError> {
        let options = begin_options(options)?;
        let begun = self.driver.begin(options).await;
        begun.map_err(|error| self.failure(Phase::Begin, error.into()))?;
        self.transaction = TransactionState::Open;
        Ok(())
    }

    async fn commit_transaction(&mut self) -> Result<(), ResourceError> {
        if self.transaction == TransactionState::Failed {
            let text = "a statement of the transaction failed: it can be rolled back only";
            return Err(ResourceError::harmless(Phase::Commit, ResourceError::BAD_OPERATION, text));
        }
        let committed = self.driver.commit().await;
        committed.map_err(|error| self.failure(Phase::Commit, error.into()))?;
        self.transaction = TransactionState::None;
        Ok(())
    }

    async fn roll_back(&mut self) -> Result<(), ResourceError> {
        let rolled_back = self.driver.rollback().await;
        rolled_back.map_err(|error| self.failure(Phase::Rollback, error.into()))?;
        self.transaction = TransactionState::None;
        Ok(())
    }

    /// Runs the statements as one transaction. After an error that is not terminal it is rolled back.
    async fn transact(
        &mut self,
        statements: Vec<Statement>,
        options: &[(String, String)],
    ) -> Result<OperationReply, ResourceError> {
        self.begin_with(options).await?;
        let result = match self.execute_statements(statements).await {
            Ok(reply) => self.commit_transaction().await.map(|()| reply),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if !error.terminal => {
                let was_stale = self.was_stale;
                let terminal = self.roll_back().await.is_err();
                self.was_stale = was_stale;
                Err(ResourceError { terminal, ..error })
            }
            result => result,
        }
    }

    async fn execute_statements(&mut self, statements: Vec<Statement>) -> Result<OperationReply, ResourceError> {
        let result = self.run_all(statements).await;
        if result.is_err() && self.transaction == TransactionState::Open {
            self.transaction = TransactionState::Failed;
        }
        result
    }
}

#[async_trait]
impl Connection for SqlConnection {
    async fn begin(&mut self, options: &[(String, String)], _deadline: Deadline) -> Result<(), ResourceError> {
        self.begin_with(options).await
    }

    async fn execute(&mut self, operation: Operation, _deadline: Deadline) -> Result<OperationReply, ResourceError> {
        let statements = operation::parse(&operation, self.dialect)?;
        self.execute_statements(statements).await
    }

    async fn commit(&mut self, _deadline: Deadline) -> Result<(), ResourceError> {
        self.commit_transaction().await
    }

    async fn rollback(&mut self, _deadline: Deadline) -> Result<(), ResourceError> {
        self.roll_back().await
    }

    /// A single statement without options is a transaction by itself, so it needs none around it.
    async fn execute_alone(
        &mut self,
        operation: Operation,
        options: &[(String, String)],
        _deadline: Deadline,
    ) -> Result<OperationReply, ResourceError> {
        let statements = operation::parse(&operation, self.dialect)?;
        let is_plain = options.is_empty() && statements.len() == 1;
        if is_plain && !self.driver.needs_transactions() {
            return self.run_all(statements).await;
        }
        self.was_stale = false;
        match self.transact(statements, options).await {
            // It was rolled back, and is retried with what is prepared anew.
            Err(error) if self.was_stale && !error.terminal => {
                self.transact(operation::parse(&operation, self.dialect)?, options).await
            }
            Err(error) if is_plain && error.code == NOT_IN_TRANSACTION && !error.terminal => {
                self.run_all(operation::parse(&operation, self.dialect)?).await
            }
            result => result,
        }
    }

    async fn open(
        mut self: Box<Self>,
        operation: Operation,
        options: &[(String, String)],
        _deadline: Deadline,
    ) -> Result<(OperationReply, Box<dyn ReplyStream>), ResourceError> {
        let mut statements = operation::parse(&operation, self.dialect)?;
        let (Some(statement), true) = (statements.pop(), statements.is_empty()) else {
            let text = "one statement can be streamed, not several";
            return Err(ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, text));
        };
        if !options.is_empty() || self.driver.needs_transactions() {
            self.begin_with(options).await?;
        }
        let reply = OperationReply { status: 200, ..OperationReply::default() };
        let limits = self.limits;
        Ok((reply, Box::new(ResultStream::new(self, statement, limits))))
    }

    fn reuse(&self) -> Reuse {
        if self.transaction != TransactionState::None || self.has_session_state || self.driver.is_unusable() {
            return Reuse::Never;
        }
        if self.used && self.driver.can_reset() { Reuse::AfterReset } else { Reuse::AsItIs }
    }

    async fn reset(&mut self) -> Result<(), ResourceError> {
        let reset = self.driver.reset().await;
        reset.map_err(|error| self.failure(Phase::Acquire, error.into()))?;
        self.used = false;
        Ok(())
    }

    async fn is_healthy(&mut self) -> bool {
        self.transaction == TransactionState::None && self.driver.ping().await.is_ok()
    }
}

fn begin_options(options: &[(String, String)]) -> Result<BeginOptions, ResourceError> {
    let mut begin = BeginOptions::default();
    let bad = |text: String| ResourceError::harmless(Phase::Begin, ResourceError::BAD_OPERATION, text);
    for (name, value) in options {
        match name.as_str() {
            "isolation" => {
                let found = ISOLATION.iter().find(|(known, _)| known == value);
                let known = || ISOLATION.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
                let (_, sql) = found.ok_or_else(|| bad(format!("isolation {value:?} (known: {})", known())))?;
                begin.isolation = Some(sql);
            }
            "read-only" => {
                begin.read_only =
                    value.parse().map_err(|_| bad(format!("read-only {value:?} (known: true, false)")))?;
            }
            other => return Err(bad(format!("begin option {other:?} (known: isolation, read-only)"))),
        }
    }
    Ok(begin)
}
