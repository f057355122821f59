//! The facts of a request: the client's address as the connection or a trusted proxy gives it, the client certificate's
//! name, Basic credentials, and the trace. `interface.rs` calls this for each request; a request that adds nothing
//! shares its connection's facts. All input is the client's: parsing never fails, and forwarding headers of an
//! untrusted peer are ignored.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use http::header::{AUTHORIZATION, FORWARDED};
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use wasmcage_core::request::Facts;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The longest chain of proxies that is followed.
const HOPS_MAX: usize = 32;

/// The header that the trusted proxies write. Only one is read, since a proxy passes the other on as its client sent
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForwardedHeader {
    /// `X-Forwarded-For` and `X-Forwarded-Proto`.
    XForwarded,
    /// `Forwarded`, RFC 7239.
    Forwarded,
}

/// The proxies whose forwarding headers are trusted.
#[derive(Clone, Debug)]
pub(super) struct TrustedProxies {
    pub(super) nets: Vec<IpNet>,
    pub(super) header: ForwardedHeader,
}

/// The client as its connection shows it.
pub(super) struct ClientIdentity {
    pub(super) address: IpAddr,
    encrypted: bool,
    name: Option<String>,
    facts: Arc<Facts>,
}

impl ClientIdentity {
    pub(super) fn new(address: IpAddr, encrypted: bool, name: Option<String>) -> Self {
        // An IPv4 client of an IPv6 socket is known by its IPv4 address, also to `trusted_proxies`.
        let address = address.to_canonical();
        let facts = Arc::new(facts(address, encrypted, name.as_deref()));
        Self { address, encrypted, name, facts }
    }

    /// The facts of one request of this connection.
    pub(super) fn facts(&self, headers: &HeaderMap, proxies: &TrustedProxies) -> Arc<Facts> {
        let credentials = credentials(headers);
        let origin = origin(self.address, headers, proxies);
        let traceparent = traceparent(headers);
        if credentials.is_none() && origin.is_none() && traceparent.is_none() {
            return self.facts.clone();
        }
        let mut all = match origin {
            Some(Origin { address, encrypted }) => {
                facts(address, encrypted.unwrap_or(self.encrypted), self.name.as_deref())
            }
            None => Facts::clone(&self.facts),
        };
        if let Some((username, password)) = credentials {
            all.set(Facts::USERNAME, username);
            all.set(Facts::PASSWORD, password);
        }
        if let Some(traceparent) = traceparent {
            all.set(Facts::TRACEPARENT, traceparent);
        }
        Arc::new(all)
    }
}

fn facts(address: IpAddr, encrypted: bool, name: Option<&str>) -> Facts {
    let mut facts = Facts::default();
    facts.set(Facts::PEER_ADDRESS, address.to_string());
    if encrypted {
        facts.set(Facts::ENCRYPTED, "true");
    }
    if let Some(name) = name {
        facts.set(Facts::PEER_NAME, name);
    }
    facts
}

/// The origin of a request, according to trusted proxies.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    address: IpAddr,
    /// None if the proxy does not say.
    encrypted: Option<bool>,
}

/// One proxy's entry about its own client.
struct Hop<'a> {
    address: &'a str,
    proto: Option<&'a str>,
}

/// Follows the entries from the connection's peer outwards as long as a trusted proxy made them; none if there are no
/// such entries.
fn origin(peer: IpAddr, headers: &HeaderMap, proxies: &TrustedProxies) -> Option<Origin> {
    let trusted = |address: &IpAddr| proxies.nets.iter().any(|net| net.contains(address));
    if proxies.nets.is_empty() || !trusted(&peer) {
        return None;
    }
    let mut origin = Origin { address: peer, encrypted: None };
    for hop in hops(headers, proxies.header).take(HOPS_MAX) {
        let Some(address) = hop_address(hop.address) else { break };
        origin.address = address;
        // The scheme in the outermost trusted entry is the client's own.
        if let Some(proto) = hop.proto {
            origin.encrypted = Some(proto.eq_ignore_ascii_case("https"));
        }
        if !trusted(&address) {
            break;
        }
    }
    if proxies.header == ForwardedHeader::XForwarded {
        // The schemes need not correspond to the addresses one by one, so the nearest proxy's counts.
        let proto = last(headers, &X_FORWARDED_PROTO).next();
        origin.encrypted = proto.map(|proto| proto.eq_ignore_ascii_case("https"));
    }
    (origin.address != peer || origin.encrypted.is_some()).then_some(origin)
}

