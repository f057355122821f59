//! PostgreSQL behind a pooler such as PgBouncer, which may run each transaction in another session (`statement_cache =
//! 0`). So everything runs within a transaction, and the message that ends it also removes all that it has left in the
//! session: settings, locks and temporary tables. Statements have no names, so that the next `parse` replaces them.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use sqlx::postgres::{PgConnectOptions, PgTypeInfo};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Either, Executor, PgConnection, Postgres, SqlSafeStr, Statement as _,
};

use super::{NamedArguments, RESET, begin, encode_all, is_stale, statement_result, write};
use crate::driver::{self, BeginOptions, RunError, StatementResult};
use crate::operation::Statement;
use crate::rows::RowWriter;

/// The settings with which sqlx begins a session. A reset restores the pooler's instead.
const SETTINGS: &str = "set client_encoding to 'UTF8'; set datestyle to 'ISO, MDY'; set timezone to 'UTC'";
/// The most statements whose parameter types are cached; at a further one the cache is cleared.
const STATEMENTS_MAX: usize = 500;

pub(crate) struct PooledPostgresDriver {
    connection: PgConnection,
    in_transaction: bool,
    /// The session could not be reset.
    is_unusable: bool,
    /// The parameter types of statements, as the server gave them last.
    types: HashMap<Arc<str>, Arc<[PgTypeInfo]>>,
}

impl PooledPostgresDriver {
    pub(crate) async fn connect(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        // A pooler refuses start-up parameters that it does not know. The cache holds one statement: the one whose
        // types are asked for, which is closed before anything else runs.
        let options = options.clone().statement_cache_capacity(1).extra_float_digits(None);
        let connection = options.connect().await?;
        Ok(Self { connection, in_transaction: false, is_unusable: false, types: HashMap::new() })
    }

    /// Ends a transaction and resets the session in one message. `statements` is the number of statements in `sql_end`.
    async fn end(&mut self, sql_end: &str, statements: usize) -> Result<(), sqlx::Error> {
        self.in_transaction = false;
        let sql = AssertSqlSafe(format!("{sql_end}; {RESET}; {SETTINGS}"));
        let mut results = (&mut self.connection).fetch_many(sqlx::raw_sql(sql));
        let mut completed = 0;
        while let Some(result) = results.next().await {
            match result {
                Ok(Either::Left(_)) => completed += 1,
                Ok(Either::Right(_)) => {}
                Err(error) if completed < statements => return Err(error),
                // The transaction itself has ended without an error.
                Err(error) => {
                    tracing::debug!(%error, "a session cannot be reset");
                    self.is_unusable = true;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The types of a statement's parameters, and whether they were cached.
    async fn types(&mut self, sql: &Arc<str>) -> Result<(Arc<[PgTypeInfo]>, bool), RunError> {
        if let Some(types) = self.types.get(sql) {
            return Ok((types.clone(), true));
        }
        let prepared = (&mut self.connection).prepare(AssertSqlSafe(sql.clone()).into_sql_str()).await?;
        let types: Arc<[PgTypeInfo]> = match prepared.parameters() {
            Some(Either::Left(types)) => types.into(),
            _ => [].into(),
        };
        // This prepared statement has a name, which another client of the session must not meet.
        self.connection.clear_cached_statements().await?;
        if self.types.len() >= STATEMENTS_MAX {
            self.types.clear();
        }
        self.types.insert(sql.clone(), types.clone());
        Ok((types, false))
    }

    async fn run_prepared(
        &mut self,
        sql: &Arc<str>,
        values: &NamedArguments,
        rows: &mut RowWriter,
    ) -> Result<StatementResult, RunError> {
        let (types, cached) = if values.is_empty() { ([].into(), false) } else { self.types(sql).await? };
        let arguments = match encode_all(values, &types) {
            Err(RunError::Parameter(_)) if cached => {
                self.types.remove(sql);
                encode_all(values, &self.types(sql).await?.0)?
            }
            encoded => encoded?,
        };
        let query = sqlx::query_with::<Postgres, _>(AssertSqlSafe(sql.clone()), arguments).persistent(false);
        let result =
            driver::drain::<Postgres>((&mut self.connection).fetch_many(query), rows, statement_result, write).await;
        match result {
            Err(RunError::Database(error)) if is_stale(&error) => Err(RunError::Stale(error)),
            // The types may have changed because a table was altered.
            Err(RunError::Database(error)) if cached && is_of_class_42(&error) => {
                self.types.remove(sql);
                Err(RunError::Stale(error))
            }
            result => result,
        }
    }

    /// Runs a statement that cannot run in a transaction, as a single message. It returns no rows.
    async fn run_plain(&mut self, sql: &Arc<str>, rows: &mut RowWriter) -> Result<StatementResult, RunError> {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.clone()));
        driver::drain::<Postgres>((&mut self.connection).fetch_many(query), rows, statement_result, write).await
    }
}

/// Returns whether the error is one of syntax, names or types.
fn is_of_class_42(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code.starts_with("42"))
}

#[async_trait]
impl driver::DatabaseDriver for PooledPostgresDriver {
    fn needs_transactions(&self) -> bool {
        true
    }

    fn is_unusable(&self) -> bool {
        self.is_unusable
    }

    async fn begin(&mut self, options: BeginOptions) -> Result<(), sqlx::Error> {
        (&mut self.connection).execute(AssertSqlSafe(begin(options))).await?;
        self.in_transaction = true;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), sqlx::Error> {
        // Advisory locks are released first, so that a commit that fails leaves none behind.
        self.end("select pg_advisory_unlock_all(); commit", 2).await
    }

    async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.end("rollback", 1).await
    }

    async fn run(&mut self, statement: Statement, rows: &mut RowWriter) -> Result<StatementResult, RunError> {
        let Statement { sql, arguments, kind } = statement;
        if kind.leaves_session_state {
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
