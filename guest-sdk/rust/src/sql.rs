//! Databases that are configured by `[resources.db] protocol = "sql"` and granted to the module by
//! `allow = { resources = ["db"] }`. SQLite, PostgreSQL, MySQL and MariaDB differ only in the dialect of the statements.
//!
//! ```no_run
//! use wasmcage_guest::{Result, params, serde, sql};
//!
//! #[derive(serde::Deserialize)]
//! # #[serde(crate = "wasmcage_guest::serde")]
//! struct Order {
//!     id: i64,
//!     item: String,
//! }
//!
//! fn orders(item: &str) -> Result<Vec<Order>> {
//!     let db = sql("db");
//!     db.execute("insert into orders (item) values ({item})", params! { item: item })?;
//!     Ok(db.query("select id, item from orders where item = {item}", params! { item: item })?.all()?)
//! }
//! ```
//!
//! `{name}` is a parameter: its value never becomes a part of the statement's text. A brace itself is written `{{`.

mod base64;
mod rows;
mod value;

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::rows::Rows;
use self::rows::{Part, typed};
pub use self::value::Value;
pub use crate::resource::Caching;
use crate::resource::{Operation, Parts, Resource, ResourceError, resource};

/// The values of a statement's parameters, as in `params! { id: 1, name: "x" }`.
#[macro_export]
macro_rules! params {
    ($($name:ident : $value:expr),* $(,)?) => {{
        let values: [(&str, $crate::sql::Value); _] = [$((stringify!($name), $crate::sql::Value::from($value))),*];
        values
    }};
}

/// The database of the resource with this name.
pub fn sql(name: &str) -> Database<'_> {
    Database(resource(name))
}

/// A database, with options for its transactions.
#[derive(Clone, Debug)]
pub struct Database<'a>(Resource<'a>);

/// What a transaction may see of concurrent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadUncommitted,
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Database<'_> {
    /// Sets the timeout; the request's deadline holds anyway.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self(self.0.timeout(timeout))
    }

    pub fn isolation(self, isolation: Isolation) -> Self {
        let isolation = match isolation {
            Isolation::ReadUncommitted => "read-uncommitted",
            Isolation::ReadCommitted => "read-committed",
            Isolation::RepeatableRead => "repeatable-read",
            Isolation::Serializable => "serializable",
        };
        Self(self.0.begin("isolation", isolation))
    }

    /// Makes the database refuse writes.
    pub fn read_only(self) -> Self {
        Self(self.0.begin("read-only", "true"))
    }

    /// Sets the use of the resource's cache of reads, if `cage.toml` configures one: `cache = { size_mb = 64, ttl_ms = 60_000 }`.
    /// The same statements with the same values are answered from it, until an operation, of this module or another one, names
    /// what they read as written. [`stream`](Self::stream) does not use it.
    ///
    /// ```no_run
    /// # use wasmcage_guest::{Result, params, sql, sql::Caching};
    /// # fn f(item: &str) -> Result<()> {
    /// let db = sql("db");
    /// let prices = db.clone().caching(Caching::new().reads("prices"));
    /// let price: i64 = prices.query("select cents from prices where item = {item}", params! { item: item })?.one()?;
    /// let changed = db.caching(Caching::new().writes("prices"));
    /// changed.execute("update prices set cents = {cents} where item = {item}", params! { item: item, cents: price + 1 })?;
    /// # Ok(()) }
    /// ```
    pub fn caching(self, caching: Caching) -> Self {
        Self(self.0.caching(caching))
    }

    /// Runs one statement, and returns its rows.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn query<'v>(&self, sql: &str, params: impl IntoIterator<Item = (&'v str, Value)>) -> Result<Rows, Error> {
        let mut results = self.run(&Statements::new().add(sql, params))?;
        results.pop().ok_or_else(|| Error::BadResult("a reply without a result".into()))
    }

    /// Runs one statement, and returns how many rows it changed.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn execute<'v>(&self, sql: &str, params: impl IntoIterator<Item = (&'v str, Value)>) -> Result<u64, Error> {
        Ok(self.query(sql, params)?.affected)
    }

    /// Runs all statements in one transaction, so that all take effect or none. Returns a result for each.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(&self, statements: &Statements) -> Result<Vec<Rows>, Error> {
        results(&self.0.execute(statements.operation()?)?.body)
    }

    /// Runs one statement and streams its rows, however many there are. The stream holds a connection until its end; dropping it
    /// earlier ends the statement.
    ///
    /// ```no_run
    /// # use wasmcage_guest::{Result, params, sql};
    /// # fn f() -> Result<()> {
    /// for row in sql("db").stream::<(i64, String)>("select id, item from orders", params! {})? {
    ///     let (id, item) = row?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`Error`].
    pub fn stream<'v, T: DeserializeOwned>(
        &self,
        sql: &str,
        params: impl IntoIterator<Item = (&'v str, Value)>,
    ) -> Result<Stream<T>, Error> {
        let (_, parts) = self.0.open(Statements::new().add(sql, params).operation()?)?;
        Ok(Stream { parts, columns: Vec::new(), rows: VecDeque::new(), row: PhantomData })
    }
}

