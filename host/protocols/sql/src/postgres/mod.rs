//! PostgreSQL. The server infers the type of each parameter from the statement, and values are encoded for that type.

mod decode;
mod encode;
mod numeric;
mod pooled;

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgConnectOptions, PgDatabaseError, PgQueryResult, PgRow, PgTypeInfo, PgValueFormat,
};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Either, Executor, PgConnection, Postgres, Row, SqlSafeStr,
    Statement as _, Type, ValueRef,
};

use super::driver::{self, BeginOptions, RunError, StatementResult};
use super::operation::Statement;
use super::rows::RowWriter;
use super::value::{CellWriter, Value};

pub(super) use self::pooled::PooledPostgresDriver;

/// Without this setting a statement runs to its end, and keeps its locks, even if its connection was dropped. Servers
/// before version 14, and some operating systems, do not support it.
const CHECK_CONNECTION: &str = "set client_connection_check_interval = '1s'";
/// Does what `discard all` does, except for prepared statements and plans, which the connection keeps: cursors, the
/// role, settings, channels, advisory locks, the values of sequences and temporary tables are as in a new session.
const RESET: &str = "close all; reset session authorization; reset role; reset all; unlisten *; \
                     select pg_advisory_unlock_all(); discard sequences; discard temp";

/// The names and values of a statement's parameters.
type NamedArguments = [(String, Value)];

pub(super) struct PostgresDriver {
    connection: PgConnection,
    /// The server supports `CHECK_CONNECTION`.
    checks_connection: bool,
    in_transaction: bool,
}

impl PostgresDriver {
    pub(super) async fn connect(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        let mut connection = options.connect().await?;
        let checks_connection = match (&mut connection).execute(CHECK_CONNECTION).await {
            Ok(_) => true,
            Err(sqlx::Error::Database(_)) => false,
            Err(error) => return Err(error),
        };
        Ok(Self { connection, checks_connection, in_transaction: false })
    }

    async fn control(&mut self, sql: impl Into<String>) -> Result<(), sqlx::Error> {
        (&mut self.connection).execute(AssertSqlSafe(sql.into())).await.map(drop)
    }

    async fn try_run(
        &mut self,
        sql: &Arc<str>,
        values: &NamedArguments,
        rows: &mut RowWriter,
    ) -> Result<StatementResult, RunError> {
        // This is a round trip only if the statement is not cached.
        let prepared = (&mut self.connection).prepare(AssertSqlSafe(sql.clone()).into_sql_str()).await?;
        for column in prepared.columns() {
            let name = column.name();
            decode::writer_of(column.type_info())
                .map_err(|text| RunError::Column(format!("column {name:?}: {text}")))?;
        }
        let types = match prepared.parameters() {
            Some(Either::Left(types)) => types,
            _ => &[],
        };
        let query = sqlx::query_with::<Postgres, _>(AssertSqlSafe(sql.clone()), encode_all(values, types)?);
        driver::drain::<Postgres>((&mut self.connection).fetch_many(query), rows, statement_result, write).await
    }
}

#[async_trait]
impl driver::DatabaseDriver for PostgresDriver {
    fn can_reset(&self) -> bool {
        true
    }

    async fn reset(&mut self) -> Result<(), sqlx::Error> {
        match self.checks_connection {
            true => self.control(format!("{RESET}; {CHECK_CONNECTION}")).await,
            false => self.control(RESET).await,
        }
    }

    async fn begin(&mut self, options: BeginOptions) -> Result<(), sqlx::Error> {
        self.control(begin(options)).await?;
        self.in_transaction = true;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.in_transaction = false;
        self.control("commit").await
    }

    async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.in_transaction = false;
        self.control("rollback").await
    }

    /// Runs a statement. If its plan is outdated it is prepared again, and outside of a transaction also run again.
    async fn run(&mut self, statement: Statement, rows: &mut RowWriter) -> Result<StatementResult, RunError> {
        let Statement { sql, arguments, kind } = statement;
        if kind.changes_schema && self.in_transaction {
            // A later statement of the same transaction could not be run again if its plan were outdated.
            self.connection.clear_cached_statements().await?;
        }
        match self.try_run(&sql, &arguments, rows).await {
            Err(RunError::Database(error)) if is_stale(&error) && rows.is_empty() => {
                self.connection.clear_cached_statements().await?;
                match self.in_transaction {
                    true => Err(RunError::Stale(error)),
                    false => self.try_run(&sql, &arguments, rows).await,
                }
            }
            result => result,
        }
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }
}

fn begin(options: BeginOptions) -> String {
    let mut sql = "begin".to_owned();
    if let Some(isolation) = options.isolation {
        sql.push_str(" isolation level ");
        sql.push_str(isolation);
    }
    if options.read_only {
        sql.push_str(" read only");
    }
    sql
}

/// Returns whether the prepared statement is outdated or missing. The server reports that before anything has run,
/// unless it happens within a function of the database.
fn is_stale(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    let Some(error) = error.filter(|error| error.r#where().is_none()) else { return false };
    match error.code() {
        // A table was altered, and the cached plan has other columns.
        "0A000" => error.routine() == Some("RevalidateCachedQuery"),
        // The prepared statement does not exist; its name exists already.
        "26000" | "42P05" => true,
        _ => false,
    }
}

/// Encodes the values for the types of the parameters.
fn encode_all(values: &NamedArguments, types: &[PgTypeInfo]) -> Result<PgArguments, RunError> {
    let mut arguments = PgArguments::default();
    for ((name, value), info) in values.iter().zip(types) {
        let bytes = encode::parameter(value, info)
            .map_err(|text| RunError::Parameter(format!("parameter {{{name}}}: {text}")))?;
        let encoded = EncodedArgument { info: info.clone(), bytes };
        sqlx::Arguments::add(&mut arguments, encoded).map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn statement_result(result: PgQueryResult) -> StatementResult {
    StatementResult { affected: result.rows_affected(), last_id: None }
}

/// A value in the binary form of the parameter's type.
struct EncodedArgument {
    info: PgTypeInfo,
    bytes: Option<Vec<u8>>,
}

impl Type<Postgres> for EncodedArgument {
    fn type_info() -> PgTypeInfo {
        <str as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for EncodedArgument {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let Some(bytes) = &self.bytes else { return Ok(IsNull::Yes) };
        buffer.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.info.clone())
    }
}

fn write(row: &PgRow, index: usize, cell: CellWriter<'_>) -> Result<(), String> {
    let value = row.try_get_raw(index).map_err(|error| error.to_string())?;
    if value.is_null() {
        cell.null();
        return Ok(());
    }
    let info = value.type_info();
    if value.format() != PgValueFormat::Binary {
        return Err("a value in text form".into());
    }
    decode::cell(value.as_bytes().map_err(|error| error.to_string())?, &info, cell)
}
