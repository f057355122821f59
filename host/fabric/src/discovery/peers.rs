//! Addresses of peers as the configuration or another copy names them: `peers = { worker = ["10.0.0.2:7420"] }`. Only the
//! form is checked; host names are resolved when a connection is made.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Length of a name in the domain name system.
const HOST_BYTES_MAX: usize = 253;

/// `host:port` with a port other than 0; the host is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddress(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not host:port, such as 10.0.0.2:7420, b.example:7420 or [fd00::2]:7420")]
pub struct BadPeerAddress;

impl PeerAddress {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeerAddress {
    type Err = BadPeerAddress;

    fn from_str(text: &str) -> Result<Self, BadPeerAddress> {
        let (host, port) = text.rsplit_once(':').ok_or(BadPeerAddress)?;
        let port_fits =
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
        let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => is_host(host),
        };
        if port_fits && host_fits { Ok(Self(text.to_owned())) } else { Err(BadPeerAddress) }
    }
}

fn is_host(host: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(fits);
    // A fully qualified name may end with a dot.
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= HOST_BYTES_MAX && host.split('.').all(is_label)
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        let check = |text: &str, expected: bool| {
            let parsed = text.parse::<PeerAddress>();
            assert_eq!(
                parsed.as_ref().map(ToString::to_string),
                expected.then(|| text.to_owned()).ok_or(&BadPeerAddress)
            );
        };
        for good in ["10.0.0.2:7420", "b.example:7420", "b.example.:1", "my_host-1:65535", "[fd00::2]:7420", "[::1]:1"]
        {
            check(good, true);
        }
        for bad in [
            "",
            ":",
            "host",
            "host:",
            ":7420",
            "host:0",
            "host:65536",
            "host:+1",
            "host:74 20",
            "ho st:1",
            "host/x:1",
            "fd00::2:7420",
            "[fd00::2]",
            "[fd00::2%1]:1",
            "[host]:1",
            "a..b:1",
            ".:1",
            "tcp://host:1",
            "host:1\n",
            "\u{e9}:1",
        ] {
            check(bad, false);
        }
        check(&format!("{}:1", "x".repeat(64)), false);
        check(&format!("{}:1", "x.".repeat(200)), false);
    }
}
