//! SQLite: types by what a cell holds, refined by the column's declared type; a statement that nobody waits for is interrupted.

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

use super::driver::{self, Begin, Done, RunError};
use super::operation::Statement;
use super::rows::Rows;
use super::settings::SqliteFile;
use super::value::{Cell, Value};
use wasmcage_core::private;

/// Steps of SQLite's machine between two looks at whether anyone still waits: some tens of microseconds.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

pub(super) struct Driver {
    connection: SqliteConnection,
    /// A statement runs on the connection's own thread: this ends it.
    abandoned: Arc<AtomicBool>,
    read_only: bool,
    in_transaction: bool,
    /// Of the schema for which statements are cached.
    schema_version: Option<i64>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl Driver {
    pub(super) async fn connect(file: &SqliteFile) -> Result<Self, sqlx::Error> {
        let SqliteFile { options, create } = file;
        if *create {
            let path = options.get_filename().to_owned();
            tokio::task::spawn_blocking(move || make_private(&path)).await.map_err(std::io::Error::other)??;
        }
        let mut connection = options.connect().await?;
        let abandoned = Arc::new(AtomicBool::new(false));
        let seen = abandoned.clone();
        let go_on = move || !seen.load(Ordering::Relaxed);
        connection.lock_handle().await?.set_progress_handler(STEPS_BETWEEN_LOOKS, go_on);
        Ok(Self { connection, abandoned, read_only: false, in_transaction: false, schema_version: None })
    }

    async fn control(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        (&mut self.connection).execute(sql).await.map(drop)
    }

    /// Forgets the statements that were prepared for another schema. The client library keeps the columns that a statement had
    /// when it was prepared, and its thread panics when there are more of them; SQLite itself prepares it anew, unseen.
    /// `first` is run before the look at the schema, in the same step.
    async fn check_schema(&mut self, first: &'static str) -> Result<(), sqlx::Error> {
        let row = (&mut self.connection).fetch_one(first).await?;
        let version: i64 = row.try_get(0)?;
        if self.schema_version.replace(version).is_some_and(|before| before != version) {
            self.connection.clear_cached_statements().await?;
            // It finds that the schema in memory is out of date, and reads it again.
            self.control("select 1 from sqlite_schema limit 0").await?;
        }
        Ok(())
    }

    async fn writable_again(&mut self) -> Result<(), sqlx::Error> {
        if std::mem::take(&mut self.read_only) {
            self.control("pragma query_only = 0").await?;
        }
        Ok(())
    }
}

#[async_trait]
impl driver::Driver for Driver {
    /// A transaction that may write takes the lock at once: one that first reads, and then finds another writer, would have to
    /// fail. Whatever isolation is asked for, SQLite's is serializable.
    async fn begin(&mut self, options: Begin) -> Result<(), sqlx::Error> {
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
        self.writable_again().await
    }

    async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.control("rollback").await?;
        self.in_transaction = false;
        self.writable_again().await
    }

    async fn run(&mut self, statement: Statement, rows: &mut Rows) -> Result<Done, RunError> {
        let Statement { sql, arguments, kind } = statement;
        let mut values = SqliteArguments::default();
        for (name, value) in arguments {
            bind(&mut values, value).map_err(|text| RunError::Parameter(format!("parameter {{{name}}}: {text}")))?;
        }
        // In a transaction, the schema is the one that was there when it began, or the module's own.
        if kind.gives_rows && !self.in_transaction {
            self.check_schema("pragma schema_version").await?;
        }
        let query = sqlx::query_with::<Sqlite, _>(AssertSqlSafe(sql), values);
        let mut done = driver::drain::<Sqlite>((&mut self.connection).fetch_many(query), rows, done, write).await?;
        if kind.changes_schema {
            self.connection.clear_cached_statements().await?;
        }
        // SQLite tells the number of the last row that this connection has inserted, whenever that was.
        done.last_id = done.last_id.filter(|_| kind.inserts && done.affected > 0);
        Ok(done)
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }
}

/// SQLite takes an empty file for a new database, and gives the files that it makes beside it the same mode.
fn make_private(path: &Path) -> io::Result<()> {
    match private::open(path, File::options().write(true).create_new(true)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn done(result: SqliteQueryResult) -> Done {
    Done { affected: result.rows_affected(), last_id: Some(result.last_insert_rowid()) }
}

fn bind(arguments: &mut SqliteArguments, value: Value) -> Result<(), String> {
    use sqlx::Arguments;
    match value {
        Value::Null => arguments.add(None::<i64>),
        Value::Bool(value) => arguments.add(value),
        Value::Integer(value) => arguments.add(value),
        // SQLite takes it for null.
        Value::Float(value) if value.is_nan() => return Err("SQLite has no NaN".into()),
        Value::Float(value) => arguments.add(value),
        Value::Text(text) | Value::Json(text) => arguments.add(text),
        Value::Decimal(decimal) => arguments.add(decimal.0),
        Value::Bytes(bytes) => arguments.add(bytes),
        Value::Date(date) => arguments.add(date.to_string()),
        Value::Time(time) => arguments.add(time.to_string()),
        // As SQLite's own functions write it.
        Value::DateTime(time) => arguments.add(time.to_string().replacen('T', " ", 1)),
        Value::Timestamp(time) => arguments.add(time.to_string().replacen('T', " ", 1)),
        Value::Uuid(uuid) => arguments.add(uuid.hyphenated().to_string()),
        Value::Array(_) => return Err("SQLite has no arrays: give JSON, and `json_each` in the statement".into()),
    }
    .map_err(|error| error.to_string())
}

fn write(row: &SqliteRow, index: usize, cell: Cell<'_>) -> Result<(), String> {
    let value = row.try_get_raw(index).map_err(|error| error.to_string())?;
    if value.is_null() {
        cell.null();
        return Ok(());
    }
    let declared = row.column(index).type_info().name();
    // A match on the type that the value itself has: a column may hold any.
    match value.type_info().name() {
        "INTEGER" => match (decoded::<i64>(value)?, declared) {
            (bool @ (0 | 1), "BOOLEAN") => cell.bool(bool == 1),
            (integer, _) => cell.integer(integer),
        },
        "REAL" => cell.float(decoded(value)?),
        "BLOB" => cell.bytes(decoded(value)?),
        "TEXT" => moment(decoded(value)?, declared, cell),
        other => return Err(driver::unknown_type(other, "cast(x as text)")),
    }
    Ok(())
}

/// A text that its column's declared type makes a date or a time, if it is one.
fn moment(text: &str, declared: &str, cell: Cell<'_>) {
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
