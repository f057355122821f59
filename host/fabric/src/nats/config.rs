//! Configuration of `[interfaces.rpc.nats]`: the servers, the login and TLS. Part of the interface's configuration; no
//! file is opened before `options`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use wasmcage_config::{ConfigError, Section};
use wasmcage_core::backoff::doubled;
use wasmcage_core::regular_file;
use wasmcage_protocol::InterfaceError;

const URL_DEFAULT: &str = "nats://127.0.0.1:4222";
/// Commands that wait for the connection; further callers wait, up to their deadlines. With `MESSAGE_BYTES_MAX` this
/// bounds the memory to 64 MiB.
const COMMANDS_MAX: usize = 512;
/// Messages of one subscription that wait to be read; further ones are dropped, and so calls are lost, which their
/// callers notice.
const MESSAGES_MAX: usize = 8_192;
/// Interval of pings to the server. After three without an answer the connection is closed.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay between attempts to connect, from the second failed one on; it is doubled up to `RECONNECT_DELAY_MAX`.
const RECONNECT_DELAY_FIRST: Duration = Duration::from_millis(40);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(4);

/// How to connect to NATS.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsConfig {
    /// Servers of one cluster: the first that answers is used.
    pub(super) servers: Vec<ServerAddr>,
    login: Login,
    ca: Option<PathBuf>,
    /// PEM files with the certificate and the key that the server asks for.
    certificate: Option<(PathBuf, PathBuf)>,
    tls_required: bool,
    /// Prefix of the subjects of answers; the server's permissions may give each cage its own.
    inbox: Option<String>,
    /// Timeout of an idempotent call at one copy while there are others.
    pub(super) attempt_timeout: Duration,
}

#[derive(Clone, PartialEq, Eq)]
enum Login {
    None,
    /// A file written by `nsc`: a JWT and a seed.
    Credentials(PathBuf),
    User {
        user: String,
        password: String,
    },
    Token(String),
}

/// Leaves out the secrets.
impl std::fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsConfig").field("servers", &self.servers()).finish_non_exhaustive()
    }
}

impl NatsConfig {
    /// # Errors
    /// All mistakes of the table.
    pub fn read(section: Section) -> Result<Self, ConfigError> {
        let config = Self {
            servers: servers(&section),
            login: login(&section),
            ca: None,
            certificate: None,
            tls_required: section.flag("tls_required", false),
            inbox: inbox(&section),
            attempt_timeout: section.milliseconds("attempt_timeout_ms", ATTEMPT_TIMEOUT, 1..=3_600_000),
        };
        let (ca, certificate) = tls(&section);
        section.finish()?;
        Ok(Self { tls_required: config.tls_required || ca.is_some(), ca, certificate, ..config })
    }