/// Statements for one transaction, each with its values.
///
/// ```no_run
/// # use wasmcage_guest::{Result, params, sql, sql::Statements};
/// # fn f() -> Result<()> {
/// let transfer = Statements::new()
///     .add("update accounts set balance = balance - {amount} where id = {id}", params! { id: 1, amount: 100 })
///     .add("update accounts set balance = balance + {amount} where id = {id}", params! { id: 2, amount: 100 });
/// sql("db").run(&transfer)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, Serialize)]
pub struct Statements {
    statements: Vec<Statement>,
}

#[derive(Clone, Debug, Serialize)]
struct Statement {
    sql: String,
    #[serde(serialize_with = "value::pairs")]
    values: Vec<(String, Value)>,
}

impl Statements {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add<'v>(mut self, sql: &str, params: impl IntoIterator<Item = (&'v str, Value)>) -> Self {
        let values = params.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.statements.push(Statement { sql: sql.to_owned(), values });
        self
    }

    /// Makes an operation, for a transaction with other participants; [`results`] reads its reply.
    ///
    /// # Errors
    /// [`Error::BadValue`].
    pub fn operation(&self) -> Result<Operation, Error> {
        let body = serde_json::to_vec(self).map_err(|error| Error::BadValue(error.to_string()))?;
        Ok(Operation::of("execute", "").body(body))
    }
}

/// Reads the results in the body of a reply, one for each statement.
///
/// # Errors
/// [`Error::BadResult`].
pub fn results(body: &[u8]) -> Result<Vec<Rows>, Error> {
    rows::parse(body)
}

/// A stream of the rows of one statement.
#[derive(Debug)]
pub struct Stream<T> {
    parts: Parts,
    columns: Vec<String>,
    rows: VecDeque<Vec<Value>>,
    row: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Stream<T> {
    fn next_row(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(row) = self.rows.pop_front() {
                return typed(&self.columns, row).map(Some);
            }
            let Some(part) = self.parts.next() else { return Ok(None) };
            let part = Part::parse(&part?)?;
            (self.columns, self.rows) = (part.columns, part.rows.into());
        }
    }
}

impl<T: DeserializeOwned> Iterator for Stream<T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

/// Why a statement failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An error of the database or of its connection. `code` is an SQLSTATE, a name in SQLite such as
    /// `SQLITE_CONSTRAINT_UNIQUE`, or a code of the host such as `bad-operation`, `timed-out`, `too-large`.
    Database(ResourceError),
    /// The value of a parameter cannot be converted.
    BadValue(String),
    /// The rows do not fit the requested type. The statement has run.
    BadResult(String),
}

impl Error {
    /// Returns the code of the database or of the host; empty for other errors.
    pub fn code(&self) -> &str {
        match self {
            Self::Database(error) => &error.code,
            Self::BadValue(_) | Self::BadResult(_) => "",
        }
    }

    /// Returns whether nothing irreversible happened, so that the statement may be retried.
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Database(error) => error.recoverable,
            Self::BadValue(_) => true,
            Self::BadResult(_) => false,
        }
    }

    /// Returns whether a row with the same key exists already.
    pub fn is_duplicate(&self) -> bool {
        let text = match self {
            Self::Database(error) => &error.text,
            Self::BadValue(_) | Self::BadResult(_) => return false,
        };
        match self.code() {
            "23505" | "SQLITE_CONSTRAINT_UNIQUE" | "SQLITE_CONSTRAINT_PRIMARYKEY" => true,
            // MySQL has one code for all constraints.
            "23000" => text.contains("Duplicate entry"),
            _ => false,
        }
    }
}

impl From<ResourceError> for Error {
    fn from(error: ResourceError) -> Self {
        Self::Database(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(error) => error.fmt(f),
            Self::BadValue(text) => write!(f, "a parameter cannot be sent: {text}"),
            Self::BadResult(text) => write!(f, "rows of another type: {text}"),
        }
    }
}

impl std::error::Error for Error {}
