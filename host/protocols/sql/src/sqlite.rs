//! SQLite. A cell's type is that of its value, refined by the column's declared type. A statement is interrupted when
//! nobody waits for it any more.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use sqlx::sqlite::{SqliteArguments, SqliteQueryResult, SqliteRow, SqliteValueRef};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Decode, Executor, Row, Sqlite, SqliteConnection, TypeInfo,
    ValueRef,
};

use super::driver::{self, BeginOptions, RunError, StatementResult};
use super::operation::Statement;
use super::rows::RowWriter;
use super::settings::SqliteFile;
use super::value::{CellWriter, Value};
use wasmcage_core::private;

/// How many steps of SQLite's virtual machine pass between two checks for an interruption: some tens of microseconds.
const INTERRUPT_CHECK_STEPS: i32 = 10_000;

pub(super) struct SqliteDriver {
    connection: SqliteConnection,
    /// Interrupts the statement, which runs on the connection's own thread.
    abandoned: Arc<AtomicBool>,
    read_only: bool,
    in_transaction: bool,
    /// The version of the schema for which statements are cached.
    schema_version: Option<i64>,
}

impl Drop for SqliteDriver {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl SqliteDriver {
    pub(super) async fn connect(file: &SqliteFile) -> Result<Self, sqlx::Error> {
        let SqliteFile { options, create } = file;
        if *create {
            let path = options.get_filename().to_owned();
            tokio::task::spawn_blocking(move || make_private(&path)).await.map_err(std::io::Error::other)??;
        }
        let mut connection = options.connect().await?;
        let abandoned = Arc::new(AtomicBool::new(false));
        let flag = abandoned.clone();
        let is_wanted = move || !flag.load(Ordering::Relaxed);
        connection.lock_handle().await?.set_progress_handler(INTERRUPT_CHECK_STEPS, is_wanted);
        Ok(Self { connection, abandoned, read_only: false, in_transaction: false, schema_version: None })
    }

    async fn control(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        (&mut self.connection).execute(sql).await.map(drop)
    }

    /// Drops the cached statements that were prepared for another schema. The client library keeps a statement's
    /// columns from when it was prepared, while SQLite prepares it again by itself, and the library's thread panics if
    /// there are more columns then. `sql` ends with a query for the schema's version.
    async fn check_schema(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        let row = (&mut self.connection).fetch_one(sql).await?;
        let version: i64 = row.try_get(0)?;
        if self.schema_version.replace(version).is_some_and(|before| before != version) {
            self.connection.clear_cached_statements().await?;
            // This makes SQLite notice that its schema in memory is outdated, and read it again.
            self.control("select 1 from sqlite_schema limit 0").await?;
        }
        Ok(())
    }

    async fn make_writable(&mut self) -> Result<(), sqlx::Error> {
        if std::mem::take(&mut self.read_only) {
            self.control("pragma query_only = 0").await?;
        }
        Ok(())
    }
}

#[async_trait]
impl driver::DatabaseDriver for SqliteDriver {
    /// A transaction that may write takes the lock at once: if it read first and another one wrote meanwhile, it would
    /// have to fail. SQLite's isolation is always serializable, whatever the options say.
    async fn begin(&mut self, options: BeginOptions) -> Result<(), sqlx::Error> {
        let begin = match options.read_only {
            true => "begin; pragma query_only = 1; pragma schema_version",
            false => "begin immediate; pragma schema_version",
        };
        self.read_only = options.read_only;
        self.check_schema(begin).await?;
        self.in_transaction = true;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.control("commit").await?;
        self.in_transaction = false;
        self.make_writable().await
    }

    async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.control("rollback").await?;
        self.in_transaction = false;
        self.make_writable().await
    }

