//! The configuration of a resource: `[resources.x]` with `protocol = "http"`.

use std::path::PathBuf;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use rustls::pki_types::ServerName;

use super::operation::{has_dot_segments, is_framing};
use wasmcage_config::{ConfigError, Proxy, Section, url_port};
use wasmcage_web_client::{ClientSettings, Http2, Tls};

/// The connections of the largest pool.
const CONNECTIONS_MAX: usize = 10_000;
const DAY_MS: u64 = 24 * 3600 * 1000;
const USER_AGENT: &str = concat!("wasmcage/", env!("CARGO_PKG_VERSION"));

pub(super) struct ClientConfig {
    pub(super) base: BaseUrl,
    /// The headers of every request, which a module cannot change.
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    pub(super) response_bytes_max: usize,
    pub(super) redirects: usize,
    pub(super) client: ClientSettings,
}

/// The key `url`: every request's URL is beneath it.
pub(super) struct BaseUrl {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    /// Empty, or a path that begins with a slash and does not end with one.
    pub(super) path: String,
}

impl ClientConfig {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        let base =
            section.required_parsed::<Uri>("url", "a URL such as \"https://api.example.org/v1\"").and_then(|uri| {
                let base = BaseUrl::of(&uri);
                if section.has_wrong_scheme("url", &["http", "https"]) {
                    return None;
                }
                if let Err(text) = &base {
                    section.problem("url", *text);
                }
                base.ok()
            });
        let http2_choices = [("auto", Http2::Auto), ("only", Http2::Only), ("never", Http2::Never)];
        let headers = headers(&section);
        let timeout = section.milliseconds("timeout_ms", Duration::from_secs(30), 1..=DAY_MS);
        let response_bytes_max = section.integer("max_response_bytes", 16 << 20, 1..=1 << 30) as usize;
        let redirects = section.integer("redirects", 0, 0..=20) as usize;
        let client = ClientSettings {
            tls: tls(&section),
            proxy: Proxy::read(&section),
            http2: section.choice("http2", &http2_choices, Http2::Auto),
            connect_timeout: section.milliseconds("connect_timeout_ms", Duration::from_secs(3), 1..=DAY_MS),
            idle_timeout: section.milliseconds("idle_timeout_ms", Duration::from_secs(30), 1..=DAY_MS),
            response_header_bytes_max: section.integer("max_response_header_bytes", 64 << 10, 8 << 10..=1 << 20)
                as usize,
            connections_max: CONNECTIONS_MAX,
        };
        section.finish()?;
        let base = base.expect("a URL that is missing or wrong is a mistake");
        Ok(Self { base, headers, timeout, response_bytes_max, redirects, client })
    }
}

impl BaseUrl {
    fn of(uri: &Uri) -> Result<Self, &'static str> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err("expected a URL such as \"https://api.example.org/v1\"");
        };
        if ![Scheme::HTTP, Scheme::HTTPS].contains(scheme) {
            return Err("a URL begins with http:// or https:// here");
        }
        if authority.as_str().contains('@') {
            return Err("a URL with a user is not understood: use headers = { authorization = \"Basic ..\" }");
        }
        if url_port(uri).is_none() {
            return Err("a URL's port is a number from 1 to 65535");
        }
        if uri.query().is_some() {
            return Err("a URL with a query cannot be the beginning of others");
        }
        let path = uri.path().trim_end_matches('/').to_owned();
        if has_dot_segments(&path) {
            return Err("a URL with `.` or `..` in its path cannot be the beginning of others");
        }
        Ok(Self { scheme: scheme.clone(), authority: authority.clone(), path })
    }

    /// The URL for an operation's target; none if the target is malformed.
    pub(super) fn join(&self, target: &str) -> Option<Uri> {
        let target: PathAndQuery = format!("{}{target}", self.path).parse().ok()?;
        let parts = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
        parts.path_and_query(target).build().ok()
    }
}

fn headers(section: &Section) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in section.pairs("headers") {
        match (HeaderName::try_from(&name), HeaderValue::try_from(&value)) {
            (Ok(name), _) if is_framing(&name) => {
                section.problem("headers", format!("{name} is set by the client itself"));
            }
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            (Err(_), _) => section.problem("headers", format!("{name:?} is no name of a header")),
            (_, Err(_)) => section.problem("headers", format!("the value of {name:?} cannot be sent")),
        }
    }
    let agent = section.string("user_agent", USER_AGENT);
    match HeaderValue::try_from(agent) {
        Ok(agent) => {
            headers.entry(http::header::USER_AGENT).or_insert(agent);
        }
        Err(_) => section.problem("user_agent", "it cannot be sent"),
    }
    headers
}

fn tls(section: &Section) -> Tls {
    let Some(table) = section.table("tls") else { return Tls::public() };
    let (ca, certificate, key) = (table.path("ca"), table.path("certificate"), table.path("key"));
    let name =
        table.optional_parsed::<TlsServerName>("server_name", "a name such as \"api.example.org\"").map(|name| name.0);
    if certificate.is_some() != key.is_some() {
        table.refuse("certificate and key go together");
    }
    let identity = certificate.as_deref().zip(key.as_deref());
    let tls = Tls::from_files(ca.as_deref(), identity, name).unwrap_or_else(|error| {
        let is = |path: &Option<PathBuf>| path.as_deref() == Some(error.file());
        table.problem(
            if is(&ca) {
                "ca"
            } else if is(&key) {
                "key"
            } else {
                "certificate"
            },
            error.to_string(),
        );
        Tls::public()
    });
    // The enclosing section reports its mistakes.
    let _ = table.finish();
    tls
}

/// A name that a certificate can have.
struct TlsServerName(ServerName<'static>);

impl std::str::FromStr for TlsServerName {
    type Err = rustls::pki_types::InvalidDnsNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ServerName::try_from(text.to_owned()).map(Self)
    }
}
