//! Where sockets bind and connect: `tcp://host:port` and `ipc://path`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest path of a Unix socket on Linux, without the zero byte behind it.
const PATH_BYTES_MAX: usize = 107;

/// Where to bind or connect.
///
/// | text | meaning |
/// |---|---|
/// | `tcp://127.0.0.1:5555`, `tcp://[::1]:5555` | an address |
/// | `tcp://broker.example:5555` | a name, looked up at each attempt to connect |
/// | `tcp://*:5555` | binding only: all addresses of IPv4 |
/// | `tcp://127.0.0.1:0`, `tcp://127.0.0.1:*` | binding only: a port that is free |
/// | `ipc:///run/broker.sock` | a Unix socket with a path |
/// | `ipc://@broker` | a Unix socket with a name that is no path (Linux) |
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// TCP.
    Tcp {
        /// A name, or an address without brackets.
        host: String,
        /// Zero to bind to any that is free.
        port: u16,
    },
    /// A Unix socket with a path.
    Ipc(PathBuf),
    /// A Unix socket with a name in the abstract namespace of Linux.
    IpcAbstract(String),
}

/// A text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the endpoint {text:?} {problem}: {remedy}")]
pub struct EndpointError {
    text: String,
    problem: String,
    remedy: &'static str,
}

impl Endpoint {
    /// An endpoint of TCP with an address.
    #[must_use]
    pub fn tcp(address: IpAddr, port: u16) -> Self {
        Self::Tcp { host: address.to_string(), port }
    }

    /// Whether binding to it takes a port that the system chooses.
    pub(crate) fn is_wildcard(&self) -> bool {
        matches!(self, Self::Tcp { host, port } if *port == 0 || host == "*")
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = |problem: String, remedy| EndpointError { text: text.to_owned(), problem, remedy };
        let known = "use tcp://HOST:PORT or ipc://PATH";
        let (transport, rest) =
            text.split_once("://").ok_or_else(|| wrong("has no transport before \"://\"".to_owned(), known))?;
        match transport {
            "tcp" => tcp(rest).map_err(|(problem, remedy)| wrong(problem, remedy)),
            "ipc" => ipc(rest).map_err(|(problem, remedy)| wrong(problem, remedy)),
            _ => Err(wrong(format!("has the transport {transport:?}, which is not known"), known)),
        }
    }
}

type Problem = (String, &'static str);

fn tcp(rest: &str) -> Result<Endpoint, Problem> {
    let (host, port) = rest
        .rsplit_once(':')
        .filter(|(host, _)| host.starts_with('[') == host.ends_with(']'))
        .ok_or_else(|| ("has no port".to_owned(), "write the port behind a colon, as in tcp://127.0.0.1:5555"))?;
    let port = match port {
        "*" => 0,
        _ => port.parse().map_err(|_| (format!("has the port {port:?}"), "use a number up to 65535"))?,
    };
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => {
            let address = inner.parse::<Ipv6Addr>();
            address.map_err(|_| (format!("has {inner:?} in brackets"), "only addresses of IPv6 have brackets"))?;
            inner
        }
        None if host.contains(':') => {
            return Err((
                format!("has the host {host:?}"),
                "write an address of IPv6 in brackets, as in tcp://[::1]:5555",
            ));
        }
        None if host.is_empty() => {
            return Err(("has no host".to_owned(), "write a name or an address before the port"));
        }
        None if host.contains(|character: char| character.is_whitespace() || "/;@".contains(character)) => {
            return Err((format!("has the host {host:?}"), "use a name or an address, and nothing else"));
        }
        None => host,
    };
    Ok(Endpoint::Tcp { host: host.to_owned(), port })
}

fn ipc(rest: &str) -> Result<Endpoint, Problem> {
    if rest.contains('\0') {
        return Err(("has a zero byte in its path".to_owned(), "use a path without"));
    }
    if rest.len() > PATH_BYTES_MAX {
        let problem = format!("has a path of {} bytes", rest.len());
        return Err((problem, "use one of at most 107 bytes, which is the system's limit"));
    }
    match rest.strip_prefix('@') {
        Some("") => Err(("has no name behind \"@\"".to_owned(), "write a name, as in ipc://@broker")),
        Some(name) => Ok(Endpoint::IpcAbstract(name.to_owned())),
        None if rest.is_empty() || rest == "*" => {
            Err(("has no path".to_owned(), "write the path of a socket, as in ipc:///run/broker.sock"))
        }
        None => Ok(Endpoint::Ipc(Path::new(rest).to_owned())),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Ipc(path) => write!(f, "ipc://{}", path.display()),
            Self::IpcAbstract(name) => write!(f, "ipc://@{name}"),
        }
    }
}

impl From<std::net::SocketAddr> for Endpoint {
    fn from(address: std::net::SocketAddr) -> Self {
        Self::tcp(address.ip(), address.port())
    }
}

/// What `*` is when binding.
pub(crate) const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn endpoints_are_read_and_written() {
        for (text, endpoint) in [
            ("tcp://127.0.0.1:5555", tcp("127.0.0.1", 5555)),
            ("tcp://[::1]:5555", tcp("::1", 5555)),
            ("tcp://broker.example:0", tcp("broker.example", 0)),
            ("tcp://*:80", tcp("*", 80)),
            ("ipc:///run/x.sock", Endpoint::Ipc("/run/x.sock".into())),
            ("ipc://relative", Endpoint::Ipc("relative".into())),
            ("ipc://@name", Endpoint::IpcAbstract("name".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(endpoint.clone()), "{text}");
            assert_eq!(endpoint.to_string(), text);
        }
        assert_eq!("tcp://127.0.0.1:*".parse(), Ok(tcp("127.0.0.1", 0)));
    }

    #[test]
    fn errors_say_what_is_wrong_where_and_what_to_do() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Endpoint>().unwrap_err().to_string(), format!("the endpoint {text:?} {expected}"));
        };
        check("", "has no transport before \"://\": use tcp://HOST:PORT or ipc://PATH");
        check("inproc://x", "has the transport \"inproc\", which is not known: use tcp://HOST:PORT or ipc://PATH");
        check("tcp://host", "has no port: write the port behind a colon, as in tcp://127.0.0.1:5555");
        check("tcp://[::1]", "has no port: write the port behind a colon, as in tcp://127.0.0.1:5555");
        check("tcp://host:99999", "has the port \"99999\": use a number up to 65535");
        check("tcp://:80", "has no host: write a name or an address before the port");
        check("tcp://::1:80", "has the host \"::1\": write an address of IPv6 in brackets, as in tcp://[::1]:5555");
        check("tcp://[host]:80", "has \"host\" in brackets: only addresses of IPv6 have brackets");
        check("tcp://eth0;1.2.3.4:5", "has the host \"eth0;1.2.3.4\": use a name or an address, and nothing else");
        check("ipc://", "has no path: write the path of a socket, as in ipc:///run/broker.sock");
        check("ipc://@", "has no name behind \"@\": write a name, as in ipc://@broker");
        let long = format!("ipc:///{}", "x".repeat(120));
        check(&long, "has a path of 121 bytes: use one of at most 107 bytes, which is the system's limit");
    }

    #[test]
    fn no_text_panics() {
        arbtest::arbtest(|u| {
            let text: String = u.arbitrary()?;
            for prefix in ["", "tcp://", "ipc://", "tcp://["] {
                let _ = format!("{prefix}{text}").parse::<Endpoint>();
            }
            Ok(())
        });
    }
}