    /// Returns the servers' addresses as text, without users and passwords.
    pub fn servers(&self) -> String {
        let name = |server: &ServerAddr| format!("{}://{}:{}", server.scheme(), server.host(), server.port());
        self.servers.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    /// Returns the client's options, with all buffers bounded. Reads the files.
    pub(super) fn options(&self, interface: &str, name: String) -> Result<ConnectOptions, InterfaceError> {
        let mut options = ConnectOptions::new()
            .name(name)
            .no_echo()
            .retry_on_initial_connect()
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .client_capacity(COMMANDS_MAX)
            .subscription_capacity(MESSAGES_MAX)
            .require_tls(self.tls_required)
            .reconnect_delay_callback(|attempts| {
                let failures = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
                doubled(RECONNECT_DELAY_FIRST, RECONNECT_DELAY_MAX, failures)
            });
        if let Some(inbox) = &self.inbox {
            options = options.custom_inbox_prefix(inbox);
        }
        options = match &self.login {
            Login::None => options,
            Login::User { user, password } => options.user_and_password(user.clone(), password.clone()),
            Login::Token(token) => options.token(token.clone()),
            Login::Credentials(file) => {
                let failed = |source| unusable(interface, file, source);
                let bytes = regular_file::read_pem(file).map_err(|source| failed(Box::new(source)))?;
                let text = String::from_utf8(bytes).map_err(|source| failed(Box::new(source)))?;
                options.credentials(&text).map_err(|source| failed(Box::new(source)))?
            }
        };
        if let Some(ca) = &self.ca {
            check_certificates(interface, ca)?;
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((certificate, key)) = &self.certificate {
            check_certificates(interface, certificate)?;
            let read = regular_file::read_pem(key).and_then(|pem| PrivateKeyDer::from_pem_slice(&pem));
            read.map_err(|source| unusable(interface, key, Box::new(source)))?;
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }
}

fn servers(section: &Section) -> Vec<ServerAddr> {
    let text = section.string("url", URL_DEFAULT);
    let mut servers = Vec::new();
    for url in text.split(',').map(str::trim) {
        match url.parse::<ServerAddr>() {
            Ok(server) if server.has_user_pass() || server.password().is_some() => {
                section.problem("url", "has a user in it: use the keys user and password");
            }
            Ok(server) if matches!(server.scheme(), "nats" | "tls") && !server.host().is_empty() => {
                servers.push(server)
            }
            Ok(_) | Err(_) => section.problem(
                "url",
                format!("expected nats://host:port or tls://host:port, several with commas, got {url:?}"),
            ),
        }
    }
    servers
}

fn login(section: &Section) -> Login {
    let credentials = section.path("credentials");
    let (user, password) = (section.optional_string("user"), section.optional_string("password"));
    let token = section.optional_string("token");
    match (credentials, user, password, token) {
        (None, None, None, None) => Login::None,
        (Some(file), None, None, None) => Login::Credentials(file),
        (None, Some(user), Some(password), None) => Login::User { user, password },
        (None, None, None, Some(token)) => Login::Token(token),
        _ => {
            section.refuse("one of credentials, user with password, or token can be set");
            Login::None
        }
    }
}

fn tls(section: &Section) -> (Option<PathBuf>, Option<(PathBuf, PathBuf)>) {
    let Some(table) = section.table("tls") else { return (None, None) };
    let ca = table.path("ca");
    let certificate = match (table.path("certificate"), table.path("key")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            table.refuse("certificate and key go together");
            None
        }
    };
    // Its mistakes are reported with those of the section around it.
    let _ = table.finish();
    (ca, certificate)
}

fn inbox(section: &Section) -> Option<String> {
    let inbox = section.optional_string("inbox")?;
    let fits = |token: &str| {
        !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>'))
    };
    if !inbox.split('.').all(fits) {
        section.problem("inbox", format!("expected a subject without wildcards, such as _INBOX_runner, got {inbox:?}"));
    }
    Some(inbox)
}

fn check_certificates(interface: &str, file: &Path) -> Result<(), InterfaceError> {
    let failed = |source| unusable(interface, file, source);
    let mut count = 0_usize;
    let pem = regular_file::read_pem(file).map_err(|source| failed(Box::new(source)))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(|source| failed(Box::new(source)))?;
        count += 1;
    }
    match count {
        0 => Err(failed("it has no certificate".into())),
        1.. => Ok(()),
    }
}

fn unusable(interface: &str, file: &Path, source: Box<dyn std::error::Error + Send + Sync>) -> InterfaceError {
    InterfaceError::Setup {
        interface: interface.to_owned(),
        text: format!("cannot use {} for NATS", file.display()),
        source: Some(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmcage_config::testing::section;

    fn read(keys: &str) -> Result<NatsConfig, String> {
        let section = section(keys);
        // Every interface has this key; the table within one does not.
        section.optional_string("protocol");
        NatsConfig::read(section).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_refused(keys: &str, text: &str) {
        let error = read(keys).expect_err("it is refused");
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn configurations_are_read_and_secrets_are_not_shown() {
        assert_eq!(read("").unwrap().servers(), "nats://127.0.0.1:4222");
        let config = read("url = 'a, tls://b:5 ,nats://[::1]:6'\nuser = 'front'\npassword = 'hush'").unwrap();
        assert_eq!(config.servers(), "nats://a:4222, tls://b:5, nats://::1:6");
        assert!(!format!("{config:?}").contains("hush"));
        let config = read("token = 'hush'\ntls = { ca = 'ca.pem', certificate = 'c.pem', key = 'k.pem' }").unwrap();
        assert_eq!(config.ca.as_deref(), Some(Path::new("/cages/runner/ca.pem")));
        assert!(config.tls_required && config.certificate.is_some() && !format!("{config:?}").contains("hush"));
        let error = config.options("rpc", "name".into()).unwrap_err();
        assert_eq!(error.to_string(), "interface rpc: cannot use /cages/runner/ca.pem for NATS");
    }

    #[test]
    fn mistakes_are_reported() {
        check_refused("url = 'ws://a'", "expected nats://host:port or tls://host:port");
        check_refused("url = 'nats://a, '", "got \"\"");
        check_refused("url = 'nats://me:hush@a'", "use the keys user and password");
        check_refused("user = 'me'", "one of credentials, user with password, or token can be set");
        check_refused("token = 'a'\ncredentials = 'b'", "one of credentials");
        check_refused("tls = { key = 'k.pem' }", "certificate and key go together");
        check_refused("inbox = 'a.>'", "without wildcards");
        check_refused("urls = 'a'", "unknown key");
    }
}
