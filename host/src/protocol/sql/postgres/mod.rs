//! PostgreSQL. The server says what type a parameter is of, as it understands the statement; values are encoded for that type.

mod decode;
mod encode;
mod numeric;

use async_trait::async_trait;
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgConnectOptions, PgQueryResult, PgRow, PgTypeInfo, PgValueFormat,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Either, Executor, PgConnection, Postgres, Row, SqlSafeStr,
    Statement as _, Type, ValueRef,
};

use super::driver::{self, Begin, Done, RunError};
use super::operation::Statement;
use super::rows::Rows;
use super::value::Cell;

pub(super) struct Driver {
    connection: PgConnection,
}

impl Driver {
    pub(super) async fn connect(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        let mut connection = options.connect().await?;
        // Without it, a statement runs to its end, with its locks, though the connection was dropped long ago. Servers
        // before version 14, and some systems, do not know it.
        match (&mut connection).execute("set client_connection_check_interval = '1s'").await {
            Ok(_) | Err(sqlx::Error::Database(_)) => Ok(Self { connection }),
            Err(error) => Err(error),
        }
    }

    async fn control(&mut self, sql: impl Into<String>) -> Result<(), sqlx::Error> {
        (&mut self.connection).execute(AssertSqlSafe(sql.into())).await.map(drop)
    }
}

#[async_trait]
impl driver::Driver for Driver {
    async fn begin(&mut self, options: Begin) -> Result<(), sqlx::Error> {
        let mut sql = "begin".to_owned();
        if let Some(isolation) = options.isolation {
            sql.push_str(" isolation level ");
            sql.push_str(isolation);
        }
        if options.read_only {
            sql.push_str(" read only");
        }
        self.control(sql).await
    }

    async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.control("commit").await
    }

    async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.control("rollback").await
    }

    async fn run(&mut self, statement: Statement, rows: &mut Rows) -> Result<Done, RunError> {
        let Statement { sql, arguments: values, .. } = statement;
        let mut arguments = PgArguments::default();
        if !values.is_empty() {
            // One round trip for a statement that this connection does not know yet.
            let prepared = (&mut self.connection).prepare(AssertSqlSafe(sql.as_str()).into_sql_str()).await?;
            let types = match prepared.parameters() {
                Some(Either::Left(types)) => types,
                _ => &[],
            };
            for ((name, value), info) in values.iter().zip(types) {
                let bytes = encode::parameter(value, info)
                    .map_err(|text| RunError::Parameter(format!("parameter {{{name}}}: {text}")))?;
                let encoded = Encoded { info: info.clone(), bytes };
                sqlx::Arguments::add(&mut arguments, encoded).map_err(sqlx::Error::Encode)?;
            }
        }
        let query = sqlx::query_with::<Postgres, _>(AssertSqlSafe(sql), arguments);
        driver::drain::<Postgres>((&mut self.connection).fetch_many(query), rows, done, write).await
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }
}

fn done(result: PgQueryResult) -> Done {
    Done { affected: result.rows_affected(), last_id: None }
}

/// A value in the binary form of the type that the server wants.
struct Encoded {
    info: PgTypeInfo,
    bytes: Option<Vec<u8>>,
}

impl Type<Postgres> for Encoded {
    fn type_info() -> PgTypeInfo {
        <str as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Encoded {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let Some(bytes) = &self.bytes else { return Ok(IsNull::Yes) };
        buffer.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.info.clone())
    }
}

fn write(row: &PgRow, index: usize, cell: Cell<'_>) -> Result<(), String> {
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
