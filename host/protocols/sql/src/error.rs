//! Turns a database's errors into those of the resource, and decides whether a retry can succeed and whether the
//! connection can be used again.

use std::borrow::Cow;

use sqlx::Error;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use super::driver::RunError;
use super::statement::Dialect;
use wasmcage_resource::{Phase, ResourceError};

/// The classes of SQLSTATE after which the connection can still be used, since the statement or the transaction is at
/// fault. After all others it is discarded, such as for lost sessions, full disks, and outdated plans.
const SAFE_CLASSES: &[&str] = &[
    "02", "21", "22", "23", "25", "27", "28", "2B", "2F", "34", "38", "39", "3D", "3F", "40", "42", "44", "45", "54",
    "55", "HY", "P0",
];

/// SQLite's primary codes after which the connection can still be used.
const SAFE_SQLITE: &[i32] = &[1, 5, 6, 8, 9, 18, 19, 20, 23, 25];

/// The error code of a result that cannot be expressed in JSON.
const BAD_RESULT: &str = "bad-result";
const OUTCOME_UNKNOWN: &str = "; whether it took effect is not known";
/// How many bytes of a server's detail or hint are passed on.
const DETAIL_BYTES_MAX: usize = 1_024;
/// PostgreSQL's codes for prepared statements that another client has made or removed in the same session.
const SHARED_SESSION: &[&str] = &["08P01", "26000", "42P05"];
const POOLER_HINT: &str = "; if the server is a pooler of connections such as PgBouncer, set `statement_cache = 0`";

/// The error of an attempt to connect.
pub(super) fn connecting(target: &str, dialect: Dialect, error: &Error) -> ResourceError {
    let harmless = |code: &str, text| ResourceError::harmless(Phase::Connect, code, format!("{target}: {text}"));
    match error {
        Error::Database(error) => harmless(&code(dialect, error.code()), server_text(&**error)),
        Error::Tls(error) => harmless("tls", error.to_string()),
        Error::Io(error) if error.get_ref().is_some_and(|error| error.is::<rustls::Error>()) => {
            harmless("tls", error.to_string())
        }
        Error::Configuration(error) => harmless(ResourceError::CONNECT, error.to_string()),
        error => harmless(ResourceError::CONNECT, text_of(error)),
    }
}

/// The error of a statement, or of a step of a transaction.
pub(super) fn running(phase: Phase, dialect: Dialect, in_transaction: bool, error: RunError) -> ResourceError {
    // Until its commit, a transaction is rolled back with everything in it.
    let undone = in_transaction && phase != Phase::Commit || phase == Phase::Begin;
    let broken = |code: &str, text: String| {
        let text = if undone { text } else { text + OUTCOME_UNKNOWN };
        ResourceError { recoverable: undone, ..ResourceError::fatal(phase, code, text) }
    };
    match error {
        RunError::Database(Error::Database(error)) => {
            let code = code(dialect, error.code());
            let text = server_text(&*error);
            if dialect == Dialect::Postgres && SHARED_SESSION.contains(&code.as_str()) {
                let recoverable = code != "08P01" || undone;
                return ResourceError { recoverable, ..ResourceError::fatal(phase, code, text + POOLER_HINT) };
            }
            if is_safe(dialect, &code, error.code()) {
                return ResourceError::harmless(phase, code, text);
            }
            broken(&code, text)
        }
        RunError::Database(error) => broken(ResourceError::DISCONNECTED, text_of(&error)),
        RunError::Stale(Error::Database(error)) => {
            let text = server_text(&*error) + "; nothing ran: the transaction can be tried again";
            ResourceError::harmless(phase, code(dialect, error.code()), text)
        }
        RunError::Stale(error) => broken(ResourceError::DISCONNECTED, text_of(&error)),
        RunError::Parameter(text) => ResourceError::harmless(phase, ResourceError::BAD_OPERATION, text),
        RunError::Column(text) => ResourceError::harmless(phase, BAD_RESULT, text),
        RunError::Cell(text) => broken(BAD_RESULT, text),
        RunError::CellAfterEnd(text) if undone => ResourceError::harmless(phase, BAD_RESULT, text),
        RunError::CellAfterEnd(text) => ResourceError {
            recoverable: false,
            ..ResourceError::harmless(phase, BAD_RESULT, text + "; the statement itself has run")
        },
        RunError::TooLarge(text) => broken(ResourceError::TOO_LARGE, text),
        RunError::Abandoned => broken(ResourceError::DISCONNECTED, "nobody takes the result any more".to_owned()),
    }
}

