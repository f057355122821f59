//! The trait that each kind of database implements, and what all of them do alike.

use async_trait::async_trait;
use futures_util::{Stream, StreamExt};
use sqlx::{Database, Either};

use super::operation::Statement;
use super::rows::{RowWriter, WriteCell};

/// The options of a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BeginOptions {
    /// The level in SQL's words, such as `repeatable read`.
    pub(super) isolation: Option<&'static str>,
    pub(super) read_only: bool,
}

/// The result of a statement besides its rows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StatementResult {
    pub(super) affected: u64,
    pub(super) last_id: Option<i64>,
}

/// Why a statement failed.
#[derive(Debug)]
pub(super) enum RunError {
    Database(sqlx::Error),
    /// The plan that the connection or the server had cached no longer fits the database. Nothing ran, and the
    /// statement is likely to succeed in a new transaction.
    Stale(sqlx::Error),
    /// A parameter's value has the wrong type. Nothing ran.
    Parameter(String),
    /// A cell's type cannot be expressed in JSON.
    Cell(String),
    /// A cell's type cannot be expressed in JSON, and the statement ran to its end.
    CellAfterEnd(String),
    /// A column's type cannot be expressed in JSON. Nothing ran.
    Column(String),
    TooLarge(String),
    /// The consumer of the stream has gone.
    Abandoned,
}

impl From<sqlx::Error> for RunError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// One connection to a database. If a future of these methods is dropped before its end, the driver has to be dropped,
/// too.
#[async_trait]
pub(super) trait DatabaseDriver: Send {
    /// Returns whether each statement needs a transaction around it, since the next one may run in another session.
    fn needs_transactions(&self) -> bool {
        false
    }

    /// Returns whether the connection must not be used again.
    fn is_unusable(&self) -> bool {
        false
    }

    /// Returns whether `reset` removes the state that statements have left in the session.
    fn can_reset(&self) -> bool {
        false
    }

    /// Resets the session to that of a new connection; prepared statements stay.
    ///
    /// # Errors
    /// The connection cannot be used any more.
    async fn reset(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    /// # Errors
    /// The database refuses, or the connection is broken.
    async fn begin(&mut self, options: BeginOptions) -> Result<(), sqlx::Error>;

    /// # Errors
    /// See `begin`.
    async fn commit(&mut self) -> Result<(), sqlx::Error>;

    /// # Errors
    /// See `begin`.
    async fn rollback(&mut self) -> Result<(), sqlx::Error>;

    /// Runs a statement and writes its rows.
    ///
    /// # Errors
    /// See `RunError`. After `Cell`, `TooLarge` and `Abandoned` the driver has to be dropped, and after some errors of
    /// the database.
    async fn run(&mut self, statement: Statement, rows: &mut RowWriter) -> Result<StatementResult, RunError>;

    /// # Errors
    /// The connection is broken.
    async fn ping(&mut self) -> Result<(), sqlx::Error>;
}

/// Reads all rows and results of a statement.
pub(super) async fn drain<D: Database>(
    mut stream: impl Stream<Item = Result<Either<D::QueryResult, D::Row>, sqlx::Error>> + Unpin + Send,
    rows: &mut RowWriter,
    result_of: fn(D::QueryResult) -> StatementResult,
    write: WriteCell<D::Row>,
) -> Result<StatementResult, RunError> {
    let mut last = StatementResult::default();
    let mut cell_error = None;
    while let Some(next) = stream.next().await {
        match next? {
            Either::Left(result) => last = result_of(result),
            // The other rows are read, so that the connection can be used again.
            Either::Right(_) if cell_error.is_some() => rows.skip()?,
            Either::Right(row) => match rows.add::<D>(row, write).await {
                Err(RunError::Cell(text)) if rows.is_whole() => cell_error = Some(text),
                added => added?,
            },
        }
    }
    match cell_error {
        None => Ok(last),
        Some(text) => Err(RunError::CellAfterEnd(text)),
    }
}

/// The error text for a type that cannot be expressed in JSON.
pub(super) fn unknown_type(name: &str, cast: &str) -> String {
    format!("type {name} has no form in JSON: cast it, as in {cast}")
}
