//! The configuration of an interface: `[interfaces.NAME]` with `protocol = "http"`, checked. It is read when the
//! section is new or has changed; all mistakes are reported together.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderValue, Method};
use ipnet::IpNet;

use super::compress::Compress;
use super::forwarded::{ForwardedHeader, TrustedProxies};
use super::tls::{ClientAuth, TlsFiles};
use wasmcage_config::{ConfigError, ListenAddress, Section};
use wasmcage_protocol::RouteKind;

const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// The default of `max_body_bytes` for a body that is collected and for one that is streamed, and its upper bound.
const WHOLE_BODY_BYTES_MAX: u64 = 8 << 20;
const STREAMED_BODY_BYTES_MAX: u64 = 1 << 30;
const BODY_BYTES_MAX: u64 = 64 << 30;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// All times and sizes are limits: at each, the client gets an error response, or its connection is closed.
#[derive(Clone, Debug)]
pub(super) struct HttpConfig {
    /// `listen`: host and port; port 0 is any free one.
    pub(super) listen: String,
    /// `max_connections`: a further one is closed unread.
    pub(super) connections_max: usize,
    /// `max_header_bytes`: the size of a request's head, and of its trailers. Status 431.
    pub(super) header_bytes_max: usize,
    /// `max_headers`: the lines in a head of HTTP/1. Status 431.
    pub(super) headers_max: usize,
    /// `max_body_bytes`: the size of a request's body. Status 413. The default is smaller for a `handler` module, which
    /// gets bodies whole, than for a `wasi:http` module, which streams them.
    pub(super) body_bytes: Option<u64>,
    /// `stream_timeout_ms`: how long a `wasi:http` exchange may take, even if it makes progress.
    pub(super) stream_timeout: Duration,
    /// `max_response_header_bytes`: the size of a module's headers. Status 502.
    pub(super) response_header_bytes_max: usize,
    /// `max_streams`: concurrent requests on one HTTP/2 connection.
    pub(super) streams_max: u32,
    /// `keep_alive`: whether an HTTP/1 connection serves more than one request.
    pub(super) keep_alive: bool,
    /// `idle_timeout_ms`: between requests, and before the first.
    pub(super) idle_timeout: Duration,
    /// `header_timeout_ms`: from a head's first byte to its last. Status 408.
    pub(super) header_timeout: Duration,
    /// `body_timeout_ms`: for the whole body of a request to a `handler` module. Status 408.
    pub(super) body_timeout: Duration,
    /// `write_timeout_ms`: while the client reads no byte of its response.
    pub(super) write_timeout: Duration,
    /// `stop_grace_ms`: how long a stop waits for the request of a client that has sent none. It is limited to half of
    /// a request's timeout.
    pub(super) stop_grace: Duration,
    /// `allowed_methods`, and the same as the value of `Allow`. Status 405.
    pub(super) allowed_methods: Vec<Method>,
    pub(super) allow: HeaderValue,
    /// `trusted_proxies`, `forwarded_header`.
    pub(super) trusted_proxies: TrustedProxies,
    /// `compress`, `compress_min_bytes`.
    pub(super) compress: Option<Compress>,
    /// `[interfaces.NAME.tls]`: without it, plain HTTP is spoken.
    pub(super) tls: Option<TlsFiles>,
}

impl HttpConfig {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        let listen = section.parsed(
            "listen",
            ListenAddress("127.0.0.1:8080".to_owned()),
            "host:port, such as \"127.0.0.1:8080\" or \"[::]:80\"",
        );
        let milliseconds = |key, default, most| section.milliseconds(key, Duration::from_millis(default), 1..=most);
        let allowed_methods = methods(&section);
        let allow = allowed_methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let config = Self {
            listen: listen.0,
            connections_max: section.integer("max_connections", 10_000, 1..=1_000_000) as usize,
            header_bytes_max: section.integer("max_header_bytes", 32 << 10, 1 << 10..=256 << 10) as usize,
            headers_max: section.integer("max_headers", 100, 1..=1_000) as usize,
            body_bytes: section.optional_integer("max_body_bytes", 0..=BODY_BYTES_MAX),
            stream_timeout: milliseconds("stream_timeout_ms", 3600 * 1000, DAY_MS),
            response_header_bytes_max: section.integer("max_response_header_bytes", 64 << 10, 1 << 10..=1 << 20)
                as usize,
            streams_max: section.integer("max_streams", 200, 1..=10_000) as u32,
            keep_alive: section.flag("keep_alive", true),
            idle_timeout: milliseconds("idle_timeout_ms", 60_000, DAY_MS),
            header_timeout: milliseconds("header_timeout_ms", 10_000, DAY_MS),
            body_timeout: milliseconds("body_timeout_ms", 30_000, DAY_MS),
            write_timeout: milliseconds("write_timeout_ms", 30_000, DAY_MS),
            stop_grace: section.milliseconds("stop_grace_ms", Duration::from_secs(1), 0..=60_000),
            allow: HeaderValue::try_from(allow).expect("methods are tokens, which a header can hold"),
            allowed_methods,
            trusted_proxies: trusted_proxies(&section),
            compress: compress(&section),
            tls: section.table("tls").map(tls),
        };
        section.finish()?;
        Ok(config)
    }

    /// The largest body of a request, by how its module gets it.
    pub(super) fn body_bytes_max(&self, kind: RouteKind) -> u64 {
        self.body_bytes.unwrap_or(match kind {
            RouteKind::Whole => WHOLE_BODY_BYTES_MAX,
            RouteKind::Streamed => STREAMED_BODY_BYTES_MAX,
        })
    }
}