/// The server's message, with PostgreSQL's detail and hint.
fn server_text(error: &dyn DatabaseError) -> String {
    let mut text = error.message().to_owned();
    let Some(error) = error.try_downcast_ref::<PgDatabaseError>() else { return text };
    for (name, more) in [("detail", error.detail()), ("hint", error.hint())] {
        let Some(more) = more.filter(|more| !more.is_empty()) else { continue };
        let cut = &more[..more.floor_char_boundary(DETAIL_BYTES_MAX)];
        let dots = if cut.len() < more.len() { ".." } else { "" };
        text.push_str(&format!("; {name}: {}{dots}", cut.trim_end_matches('.')));
    }
    text
}

/// The text of the client library's error, without the link into its source that some have at their end.
fn text_of(error: &Error) -> String {
    let text = error.to_string();
    match text.rfind(" (sqlx") {
        Some(place) if text.ends_with(')') => text[..place].to_owned(),
        _ => text,
    }
}

fn is_safe(dialect: Dialect, code: &str, raw: Option<Cow<'_, str>>) -> bool {
    match dialect {
        Dialect::Sqlite => {
            let number: Option<i32> = raw.and_then(|raw| raw.parse().ok());
            number.is_some_and(|number| SAFE_SQLITE.contains(&(number & 0xff)))
        }
        // 57014: the statement was cancelled.
        Dialect::Postgres | Dialect::MySql => {
            code == "57014" || code.get(..2).is_some_and(|class| SAFE_CLASSES.contains(&class))
        }
    }
}

/// The error code: an SQLSTATE, or SQLite's name of its code.
fn code(dialect: Dialect, raw: Option<Cow<'_, str>>) -> String {
    let raw = raw.unwrap_or_default();
    match dialect {
        Dialect::Sqlite => raw.parse().map_or_else(|_| "SQLITE_ERROR".to_owned(), sqlite_name),
        Dialect::Postgres | Dialect::MySql if raw.is_empty() => "HY000".to_owned(),
        Dialect::Postgres | Dialect::MySql => raw.into_owned(),
    }
}

fn sqlite_name(code: i32) -> String {
    let name = match code {
        261 => "SQLITE_BUSY_RECOVERY",
        517 => "SQLITE_BUSY_SNAPSHOT",
        275 => "SQLITE_CONSTRAINT_CHECK",
        787 => "SQLITE_CONSTRAINT_FOREIGNKEY",
        1299 => "SQLITE_CONSTRAINT_NOTNULL",
        1555 => "SQLITE_CONSTRAINT_PRIMARYKEY",
        1811 => "SQLITE_CONSTRAINT_TRIGGER",
        2067 => "SQLITE_CONSTRAINT_UNIQUE",
        2579 => "SQLITE_CONSTRAINT_ROWID",
        3091 => "SQLITE_CONSTRAINT_DATATYPE",
        _ => match code & 0xff {
            1 => "SQLITE_ERROR",
            2 => "SQLITE_INTERNAL",
            3 => "SQLITE_PERM",
            4 => "SQLITE_ABORT",
            5 => "SQLITE_BUSY",
            6 => "SQLITE_LOCKED",
            7 => "SQLITE_NOMEM",
            8 => "SQLITE_READONLY",
            9 => "SQLITE_INTERRUPT",
            10 => "SQLITE_IOERR",
            11 => "SQLITE_CORRUPT",
            13 => "SQLITE_FULL",
            14 => "SQLITE_CANTOPEN",
            15 => "SQLITE_PROTOCOL",
            17 => "SQLITE_SCHEMA",
            18 => "SQLITE_TOOBIG",
            19 => "SQLITE_CONSTRAINT",
            20 => "SQLITE_MISMATCH",
            21 => "SQLITE_MISUSE",
            23 => "SQLITE_AUTH",
            25 => "SQLITE_RANGE",
            26 => "SQLITE_NOTADB",
            _ => return format!("SQLITE_{code}"),
        },
    };
    name.to_owned()
}