/// The entries in the header, the nearest proxy's first.
fn hops(headers: &HeaderMap, header: ForwardedHeader) -> Box<dyn Iterator<Item = Hop<'_>> + '_> {
    match header {
        ForwardedHeader::XForwarded => {
            Box::new(last(headers, &X_FORWARDED_FOR).map(|address| Hop { address, proto: None }))
        }
        ForwardedHeader::Forwarded => Box::new(last(headers, &FORWARDED).map(|element| {
            let field = |name: &str| {
                element
                    .split(';')
                    .filter_map(|pair| pair.split_once('='))
                    .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.trim().trim_matches('"'))
            };
            Hop { address: field("for").unwrap_or_default(), proto: field("proto") }
        })),
    }
}

/// The elements of a header that is a list, in reverse order.
fn last<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let values: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
    values.into_iter().rev().flat_map(|value| value.to_str().unwrap_or_default().rsplit(',').map(str::trim))
}

/// Parses `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`; none for names such as `unknown`.
fn hop_address(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok().or_else(|| {
        let socket = text.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip());
        socket.or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok())
    });
    address.map(|address| address.to_canonical())
}

/// User name and password of `Authorization: Basic`; none if the header is missing, repeated or malformed.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

/// The single `traceparent` header, if it is of version 00 of W3C Trace Context: trace, parent, flags, in lower-case
/// hexadecimal digits. Any other value is ignored, as the specification demands.
fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let mut parts = value.split('-');
    let mut part = |length: usize| {
        let part = parts.next().filter(|part| part.len() == length)?;
        part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).then_some(part)
    };
    let (version, trace, parent, _flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let set = |part: &str| part.bytes().any(|byte| byte != b'0');
    (version == "00" && set(trace) && set(parent) && parts.next().is_none()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    /// Checks the address and encryption in the facts of a request from `peer`, with `10.0.0.0/8` and `::1` trusted.
    fn check(header: ForwardedHeader, peer: &str, lines: &[(&'static str, &str)], expected: (&str, bool)) {
        let nets = vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let peer = ClientIdentity::new(peer.parse().unwrap(), false, None);
        let facts = peer.facts(&headers(lines), &TrustedProxies { nets, header });
        let found = (facts.get(Facts::PEER_ADDRESS).unwrap(), facts.get(Facts::ENCRYPTED).is_some());
        assert_eq!(found, expected, "{lines:?}");
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let x = ForwardedHeader::XForwarded;
        check(
            x,
            "192.0.2.9",
            &[("x-forwarded-for", "198.51.100.1"), ("x-forwarded-proto", "https")],
            ("192.0.2.9", false),
        );
        check(x, "10.0.0.1", &[], ("10.0.0.1", false));
        check(x, "10.0.0.1", &[("x-forwarded-for", "198.51.100.1")], ("198.51.100.1", false));
        check(x, "::ffff:10.0.0.1", &[("x-forwarded-for", "198.51.100.1")], ("198.51.100.1", false));
        check(x, "::1", &[("x-forwarded-for", "[2001:db8::1]:4711")], ("2001:db8::1", false));
        check(x, "10.0.0.1", &[("x-forwarded-proto", "https")], ("10.0.0.1", true));
        check(x, "10.0.0.1", &[("x-forwarded-proto", "http, https")], ("10.0.0.1", true));
        // The entry on the left is forged by the client.
        check(x, "10.0.0.1", &[("x-forwarded-for", "1.1.1.1, 198.51.100.1, 10.0.0.2")], ("198.51.100.1", false));
        check(
            x,
            "10.0.0.1",
            &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "198.51.100.1")],
            ("198.51.100.1", false),
        );
        check(x, "10.0.0.1", &[("x-forwarded-for", "10.0.0.3, 10.0.0.2")], ("10.0.0.3", false));
        check(x, "10.0.0.1", &[("x-forwarded-for", "unknown, 10.0.0.2")], ("10.0.0.2", false));
        check(x, "10.0.0.1", &[("x-forwarded-for", ",,,")], ("10.0.0.1", false));
        check(x, "10.0.0.1", &[("forwarded", "for=1.1.1.1;proto=https")], ("10.0.0.1", false));
    }

    #[test]
    fn forwarded_is_parsed_by_its_rfc() {
        let f = ForwardedHeader::Forwarded;
        check(f, "10.0.0.1", &[("forwarded", "for=198.51.100.1;proto=https")], ("198.51.100.1", true));
        check(f, "10.0.0.1", &[("forwarded", "For=\"[2001:db8::1]:80\" ; Proto=http")], ("2001:db8::1", false));
        check(f, "10.0.0.1", &[("forwarded", "for=1.1.1.1, for=198.51.100.1, for=10.0.0.2")], ("198.51.100.1", false));
        check(f, "10.0.0.1", &[("forwarded", "for=_hidden")], ("10.0.0.1", false));
        check(f, "10.0.0.1", &[("forwarded", "=;;for;,=\",")], ("10.0.0.1", false));
        check(f, "10.0.0.1", &[("x-forwarded-for", "1.1.1.1")], ("10.0.0.1", false));
    }

    fn check_basic(value: &str, expected: Option<(&str, &str)>) {
        let found = credentials(&headers(&[("authorization", value)]));
        assert_eq!(found.as_ref().map(|(name, word)| (name.as_str(), word.as_str())), expected, "{value}");
    }

    #[test]
    fn basic_credentials_are_read() {
        check_basic("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", Some(("Aladdin", "open sesame")));
        check_basic("basic dTpwOnE=", Some(("u", "p:q")));
        check_basic("Basic Og==", Some(("", "")));
        check_basic("Basic bm9jb2xvbg==", None);
        check_basic("Basic !!!", None);
        check_basic("Basic //46", None);
        check_basic("Basic", None);
        check_basic("Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==", None);
        assert!(credentials(&headers(&[("authorization", "Basic dTpw"), ("authorization", "Basic dTpw")])).is_none());
    }

    #[test]
    fn a_well_formed_trace_is_a_fact() {
        let check = |lines: &[(&'static str, &str)], expected: bool| {
            let peer = ClientIdentity::new("192.0.2.1".parse().unwrap(), false, None);
            let none = TrustedProxies { nets: Vec::new(), header: ForwardedHeader::XForwarded };
            let facts = peer.facts(&headers(lines), &none);
            assert_eq!(facts.get(Facts::TRACEPARENT), expected.then(|| lines[0].1), "{lines:?}");
            assert_eq!(facts.get(Facts::PEER_ADDRESS), Some("192.0.2.1"));
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        check(&[("traceparent", good)], true);
        check(&[("traceparent", good), ("traceparent", good)], false);
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6-a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            check(&[("traceparent", bad)], false);
        }
    }

    #[test]
    fn requests_that_add_nothing_share_their_facts() {
        let peer = ClientIdentity::new("192.0.2.1".parse().unwrap(), true, Some("client".into()));
        let none = TrustedProxies { nets: Vec::new(), header: ForwardedHeader::XForwarded };
        let facts = peer.facts(&headers(&[("x-forwarded-for", "1.1.1.1")]), &none);
        assert!(Arc::ptr_eq(&facts, &peer.facts));
        assert_eq!(facts.get(Facts::PEER_NAME), Some("client"));
    }
}
