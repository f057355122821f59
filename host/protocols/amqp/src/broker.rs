//! The configuration that interfaces and resources share: the broker's address, the user, and TLS. Certificates are
//! read with the configuration.

use std::fmt;
use std::sync::Arc;

use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::ClientConfig;

use super::value::{FRAME_BYTES_MAX, short};
use wasmcage_config::Section;
use wasmcage_web_client::{TlsFileError, client_config};

const PORT: u16 = 5672;
const TLS_PORT: u16 = 5671;

/// The address of a broker, and how to connect to it.
#[derive(Clone)]
pub(super) struct Broker {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) vhost: String,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) tls: Option<BrokerTls>,
    /// The longest body of an incoming message; longer ones are rejected.
    pub(super) body_bytes_max: u64,
    pub(super) heartbeat_s: u16,
}

#[derive(Clone)]
pub(super) struct BrokerTls {
    pub(super) config: Arc<ClientConfig>,
    /// The names of the files, by which two configurations differ.
    files: String,
}

/// Leaves out the password.
impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "amqps" } else { "amqp" };
        let vhost = if self.vhost == "/" { "" } else { &self.vhost };
        write!(f, "{scheme}://{}@{}:{}/{vhost}", self.user, self.host, self.port)
    }
}

impl Broker {
    /// Reads the keys of the section. Mistakes are recorded in it.
    pub(super) fn read(section: &Section) -> Self {
        let url = url(section);
        let authority = |read: fn(&AMQPUri) -> String| url.as_ref().map(read).filter(|text| !text.is_empty());
        let key = |key: &str, in_url: Option<String>, variables: &[&str], default: &str| {
            let set = section.optional_string(key);
            if set.is_some() && in_url.is_some() {
                section.problem(key, "said by url, too");
            }
            let variable = || variables.iter().find_map(|name| std::env::var(name).ok());
            set.or(in_url).or_else(variable).unwrap_or_else(|| default.to_owned())
        };
        let with_user = section.optional_string("url").is_some_and(|url| url.contains('@'));
        let of_user = |text: Option<String>| text.filter(|_| with_user);
        let user = of_user(authority(|url| url.authority.userinfo.username.clone()));
        let password = of_user(authority(|url| url.authority.userinfo.password.clone()));
        let tls = tls(section, url.as_ref().is_some_and(|url| url.scheme == AMQPScheme::AMQPS));
        let port = section.optional_integer("port", 1..=65_535).and_then(|port| u16::try_from(port).ok());
        let default = if tls.is_some() { TLS_PORT } else { PORT };
        let vhost = key("vhost", authority(|url| url.vhost.clone()), &["POSTAGE_VHOST"], "/");
        if let Err(text) = short(&vhost, "the name of a virtual host") {
            section.problem("vhost", text);
        }
        Self {
            host: key("host", authority(|url| url.authority.host.clone()), &[], "localhost"),
            port: port.or(url.as_ref().map(|url| url.authority.port)).unwrap_or(default),
            vhost,
            user: key("user", user, &["POSTAGE_RMQ_USER", "POSTAGE_USER"], "guest"),
            password: key("password", password, &["POSTAGE_RMQ_PASSWORD", "POSTAGE_PASSWORD"], "guest"),
            tls,
            body_bytes_max: section.integer("max_body_bytes", 8 << 20, 1..=1 << 30),
            heartbeat_s: section.integer("heartbeat_s", 10, 1..=3_600) as u16,
        }
    }

    /// The parameters of AMQP's handshake, for the client library. `stream.rs` makes the connection.
    pub(super) fn uri(&self) -> AMQPUri {
        let mut uri = AMQPUri { vhost: self.vhost.clone(), ..AMQPUri::default() };
        uri.authority.host.clone_from(&self.host);
        uri.authority.port = self.port;
        uri.authority.userinfo.username.clone_from(&self.user);
        uri.authority.userinfo.password.clone_from(&self.password);
        uri.query.heartbeat = Some(self.heartbeat_s);
        uri.query.frame_max = u32::try_from(FRAME_BYTES_MAX).ok();
        uri
    }

    /// A key that is equal for configurations which can share a connection.
    pub(super) fn key(&self) -> String {
        let tls = self.tls.as_ref().map_or("", |tls| &tls.files);
        format!("{self}\n{}\n{tls}\n{}\n{}", self.password, self.body_bytes_max, self.heartbeat_s)
    }
}

fn url(section: &Section) -> Option<AMQPUri> {
    let text = section.optional_string("url")?;
    if section.has_wrong_scheme("url", &["amqp", "amqps"]) {
        return None;
    }
    match text.parse() {
        Ok(url) => Some(url),
        Err(_) => {
            let text = "expected amqp://user:password@host:port/vhost, or amqps://.. (`/` in a vhost is %2F)";
            section.problem("url", text);
            None
        }
    }
}

/// TLS is used with a table `tls` or a URL `amqps://`. It trusts the public authorities, or only those in `tls.ca`.
fn tls(section: &Section, by_url: bool) -> Option<BrokerTls> {
    let table = section.table("tls");
    if table.is_none() && !by_url {
        return None;
    }
    let (mut ca, mut certificate, mut key) = (None, None, None);
    if let Some(table) = table {
        (ca, certificate, key) = (table.path("ca"), table.path("certificate"), table.path("key"));
        // The enclosing section reports its mistakes, too.
        let _ = table.finish();
    }
    let files = format!("{ca:?} {certificate:?} {key:?}");
    let config = match certificate.is_some() == key.is_some() {
        true => {
            client_config(ca.as_deref(), certificate.as_deref().zip(key.as_deref())).map_err(|error| tls_text(&error))
        }
        false => Err("certificate and key go together".into()),
    };
    match config {
        Ok(config) => Some(BrokerTls { config: Arc::new(config), files }),
        Err(text) => {
            section.problem("tls", text);
            None
        }
    }
}

/// The error in the words of this section, whose keys it cannot name.
fn tls_text(error: &TlsFileError) -> String {
    match error {
        TlsFileError::Pem { file, source } => format!("cannot use {}: {source}", file.display()),
        TlsFileError::NoCertificate { file } => format!("{} has no certificate", file.display()),
        TlsFileError::Authority { file, source } => format!("cannot use {}: {source}", file.display()),
        TlsFileError::Identity { source, .. } => source.to_string(),
    }
}