    async fn run(&mut self, statement: Statement, rows: &mut RowWriter) -> Result<StatementResult, RunError> {
        let Statement { sql, arguments, kind } = statement;
        let mut values = SqliteArguments::default();
        for (name, value) in arguments {
            bind(&mut values, value).map_err(|text| RunError::Parameter(format!("parameter {{{name}}}: {text}")))?;
        }
        // Within a transaction the schema is that of its beginning, or changed by the module itself.
        if kind.gives_rows && !self.in_transaction {
            self.check_schema("pragma schema_version").await?;
        }
        let query = sqlx::query_with::<Sqlite, _>(AssertSqlSafe(sql), values);
        let mut result =
            driver::drain::<Sqlite>((&mut self.connection).fetch_many(query), rows, statement_result, write).await?;
        if kind.changes_schema {
            self.connection.clear_cached_statements().await?;
        }
        // SQLite reports the last row that this connection has inserted, even if another statement did.
        result.last_id = result.last_id.filter(|_| kind.inserts && result.affected > 0);
        Ok(result)
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }
}

/// Creates the file with access for its user only. SQLite reads an empty file as a new database, and gives the files
/// that it makes beside it the same mode.
fn make_private(path: &Path) -> io::Result<()> {
    match private::open(path, File::options().write(true).create_new(true)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn statement_result(result: SqliteQueryResult) -> StatementResult {
    StatementResult { affected: result.rows_affected(), last_id: Some(result.last_insert_rowid()) }
}

fn bind(arguments: &mut SqliteArguments, value: Value) -> Result<(), String> {
    use sqlx::Arguments;
    match value {
        Value::Null => arguments.add(None::<i64>),
        Value::Bool(value) => arguments.add(value),
        Value::Integer(value) => arguments.add(value),
        // SQLite would store null.
        Value::Float(value) if value.is_nan() => return Err("SQLite has no NaN".into()),
        Value::Float(value) => arguments.add(value),
        Value::Text(text) | Value::Json(text) => arguments.add(text),
        Value::Decimal(decimal) => arguments.add(decimal.0),
        Value::Bytes(bytes) => arguments.add(bytes),
        Value::Date(date) => arguments.add(date.to_string()),
        Value::Time(time) => arguments.add(time.to_string()),
        // SQLite's own functions write a space.
        Value::DateTime(time) => arguments.add(time.to_string().replacen('T', " ", 1)),
        Value::Timestamp(time) => arguments.add(time.to_string().replacen('T', " ", 1)),
        Value::Uuid(uuid) => arguments.add(uuid.hyphenated().to_string()),
        Value::Array(_) => return Err("SQLite has no arrays: give JSON, and `json_each` in the statement".into()),
    }
    .map_err(|error| error.to_string())
}

fn write(row: &SqliteRow, index: usize, cell: CellWriter<'_>) -> Result<(), String> {
    let value = row.try_get_raw(index).map_err(|error| error.to_string())?;
    if value.is_null() {
        cell.null();
        return Ok(());
    }
    let declared = row.column(index).type_info().name();
    // This is the value's own type; a column may hold values of any type.
    match value.type_info().name() {
        "INTEGER" => match (decoded::<i64>(value)?, declared) {
            (bool @ (0 | 1), "BOOLEAN") => cell.bool(bool == 1),
            (integer, _) => cell.integer(integer),
        },
        "REAL" => cell.float(decoded(value)?),
        "BLOB" => cell.bytes(decoded(value)?),
        "TEXT" => text_or_time(decoded(value)?, declared, cell),
        other => return Err(driver::unknown_type(other, "cast(x as text)")),
    }
    Ok(())
}

/// Writes a text, or a date or time if the column is declared so and the text is one.
fn text_or_time(text: &str, declared: &str, cell: CellWriter<'_>) {
    let tagged = match declared {
        "DATE" => text.parse::<jiff::civil::Date>().ok().map(|date| ("date", date.to_string())),
        "TIME" => text.parse::<jiff::civil::Time>().ok().map(|time| ("time", time.to_string())),
        "DATETIME" => match text.parse::<jiff::Timestamp>() {
            Ok(timestamp) => Some(("timestamp", timestamp.to_string())),
            Err(_) => text.parse::<jiff::civil::DateTime>().ok().map(|time| ("datetime", time.to_string())),
        },
        _ => None,
    };
    match tagged {
        Some((tag, text)) => cell.tagged(tag, text),
        None => cell.text(text),
    }
}

fn decoded<'r, T: Decode<'r, Sqlite>>(value: SqliteValueRef<'r>) -> Result<T, String> {
    T::decode(value).map_err(|error| error.to_string())
}
