//! What a connection needs of one database; and what all drivers do alike.

use async_trait::async_trait;
use futures_util::{Stream, StreamExt};
use sqlx::{Database, Either};

use super::operation::Statement;
use super::rows::{Rows, WriteCell};

/// Begin options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Begin {
    /// As SQL writes it, such as `repeatable read`.
    pub(super) isolation: Option<&'static str>,
    pub(super) read_only: bool,
}

/// What a statement did besides giving rows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    pub(super) affected: u64,
    pub(super) last_id: Option<i64>,
}

/// Why a statement did not do what it was to do.
#[derive(Debug)]
pub(super) enum RunError {
    Database(sqlx::Error),
    /// What the connection or the server had cached of the statement no longer fits the database: nothing ran, and the same
    /// statement is likely to do in a new transaction.
    Stale(sqlx::Error),
    /// The value of a parameter is of another type than the database wants: nothing ran.
    Parameter(String),
    /// A cell's type has no form in JSON.
    Cell(String),
    /// The same, of a statement that ran to its end.
    CellOfWhole(String),
    /// The type of a column has no form in JSON: nothing ran.
    Column(String),
    TooLarge(String),
    /// The consumer of a stream is gone.
    Abandoned,
}

impl From<sqlx::Error> for RunError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// One connection to a database. A future that is dropped leaves a driver that is to be dropped.
#[async_trait]
pub(super) trait Driver: Send {
    /// Whether each statement needs a transaction around it, since the server that it runs on may be another one after it.
    fn needs_transactions(&self) -> bool {
        false
    }

    /// Whether it must not be used again.
    fn is_spent(&self) -> bool {
        false
    }

    /// Whether `reset` takes away what statements have left in the session.
    fn can_reset(&self) -> bool {
        false
    }

    /// Makes the session as it was when the connection was new; prepared statements stay.
    ///
    /// # Errors
    /// The connection is of no more use.
    async fn reset(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    /// # Errors
    /// The database's, or a connection's that broke.
    async fn begin(&mut self, options: Begin) -> Result<(), sqlx::Error>;

    /// # Errors
    /// See `begin`.
    async fn commit(&mut self) -> Result<(), sqlx::Error>;

    /// # Errors
    /// See `begin`.
    async fn rollback(&mut self) -> Result<(), sqlx::Error>;

    /// # Errors
    /// See the kinds; after `Cell`, `TooLarge` and `Abandoned` the driver is to be dropped, and after some of the database's.
    async fn run(&mut self, statement: Statement, rows: &mut Rows) -> Result<Done, RunError>;

    /// # Errors
    /// The connection is broken.
    async fn ping(&mut self) -> Result<(), sqlx::Error>;
}

/// Takes all that a statement gives.
pub(super) async fn drain<D: Database>(
    mut stream: impl Stream<Item = Result<Either<D::QueryResult, D::Row>, sqlx::Error>> + Unpin + Send,
    rows: &mut Rows,
    done: fn(D::QueryResult) -> Done,
    write: WriteCell<D::Row>,
) -> Result<Done, RunError> {
    let mut last = Done::default();
    let mut unwritten = None;
    while let Some(next) = stream.next().await {
        match next? {
            Either::Left(result) => last = done(result),
            // The rest of its rows is read, so that the connection can be used again.
            Either::Right(_) if unwritten.is_some() => rows.skip()?,
            Either::Right(row) => match rows.add::<D>(row, write).await {
                Err(RunError::Cell(text)) if rows.are_whole() => unwritten = Some(text),
                added => added?,
            },
        }
    }
    match unwritten {
        None => Ok(last),
        Some(text) => Err(RunError::CellOfWhole(text)),
    }
}

/// For a cell whose type has no form in JSON.
pub(super) fn unknown_type(name: &str, cast: &str) -> String {
    format!("type {name} has no form in JSON: cast it, as in {cast}")
}
