//! PostgreSQL behind a pooler such as PgBouncer, which may give each transaction to another connection of its own
//! (`statement_cache = 0`). Everything therefore happens within a transaction, which ends in one message with what takes away
//! all that it has left in the session: statements without a name, which the next `parse` replaces, and settings, locks and
//! temporary tables.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use sqlx::postgres::{PgConnectOptions, PgTypeInfo};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Either, Executor, PgConnection, Postgres, SqlSafeStr, Statement as _,
};

use super::{RESET, Values, begin, done, encoded, is_stale, write};
use crate::driver::{self, Begin, Done, RunError};
use crate::operation::Statement;
use crate::rows::Rows;

/// A reset gives the pooler's own settings back, which are not those that this client has begun with: see sqlx's start of a
/// session.
const SETTINGS: &str = "set client_encoding to 'UTF8'; set datestyle to 'ISO, MDY'; set timezone to 'UTC'";
/// Statements whose parameters' types are remembered; one more, and all are asked for again.
const STATEMENTS_MAX: usize = 500;

pub(crate) struct Pooled {
    connection: PgConnection,
    in_transaction: bool,
    /// Its session could not be reset.
    is_spent: bool,
    /// Types of the parameters of statements, as a server told them last.
    types: HashMap<Arc<str>, Arc<[PgTypeInfo]>>,
}

impl Pooled {
    pub(crate) async fn connect(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        // A pooler refuses parameters of a session's start that it does not know. One cached statement: the one that is asked
        // about, which is closed before anything else.
        let options = options.clone().statement_cache_capacity(1).extra_float_digits(None);
        let connection = options.connect().await?;
        Ok(Self { connection, in_transaction: false, is_spent: false, types: HashMap::new() })
    }

    /// Ends a transaction, and takes away all that it has left, in one message. `steps`: of the end.
    async fn end(&mut self, end: &str, steps: usize) -> Result<(), sqlx::Error> {
        self.in_transaction = false;
        let sql = AssertSqlSafe(format!("{end}; {RESET}; {SETTINGS}"));
        let mut done = (&mut self.connection).fetch_many(sqlx::raw_sql(sql));
        let mut ended = 0;
        while let Some(result) = done.next().await {
            match result {
                Ok(Either::Left(_)) => ended += 1,
                Ok(Either::Right(_)) => {}
                Err(error) if ended < steps => return Err(error),
                // The transaction itself has ended well.
                Err(error) => {
                    tracing::debug!(%error, "a session cannot be reset");
                    self.is_spent = true;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Of a statement's parameters. `true`: they were known before.
    async fn types(&mut self, sql: &Arc<str>) -> Result<(Arc<[PgTypeInfo]>, bool), RunError> {
        if let Some(types) = self.types.get(sql) {
            return Ok((types.clone(), true));
        }
        let prepared = (&mut self.connection).prepare(AssertSqlSafe(sql.clone()).into_sql_str()).await?;
        let types: Arc<[PgTypeInfo]> = match prepared.parameters() {
            Some(Either::Left(types)) => types.into(),
            _ => [].into(),
        };
        // It has a name on the server, which the next client of that server must not find.
        self.connection.clear_cached_statements().await?;
        if self.types.len() >= STATEMENTS_MAX {
            self.types.clear();
        }
        self.types.insert(sql.clone(), types.clone());
        Ok((types, false))
    }

    async fn run_prepared(&mut self, sql: &Arc<str>, values: &Values, rows: &mut Rows) -> Result<Done, RunError> {
        let (types, known) = if values.is_empty() { ([].into(), false) } else { self.types(sql).await? };
        let arguments = match encoded(values, &types) {
            Err(RunError::Parameter(_)) if known => {
                self.types.remove(sql);
                encoded(values, &self.types(sql).await?.0)?
            }
            encoded => encoded?,
        };
        let query = sqlx::query_with::<Postgres, _>(AssertSqlSafe(sql.clone()), arguments).persistent(false);
        let result = driver::drain::<Postgres>((&mut self.connection).fetch_many(query), rows, done, write).await;
        match result {
            Err(RunError::Database(error)) if is_stale(&error) => Err(RunError::Stale(error)),
            // The types may be others since a table was altered.
            Err(RunError::Database(error)) if known && is_of_class_42(&error) => {
                self.types.remove(sql);
                Err(RunError::Stale(error))
            }
            result => result,
        }
    }

    /// What cannot run in a transaction, as one message. It gives no rows that could be read.
    async fn run_plain(&mut self, sql: &Arc<str>, rows: &mut Rows) -> Result<Done, RunError> {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.clone()));
        driver::drain::<Postgres>((&mut self.connection).fetch_many(query), rows, done, write).await
    }
}

/// Mistakes of syntax, names and types.
fn is_of_class_42(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code.starts_with("42"))
}

#[async_trait]
impl driver::Driver for Pooled {
    fn needs_transactions(&self) -> bool {
        true
    }

    fn is_spent(&self) -> bool {
        self.is_spent
    }

    async fn begin(&mut self, options: Begin) -> Result<(), sqlx::Error> {
        (&mut self.connection).execute(AssertSqlSafe(begin(options))).await?;
        self.in_transaction = true;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), sqlx::Error> {
        // A commit that fails must leave no lock of the session either.
        self.end("select pg_advisory_unlock_all(); commit", 2).await
    }

    async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.end("rollback", 1).await
    }

    async fn run(&mut self, statement: Statement, rows: &mut Rows) -> Result<Done, RunError> {
        let Statement { sql, arguments, kind } = statement;
        if kind.marks_session {
            let text =
                "it names statements for the next ones of its session, and with statement_cache = 0 there is no such";
            return Err(RunError::Parameter(text.to_owned()));
        }
        match self.in_transaction {
            true => self.run_prepared(&sql, &arguments, rows).await,
            false if arguments.is_empty() => self.run_plain(&sql, rows).await,
            false => {
                let text = "a statement that cannot run in a transaction takes no parameters here";
                Err(RunError::Parameter(text.to_owned()))
            }
        }
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }
}
