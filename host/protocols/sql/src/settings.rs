//! The configuration of a resource: `[resources.x]` with `protocol = "sql"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};

use super::rows::RowLimits;
use super::statement::Dialect;
use wasmcage_config::{ConfigError, Section};
use wasmcage_core::regular_file;

/// A longer file of certificates is refused.
const CA_BYTES_MAX: u64 = 1 << 20;

pub(super) struct SqlSettings {
    pub(super) address: DatabaseAddress,
    pub(super) connect_timeout: Duration,
    pub(super) limits: RowLimits,
    /// True with `statement_cache = 0`: no statement stays prepared, so that the server may be a connection pooler.
    pub(super) is_pooled: bool,
}

/// The address of the database. `Display` leaves out user and password.
pub(super) enum DatabaseAddress {
    Sqlite(SqliteFile),
    Postgres(PgConnectOptions),
    MySql(MySqlConnectOptions),
}

pub(super) struct SqliteFile {
    pub(super) options: SqliteConnectOptions,
    /// True if a missing file is created, readable by its user alone.
    pub(super) create: bool,
}

/// The protection of a connection over the network.
#[derive(Clone, Copy)]
enum TlsMode {
    /// The server's certificate and name are checked.
    Verify,
    /// The connection is encrypted, but the server is not authenticated.
    Encrypt,
    Off,
}

impl SqlSettings {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        let hour = 3_600_000;
        let connect_timeout = section.milliseconds("connect_timeout_ms", Duration::from_secs(5), 1..=hour);
        let limits = RowLimits {
            rows: section.integer("max_rows", 10_000, 1..=1_000_000_000),
            bytes: section.integer("max_result_bytes", 16 << 20, 1024..=1 << 30) as usize,
        };
        let statements = section.integer("statement_cache", 100, 0..=10_000) as usize;
        let address = match (section.has("path"), section.has("url")) {
            (true, false) => sqlite(&section, statements),
            (false, true) => server(&section, statements),
            _ => {
                section.refuse(
                    "either `path`, of a SQLite file, or `url`, such as \"postgres://user:password@host/database\"",
                );
                // The keys of both kinds are read, so that they are not reported as unknown.
                drop((sqlite(&section, statements), server(&section, statements)));
                None
            }
        };
        let whole = section.clone();
        section.finish()?;
        let address = address.ok_or_else(|| whole.refused("it names no database"))?;
        Ok(Self { address, connect_timeout, limits, is_pooled: statements == 0 })
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self.address {
            DatabaseAddress::Sqlite(_) => Dialect::Sqlite,
            DatabaseAddress::Postgres(_) => Dialect::Postgres,
            DatabaseAddress::MySql(_) => Dialect::MySql,
        }
    }
}

fn sqlite(section: &Section, statements: usize) -> Option<DatabaseAddress> {
    let path = section.path("path");
    let create = section.flag("create", true);
    let busy_timeout = section.milliseconds("busy_timeout_ms", Duration::from_secs(5), 0..=3_600_000);
    let options = SqliteConnectOptions::new()
        .filename(path?)
        .create_if_missing(create)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(busy_timeout)
        .statement_cache_capacity(statements)
        .disable_statement_logging();
    Some(DatabaseAddress::Sqlite(SqliteFile { options, create }))
}

fn server(section: &Section, statements: usize) -> Option<DatabaseAddress> {
    const WHAT: &str = "a URL such as \"postgres://user:password@host/database\" or \"mysql://..\"";
    let choices =
        &[("verify", Some(TlsMode::Verify)), ("encrypt", Some(TlsMode::Encrypt)), ("off", Some(TlsMode::Off))];
    let tls = section.choice("tls", choices, None);
    let ca_file = section.path("ca_file");
    let url = section.optional_string("url")?;
    if section.has_wrong_scheme("url", &["postgres", "postgresql", "mysql", "mariadb", "sqlite"]) {
        return None;
    }
    if let Some(parameter) = tls_parameter(&url) {
        section.problem("url", format!("`{parameter}` in the URL: write `tls` and `ca_file` beside it"));
        return None;
    }
    // The parser's errors do not contain the URL.
    let problem = |error: sqlx::Error| section.problem("url", format!("expected {WHAT}: {error}"));
    let ca = match ca_file.map(|path| regular_file::read(&path, CA_BYTES_MAX).map_err(|error| (path, error))) {
        None => None,
        Some(Ok(pem)) => Some(pem),
        Some(Err((path, error))) => {
            section.problem("ca_file", format!("{} cannot be read: {error}", path.display()));
            return None;
        }
    };
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => {
            let options = PgConnectOptions::from_str(&url).map_err(problem).ok()?;
            let is_local = options.get_socket().is_some() || is_local_host(options.get_host());
            let mode = match tls.unwrap_or(default_tls(is_local)) {
                TlsMode::Verify => PgSslMode::VerifyFull,
                TlsMode::Encrypt => PgSslMode::Require,
                TlsMode::Off => PgSslMode::Disable,
            };
            let options = options.ssl_mode(mode).statement_cache_capacity(statements).disable_statement_logging();
            Some(DatabaseAddress::Postgres(match ca {
                Some(pem) => options.ssl_root_cert_from_pem(pem),
                None => options,
            }))
        }
        Some("mysql" | "mariadb") => {
            let options = MySqlConnectOptions::from_str(&url).map_err(problem).ok()?;
            let is_local = options.get_socket().is_some() || is_local_host(options.get_host());
            let mode = match tls.unwrap_or(default_tls(is_local)) {
                TlsMode::Verify => MySqlSslMode::VerifyIdentity,
                TlsMode::Encrypt => MySqlSslMode::Required,
                TlsMode::Off => MySqlSslMode::Disabled,
            };
            let options = options.ssl_mode(mode).statement_cache_capacity(statements).disable_statement_logging();
            Some(DatabaseAddress::MySql(match ca {
                Some(pem) => options.ssl_ca_from_pem(pem),
                None => options,
            }))
        }
        Some("sqlite") => {
            section.problem("url", "a SQLite file is given by `path`");
            None
        }
        _ => {
            section.problem("url", format!("expected {WHAT}"));
            None
        }
    }
}

/// The default of `tls`: a connection within the machine needs no protection from the network.
fn default_tls(is_local: bool) -> TlsMode {
    if is_local { TlsMode::Off } else { TlsMode::Verify }
}

fn is_local_host(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || host.starts_with('/') || address.is_ok_and(|address| address.is_loopback())
}

/// The first parameter of the URL that configures TLS, which is what `tls` and `ca_file` are for.
fn tls_parameter(url: &str) -> Option<&str> {
    let (_, query) = url.split_once('?')?;
    query.split('&').map(|pair| pair.split('=').next().unwrap_or(pair)).find(|key| key.starts_with("ssl"))
}

impl fmt::Display for DatabaseAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => write!(f, "{}", file.options.get_filename().display()),
            Self::Postgres(options) => match options.get_socket() {
                Some(socket) => write!(f, "postgres at {}", socket.display()),
                None => write!(f, "postgres at {}:{}", options.get_host(), options.get_port()),
            },
            Self::MySql(options) => match options.get_socket() {
                Some(socket) => write!(f, "mysql at {}", socket.display()),
                None => write!(f, "mysql at {}:{}", options.get_host(), options.get_port()),
            },
        }
    }
}
