//! Protocol `sql`: databases as resources, through sqlx: SQLite, PostgreSQL, MySQL and MariaDB.
//!
//! **Operation.** Action `execute`, target and headers empty, body JSON:
//!
//! ```json
//! {"sql": "insert into t values ({id}, {name})", "values": {"id": 1, "name": "x"}}
//! {"statements": [{"sql": "..", "values": {..}}, ..], "values": {..}}
//! ```
//!
//! `{name}` is a parameter: its value never becomes part of the text. A statement's own `values` override the
//! operation's. `{{` and `}}` stand for braces. Strings, quoted names, comments and dollar quotes are left as they are.
//! One entry is one statement; several are one transaction. A statement must not begin, commit or roll back a
//! transaction; the caller of the resource does that. Begin options: `isolation` (`read-uncommitted`, `read-committed`,
//! `repeatable-read`, `serializable`), `read-only` (`true`, `false`).
//!
//! **Reply.** `{"results": [{"columns": ["a"], "rows": [[1]], "affected": 0, "last_id": null}]}`, one for each
//! statement. `columns` is empty when there are no rows; `affected` counts the rows that a writing statement changed;
//! `last_id` is the number that SQLite, MySQL or MariaDB gave to an inserted row. Streamed, each part is `{"columns":
//! [..], "rows": [..]}`.
//!
//! **Values**, in both directions:
//!
//! | JSON | value |
//! |---|---|
//! | `null`, `true`, `"text"` | null, bool, text |
//! | `1` | integer of 64 bits |
//! | `1.0`, `1e300`, `{"float": "NaN"}`, `"Infinity"`, `"-Infinity"` | float |
//! | `{"decimal": "1.10"}` | number as exact as the database keeps it; integers beyond 64 bits too |
//! | `{"bytes": "AAE="}` | bytes, base64 |
//! | `{"date": "2026-11-21"}`, `{"time": "10:00:00.5"}` | date, time of day (MySQL: also a time span) |
//! | `{"datetime": "2026-11-21T10:00:00.123456"}` | date and time without zone |
//! | `{"timestamp": "2026-11-21T10:00:00.123456Z"}` | moment in time |
//! | `{"json": ..}` | JSON document |
//! | `{"uuid": "..."}` | UUID |
//! | `{"array": [..]}` | array of one dimension, PostgreSQL only |
//!
//! A database that lacks a type stores the text: SQLite decimals, dates, JSON and UUIDs, MySQL UUIDs and MariaDB JSON.
//! SQLite recognizes bools, dates and times by the column's declared type. Timestamps are stored in UTC, times to the
//! microsecond.

mod connection;
mod driver;
mod error;
mod mysql;
mod operation;
mod postgres;
mod rows;
mod settings;
mod sqlite;
mod statement;
mod stream;
#[cfg(test)]
mod tests;
mod value;

use async_trait::async_trait;

use self::connection::SqlConnection;
use self::driver::DatabaseDriver;
use self::settings::{DatabaseAddress, SqlSettings};
use self::statement::Dialect;
use wasmcage_config::{ConfigError, ProtocolInfo, Section};
use wasmcage_core::request::Deadline;
use wasmcage_protocol::Protocol;
use wasmcage_resource::{Connection, Operation, Phase, Resource, ResourceError};

pub struct SqlProtocol;

impl Protocol for SqlProtocol {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new("sql")
    }

    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Ok(Box::new(SqlResource { settings: SqlSettings::read(section)? }))
    }
}

/// A resource: one database, as configured.
struct SqlResource {
    settings: SqlSettings,
}

#[async_trait]
impl Resource for SqlResource {
    fn check(&self, operation: &Operation) -> Result<(), ResourceError> {
        operation::parse(operation, self.settings.dialect()).map(drop)
    }

    /// True for SQLite and MySQL, which have no way to reset a session. `StatementKind::leaves_session_state` finds
    /// only what a statement's own words show; triggers and stored functions may do more.
    fn keeps_modules_apart(&self) -> bool {
        match self.settings.dialect() {
            Dialect::Sqlite | Dialect::MySql => true,
            Dialect::Postgres => false,
        }
    }

    async fn connect(&self, deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError> {
        let SqlSettings { address, connect_timeout, limits, is_pooled } = &self.settings;
        let until = deadline.within(*connect_timeout);
        let connecting = async {
            let driver: Result<Box<dyn DatabaseDriver>, sqlx::Error> = match address {
                DatabaseAddress::Sqlite(file) => {
                    sqlite::SqliteDriver::connect(file).await.map(|driver| Box::new(driver) as _)
                }
                DatabaseAddress::Postgres(options) if *is_pooled => {
                    postgres::PooledPostgresDriver::connect(options).await.map(|driver| Box::new(driver) as _)
                }
                DatabaseAddress::Postgres(options) => {
                    postgres::PostgresDriver::connect(options).await.map(|driver| Box::new(driver) as _)
                }
                DatabaseAddress::MySql(options) => {
                    mysql::MySqlDriver::connect(options).await.map(|driver| Box::new(driver) as _)
                }
            };
            driver
        };
        match tokio::time::timeout_at(until.instant(), connecting).await {
            Ok(Ok(driver)) => Ok(Box::new(SqlConnection::new(driver, self.settings.dialect(), *limits))),
            Ok(Err(error)) => Err(error::connecting(&address.to_string(), self.settings.dialect(), &error)),
            Err(_) => {
                let text = format!("no connection to {address} in time ({} ms at most)", connect_timeout.as_millis());
                Err(ResourceError::harmless(Phase::Connect, ResourceError::TIMED_OUT, text))
            }
        }
    }
}
