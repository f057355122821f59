//! Protocol `sql`: databases as resources, through sqlx: SQLite, PostgreSQL, MySQL and MariaDB.
//!
//! **Operation.** Action `execute`, target and headers empty, body JSON:
//!
//! ```json
//! {"sql": "insert into t values ({id}, {name})", "values": {"id": 1, "name": "x"}}
//! {"statements": [{"sql": "..", "values": {..}}, ..], "values": {..}}
//! ```
//!
//! `{name}` is a parameter: its value never becomes part of the text. A statement's own `values` hide the operation's. `{{` and
//! `}}` are braces. Strings, quoted names, comments and dollar quotes are left as they are. One entry is one statement;
//! several are one transaction. What begins, commits or rolls back a transaction is for the caller of the resource, not for a
//! statement. Begin options: `isolation` (`read-uncommitted`, `read-committed`, `repeatable-read`, `serializable`),
//! `read-only` (`true`, `false`).
//!
//! **Reply.** `{"results": [{"columns": ["a"], "rows": [[1]], "affected": 0, "last_id": null}]}`, one for each statement.
//! `columns` is empty when there are no rows; `affected` counts the rows that a writing statement changed; `last_id` is the number
//! that SQLite, MySQL or MariaDB gave to an inserted row. Streamed, each part is `{"columns": [..], "rows": [..]}`.
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
//! | `{"timestamp": "2026-11-21T10:00:00.123456Z"}` | moment |
//! | `{"json": ..}` | JSON document |
//! | `{"uuid": "..."}` | UUID |
//! | `{"array": [..]}` | array of one dimension, PostgreSQL only |
//!
//! A database without a type keeps its text: SQLite decimals, dates, JSON and UUIDs, MySQL UUIDs and MariaDB JSON. SQLite tells
//! bools, dates and times by the column's declared type. Moments are kept in UTC, times to the microsecond.

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

use std::time::Duration;

use async_trait::async_trait;

use self::connection::Session;
use self::driver::Driver;
use self::settings::{Settings, Target};
use self::statement::Dialect;
use wasmcage_config::{ConfigError, ProtocolInfo, Section};
use wasmcage_core::request::Deadline;
use wasmcage_protocol::Protocol;
use wasmcage_resource::{Connection, Operation, Phase, Resource, ResourceError};

pub struct Sql;

impl Protocol for Sql {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new("sql")
    }

    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Ok(Box::new(Database { settings: Settings::read(section)? }))
    }
}

/// One database, as configured.
struct Database {
    settings: Settings,
}

#[async_trait]
impl Resource for Database {
    fn check(&self, operation: &Operation) -> Result<(), ResourceError> {
        operation::parse(operation, self.settings.dialect()).map(drop)
    }

    /// SQLite and MySQL have no way to reset a session: see `Kind::marks_session` for what a statement's words tell, and
    /// triggers and stored functions may do more.
    fn keeps_modules_apart(&self) -> bool {
        match self.settings.dialect() {
            Dialect::Sqlite | Dialect::MySql => true,
            Dialect::Postgres => false,
        }
    }

    async fn connect(&self, deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError> {
        let Settings { target, connect_timeout, limits, is_pooled } = &self.settings;
        let until = deadline.within(*connect_timeout);
        let connecting = async {
            let driver: Result<Box<dyn Driver>, sqlx::Error> = match target {
                Target::Sqlite(file) => sqlite::Driver::connect(file).await.map(|driver| Box::new(driver) as _),
                Target::Postgres(options) if *is_pooled => {
                    postgres::Pooled::connect(options).await.map(|driver| Box::new(driver) as _)
                }
                Target::Postgres(options) => {
                    postgres::Driver::connect(options).await.map(|driver| Box::new(driver) as _)
                }
                Target::MySql(options) => mysql::Driver::connect(options).await.map(|driver| Box::new(driver) as _),
            };
            driver
        };
        match tokio::time::timeout_at(until.instant(), connecting).await {
            Ok(Ok(driver)) => Ok(Box::new(Session::new(driver, self.settings.dialect(), *limits))),
            Ok(Err(error)) => Err(error::connecting(&target.to_string(), self.settings.dialect(), &error)),
            Err(_) => {
                let text = format!("no connection to {target} in time ({} ms at most)", millis(*connect_timeout));
                Err(ResourceError::harmless(Phase::Connect, ResourceError::TIMED_OUT, text))
            }
        }
    }
}

fn millis(duration: Duration) -> u128 {
    duration.as_millis()
}
