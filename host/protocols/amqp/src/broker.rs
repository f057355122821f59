//! Which broker, who we are to it, and TLS: the keys that interfaces and resources share. Files are read when the
//! configuration is.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::value::{FRAME_BYTES_MAX, short};
use wasmcage_config::Section;
use wasmcage_core::regular_file;

const PORT: u16 = 5672;
const TLS_PORT: u16 = 5671;

/// How to reach a broker.
#[derive(Clone)]
pub(super) struct Broker {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) vhost: String,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) tls: Option<Tls>,
    /// Of a message that comes in; longer ones are refused.
    pub(super) body_bytes_max: u64,
    pub(super) heartbeat_s: u16,
}

#[derive(Clone)]
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    /// The files' names: what tells two configurations apart.
    name: String,
}

/// Without the password.
impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "amqps" } else { "amqp" };
        let vhost = if self.vhost == "/" { "" } else { &self.vhost };
        write!(f, "{scheme}://{}@{}:{}/{vhost}", self.user, self.host, self.port)
    }
}

impl Broker {
    /// Mistakes are recorded in `section`.
    pub(super) fn read(section: &Section) -> Self {
        let url = url(section);
        let authority = |read: fn(&AMQPUri) -> String| url.as_ref().map(read).filter(|text| !text.is_empty());
        let key = |key: &str, of_url: Option<String>, variables: &[&str], default: &str| {
            let set = section.optional_string(key);
            if set.is_some() && of_url.is_some() {
                section.problem(key, "said by url, too");
            }
            let variable = || variables.iter().find_map(|name| std::env::var(name).ok());
            set.or(of_url).or_else(variable).unwrap_or_else(|| default.to_owned())
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

    /// What the client library greets the broker with. The connection itself is `stream.rs`'s.
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

    /// Equal for brokers that one connection serves.
    pub(super) fn key(&self) -> String {
        let tls = self.tls.as_ref().map_or("", |tls| &tls.name);
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

/// With a table `tls`, or `amqps://`: the public roots, or those of `tls.ca` and no others.
fn tls(section: &Section, by_url: bool) -> Option<Tls> {
    let table = section.table("tls");
    if table.is_none() && !by_url {
        return None;
    }
    let (mut ca, mut certificate, mut key) = (None, None, None);
    if let Some(table) = table {
        (ca, certificate, key) = (table.path("ca"), table.path("certificate"), table.path("key"));
        // The section around it reports its mistakes, too.
        let _ = table.finish();
    }
    let name = format!("{ca:?} {certificate:?} {key:?}");
    match client_config(ca.as_deref(), certificate.as_deref(), key.as_deref()) {
        Ok(config) => Some(Tls { config: Arc::new(config), name }),
        Err(text) => {
            section.problem("tls", text);
            None
        }
    }
}

fn client_config(ca: Option<&Path>, certificate: Option<&Path>, key: Option<&Path>) -> Result<ClientConfig, String> {
    let certificates = |file: &Path| -> Result<Vec<CertificateDer<'static>>, String> {
        let read = regular_file::read_pem(file)
            .and_then(|pem| CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>());
        let read = read.map_err(|error| format!("cannot use {}: {error}", file.display()))?;
        if read.is_empty() { Err(format!("{} has no certificate", file.display())) } else { Ok(read) }
    };
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            for root in certificates(file)? {
                roots.add(root).map_err(|error| format!("cannot use {}: {error}", file.display()))?;
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    match (certificate, key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate)?;
            let read = regular_file::read_pem(key).and_then(|pem| PrivateKeyDer::from_pem_slice(&pem));
            let key = read.map_err(|error| format!("cannot use {}: {error}", key.display()))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())
        }
        (Some(_), None) | (None, Some(_)) => Err("certificate and key go together".into()),
    }
}
