//! `[interfaces.NAME]` with `protocol = "http"`, read into values that cannot be wrong. Called once when the section is
//! new or changed; all mistakes are reported together.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderValue, Method};
use ipnet::IpNet;

use super::compress::Compress;
use super::forwarded::{ForwardedHeader, TrustedProxies};
use super::tls::{ClientAuth, TlsFiles};
use crate::config::{ConfigError, Section};

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Times and sizes are limits: at each, the client gets an answer that says so, or its connection is closed.
#[derive(Clone, Debug)]
pub(super) struct HttpConfig {
    /// `listen`: host and port; port 0 is any free one.
    pub(super) listen: String,
    /// `max_connections`: one more is closed unread.
    pub(super) connections_max: usize,
    /// `max_header_bytes`: of a request's head, trailers as well. 431.
    pub(super) header_bytes_max: usize,
    /// `max_headers`: lines in a head of HTTP/1. 431.
    pub(super) headers_max: usize,
    /// `max_body_bytes`: of a request. 413.
    pub(super) body_bytes_max: u64,
    /// `max_response_header_bytes`: of a module's answer. 502.
    pub(super) response_header_bytes_max: usize,
    /// `max_streams`: requests at once on one HTTP/2 connection.
    pub(super) streams_max: u32,
    /// `keep_alive`: more than one request on an HTTP/1 connection.
    pub(super) keep_alive: bool,
    /// `idle_timeout_ms`: between requests, and before the first.
    pub(super) idle_timeout: Duration,
    /// `header_timeout_ms`: from a head's first byte to its last. 408.
    pub(super) header_timeout: Duration,
    /// `body_timeout_ms`: for the whole body of a request to a `handler` module. 408.
    pub(super) body_timeout: Duration,
    /// `write_timeout_ms`: the client takes no byte of its answer.
    pub(super) write_timeout: Duration,
    /// `allowed_methods`; and the same as `Allow` lists it. 405.
    pub(super) allowed_methods: Vec<Method>,
    pub(super) allow: HeaderValue,
    /// `trusted_proxies`, `forwarded_header`.
    pub(super) trusted_proxies: TrustedProxies,
    /// `compress`, `compress_min_bytes`.
    pub(super) compress: Option<Compress>,
    /// `[interfaces.NAME.tls]`: none is plain HTTP.
    pub(super) tls: Option<TlsFiles>,
}

impl HttpConfig {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(mut section: Section) -> Result<Self, ConfigError> {
        let allowed_methods = methods(&mut section);
        let allow = allowed_methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let config = Self {
            listen: listen(&mut section),
            connections_max: section.integer("max_connections", 10_000, 1..=1_000_000) as usize,
            header_bytes_max: section.integer("max_header_bytes", 32 * 1024, 1024..=256 * 1024) as usize,
            headers_max: section.integer("max_headers", 100, 1..=1_000) as usize,
            body_bytes_max: section.integer("max_body_bytes", 8 * 1024 * 1024, 0..=4 * 1024 * 1024 * 1024) as u64,
            response_header_bytes_max: section.integer("max_response_header_bytes", 64 * 1024, 1024..=1024 * 1024)
                as usize,
            streams_max: section.integer("max_streams", 200, 1..=10_000) as u32,
            keep_alive: section.flag("keep_alive", true),
            idle_timeout: section.milliseconds("idle_timeout_ms", Duration::from_millis(60_000), 1..=86_400_000),
            header_timeout: section.milliseconds("header_timeout_ms", Duration::from_millis(10_000), 1..=3_600_000),
            body_timeout: section.milliseconds("body_timeout_ms", Duration::from_millis(30_000), 1..=86_400_000),
            write_timeout: section.milliseconds("write_timeout_ms", Duration::from_millis(30_000), 1..=3_600_000),
            allow: HeaderValue::try_from(allow).expect("methods are tokens, which a header can hold"),
            allowed_methods,
            trusted_proxies: trusted_proxies(&mut section),
            compress: compress(&mut section),
            tls: section.table("tls").map(tls),
        };
        section.finish()?;
        Ok(config)
    }
}

fn listen(section: &mut Section) -> String {
    let listen = section.string("listen", "127.0.0.1:8080");
    let port = listen.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(_))) {
        section.problem("listen", format!("{listen:?} is not host:port, such as \"127.0.0.1:8080\" or \"[::]:80\""));
    }
    listen
}

fn methods(section: &mut Section) -> Vec<Method> {
    let mut methods = Vec::new();
    for name in section.strings("allowed_methods", METHODS) {
        match Method::from_bytes(name.as_bytes()) {
            Ok(Method::CONNECT) => section.problem("allowed_methods", "CONNECT is for proxies".to_owned()),
            Ok(method) => methods.push(method),
            Err(_) => section.problem("allowed_methods", format!("{name:?} is not a method")),
        }
    }
    methods
}

fn trusted_proxies(section: &mut Section) -> TrustedProxies {
    let mut nets = Vec::new();
    for text in section.strings("trusted_proxies", &[]) {
        match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            Ok(net) => nets.push(net),
            Err(_) => section
                .problem("trusted_proxies", format!("{text:?} is not an address or a network such as \"10.0.0.0/8\"")),
        }
    }
    let headers = [("x-forwarded-for", ForwardedHeader::XForwarded), ("forwarded", ForwardedHeader::Forwarded)];
    let header = section.choice("forwarded_header", &headers, ForwardedHeader::XForwarded);
    TrustedProxies { nets, header }
}

fn compress(section: &mut Section) -> Option<Compress> {
    let types: Vec<String> = section.strings("compress", &[]).iter().map(|name| name.to_ascii_lowercase()).collect();
    for name in &types {
        let is_type = name.split_once('/').is_some_and(|(kind, subtype)| !kind.is_empty() && !subtype.is_empty());
        if !is_type || name.find('*').is_some_and(|at| at + 1 != name.len()) {
            section.problem("compress", format!("{name:?} is not a content type such as \"text/*\""));
        }
    }
    let bytes_min = section.integer("compress_min_bytes", 1024, 0..=1_000_000_000) as u64;
    (!types.is_empty()).then_some(Compress { types, bytes_min })
}

fn tls(mut section: Section) -> TlsFiles {
    let certificate = file(&mut section, "certificate");
    let key = file(&mut section, "key");
    let choice = section.choice("client_auth", &[("none", 0), ("optional", 1), ("required", 2)], 0);
    let client_auth = match choice {
        1 => ClientAuth::Optional(file(&mut section, "client_ca")),
        2 => ClientAuth::Required(file(&mut section, "client_ca")),
        _ => ClientAuth::None,
    };
    TlsFiles {
        certificate,
        key,
        client_auth,
        handshake_timeout: section.milliseconds("handshake_timeout_ms", Duration::from_millis(5_000), 1..=600_000),
        reload_interval: section.milliseconds("reload_ms", Duration::from_millis(5_000), 10..=3_600_000),
    }
}

/// A file that must be named.
fn file(section: &mut Section, key: &str) -> PathBuf {
    let name = section.string(key, "");
    if name.is_empty() {
        section.problem(key, "is needed: name of a PEM file".to_owned());
    }
    PathBuf::from(name)
}