fn methods(section: &Section) -> Vec<Method> {
    section.parsed_list("allowed_methods", METHODS.to_vec(), "a method, such as \"GET\"")
}

/// A network; an address stands for the network with just that address.
struct Net(IpNet);

impl FromStr for Net {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Self).map_err(|_| ())
    }
}

fn trusted_proxies(section: &Section) -> TrustedProxies {
    let nets: Vec<Net> =
        section.parsed_list("trusted_proxies", Vec::new(), "an address or a network, such as \"10.0.0.0/8\"");
    let header = section.choice(
        "forwarded_header",
        &[("x-forwarded-for", ForwardedHeader::XForwarded), ("forwarded", ForwardedHeader::Forwarded)],
        ForwardedHeader::XForwarded,
    );
    TrustedProxies { nets: nets.into_iter().map(|net| net.0).collect(), header }
}

/// A pattern such as `text/*` or `application/json`.
struct ContentType(String);

impl FromStr for ContentType {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let star_is_last = text.find('*').is_none_or(|at| text[at..] == *"*" && text[..at].ends_with('/'));
        match text.split_once('/') {
            Some((kind, subtype)) if !kind.is_empty() && !subtype.is_empty() && star_is_last => {
                Ok(Self(text.to_ascii_lowercase()))
            }
            _ => Err(()),
        }
    }
}

fn compress(section: &Section) -> Option<Compress> {
    let types: Vec<ContentType> =
        section.parsed_list("compress", Vec::new(), "a content type, such as \"application/json\" or \"text/*\"");
    let bytes_min = section.integer("compress_min_bytes", 1024, 0..=1 << 30);
    let types: Vec<String> = types.into_iter().map(|content_type| content_type.0).collect();
    (!types.is_empty()).then_some(Compress { types, bytes_min })
}

fn tls(section: Section) -> TlsFiles {
    let file = |key| {
        let file = section.path(key);
        if !section.has(key) {
            section.problem(key, "missing: the name of a PEM file");
        }
        file.unwrap_or_default()
    };
    #[derive(Clone, Copy)]
    enum ClientAuthChoice {
        None,
        Optional,
        Required,
    }
    let choices = [
        ("none", ClientAuthChoice::None),
        ("optional", ClientAuthChoice::Optional),
        ("required", ClientAuthChoice::Required),
    ];
    let client_auth = match section.choice("client_auth", &choices, ClientAuthChoice::None) {
        ClientAuthChoice::None => ClientAuth::None,
        ClientAuthChoice::Optional => ClientAuth::Optional(file("client_ca")),
        ClientAuthChoice::Required => ClientAuth::Required(file("client_ca")),
    };
    let files = TlsFiles {
        certificate: file("certificate"),
        key: file("key"),
        client_auth,
        handshake_timeout: section.milliseconds("handshake_timeout_ms", Duration::from_secs(5), 1..=DAY_MS),
        reload_interval: section.milliseconds("reload_ms", Duration::from_secs(5), 100..=DAY_MS),
    };
    // The enclosing section reports its mistakes.
    let _ = section.finish();
    files
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use wasmcage_config::{Environment, ProtocolInfo};

    /// The configuration of an interface with these lines.
    fn read(lines: &str) -> Result<HttpConfig, String> {
        let text = format!("[interfaces.my_http]\nprotocol = \"http\"\n{lines}");
        let environment = Environment {
            cage: "runner",
            node: "node",
            directory: Path::new("/cages/runner"),
            protocols: &[ProtocolInfo::new("http")],
            left_out: &[],
            variables: &|_| None,
        };
        let config =
            wasmcage_config::parse(&[("cage.toml".into(), text)], &environment).map_err(|error| error.to_string())?;
        let section = config.interfaces["my_http"].section.clone();
        HttpConfig::read(section).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_safe() {
        let config = read("").unwrap();
        assert_eq!(config.listen, "127.0.0.1:8080");
        assert_eq!(config.allow, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        assert!(config.tls.is_none() && config.compress.is_none() && config.trusted_proxies.nets.is_empty());
    }

    #[test]
    fn file_names_are_relative_to_the_cage() {
        let config = read("[interfaces.my_http.tls]\ncertificate = \"cert.pem\"\nkey = \"/etc/key.pem\"").unwrap();
        let tls = config.tls.unwrap();
        assert_eq!(tls.certificate, Path::new("/cages/runner/cert.pem"));
        assert_eq!((tls.key.as_path(), tls.client_auth), (Path::new("/etc/key.pem"), ClientAuth::None));
    }

    fn check_refused(lines: &str, words: &[&str]) {
        let error = read(lines).unwrap_err();
        for word in words {
            assert!(error.contains(word), "{word} is not in {error}");
        }
    }

    #[test]
    fn mistakes_are_reported_together() {
        check_refused("listen = \"8080\"\nmax_conections = 5", &["listen", "max_connections"]);
        check_refused("listen = \":80\"", &["listen"]);
        check_refused("listen = \"a:b\"", &["listen"]);
        check_refused("max_connections = 0\nidle_timeout_ms = 0", &["max_connections", "idle_timeout_ms"]);
        check_refused("allowed_methods = [\"G T\"]", &["allowed_methods"]);
        check_refused("trusted_proxies = [\"10.0.0.0/99\"]", &["trusted_proxies"]);
        check_refused("forwarded_header = \"via\"", &["forwarded_header", "x-forwarded-for"]);
        for content_type in ["text", "/", "text/", "text/*x", "t*/x", "*"] {
            check_refused(&format!("compress = [\"{content_type}\"]"), &["compress"]);
        }
        check_refused(
            "tls = { certificate = \"c.pem\", client_auth = \"required\", x = 1 }",
            &["tls.key", "client_ca", "tls.x"],
        );
    }
}
