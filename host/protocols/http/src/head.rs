//! Checks a request's head for what HTTP forbids and hyper allows, and converts it to the parts of a module's
//! `Request`. `interface.rs` calls this before the body is read.

use http::header::{COOKIE, EXPECT, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};

/// Why a request is refused because of its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadFault {
    /// The host is missing, repeated or malformed.
    Host,
    /// An expectation other than `100-continue`.
    Expectation,
    Method,
    /// The body is chunked more than once, so that servers may disagree about its end.
    Chunks,
    /// The body has a transfer coding that is not decoded here, such as gzip.
    Coding,
    /// A CONNECT whose target is anything but a host with a port.
    Destination,
    /// A CONNECT with a body.
    Content,
}

impl HeadFault {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Chunks | Self::Destination | Self::Content => StatusCode::BAD_REQUEST,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Host | Self::Chunks | Self::Destination | Self::Content => "bad-request",
            Self::Coding => "not-implemented",
            Self::Expectation => "expectation-failed",
            Self::Method => "method-not-allowed",
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Host => "the request does not name one valid host",
            Self::Expectation => "the only expectation known here is 100-continue",
            Self::Method => "this method is not allowed here",
            Self::Chunks => "the request's body is chunked more than once",
            Self::Coding => "the only transfer coding known here is chunked",
            Self::Destination => "a tunnel's destination is a host and a port, such as example.org:443",
            Self::Content => "a request for a tunnel has no body",
        }
    }
}

/// Checks a head.
///
/// # Errors
/// The first fault found.
pub(super) fn check(parts: &Parts, allowed: &[Method]) -> Result<(), HeadFault> {
    if !allowed.contains(&parts.method) {
        return Err(HeadFault::Method);
    }
    if !host_is_valid(parts) {
        return Err(HeadFault::Host);
    }
    check_coding(parts)?;
    match parts.headers.get(EXPECT) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Err(HeadFault::Expectation),
        _ => Ok(()),
    }
}

/// Checks for RFC 9112 section 6.1: a body is chunked once, as the last coding, which hyper has made sure of. Another
/// coding beneath it would reach the module undecoded.
fn check_coding(parts: &Parts) -> Result<(), HeadFault> {
    let lines = parts.headers.get_all(TRANSFER_ENCODING).iter();
    let codings = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let mut chunked = false;
    for coding in codings.map(<[u8]>::trim_ascii).filter(|coding| !coding.is_empty()) {
        if !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(HeadFault::Coding);
        }
        if std::mem::replace(&mut chunked, true) {
            return Err(HeadFault::Chunks);
        }
    }
    Ok(())
}

/// Checks the head of a CONNECT, after `check`, for RFC 9110 section 9.3.6.
///
/// # Errors
/// `Destination`, or `Content` if a body follows.
pub(super) fn check_connect(parts: &Parts, has_body: bool) -> Result<(), HeadFault> {
    let uri = &parts.uri;
    let names_host = uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some_and(|port| port > 0);
    if !names_host || uri.scheme().is_some() || uri.path_and_query().is_some() {
        return Err(HeadFault::Destination);
    }
    if has_body { Err(HeadFault::Content) } else { Ok(()) }
}

/// Checks for RFC 9112 section 3.2 and RFC 9113 section 8.3.1: there is one host. HTTP/1.0 may have none; HTTP/2 mostly
/// has it in the target.
fn host_is_valid(parts: &Parts) -> bool {
    let mut hosts = parts.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => parts.version == Version::HTTP_10 || parts.uri.authority().is_some_and(|_| is_http2(parts)),
        (Some(_), Some(_)) => false,
        (Some(host), None) => {
            let agrees =
                || parts.uri.authority().is_none_or(|authority| authority.as_str().as_bytes() == host.as_bytes());
            is_host(host) && (!is_http2(parts) || agrees())
        }
    }
}

fn is_http2(parts: &Parts) -> bool {
    parts.version == Version::HTTP_2
}

/// Returns whether the value is a host. An empty one is valid: it goes with a target without an authority.
fn is_host(host: &HeaderValue) -> bool {
    let host = host.as_bytes();
    host.is_empty() || (!host.contains(&b'@') && Authority::try_from(host).is_ok_and(|host| has_valid_port(&host)))
}

/// Returns whether the port, if any, is a number of 16 bits; `Authority` accepts any digits.
fn has_valid_port(authority: &Authority) -> bool {
    authority.port_u16().is_some() || authority.as_str().len() <= authority.host().len() + 1
}

/// Path and query as they were sent, in whichever form of target; for CONNECT host and port, since there is nothing
/// else.
pub(super) fn target(uri: &Uri) -> String {
    match (uri.path_and_query(), uri.authority()) {
        (Some(target), _) if !target.as_str().is_empty() => target.as_str().to_owned(),
        (None, Some(authority)) if uri.scheme().is_none() => authority.to_string(),
        _ => "/".to_owned(),
    }
}

/// Adds scheme and host to the target, as `wasi:http` requires. Only a client of HTTP/1.0 may have given no host.
pub(super) fn complete_target(parts: &mut Parts, encrypted: bool) {
    let host = || Authority::try_from(parts.headers.get(HOST)?.as_bytes()).ok();
    let authority = parts.uri.authority().cloned().or_else(host);
    let mut target = std::mem::take(&mut parts.uri).into_parts();
    target.scheme = Some(if encrypted { Scheme::HTTPS } else { Scheme::HTTP });
    target.authority = Some(authority.unwrap_or_else(|| Authority::from_static("localhost")));
    let path = target.path_and_query.take();
    target.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.uri = Uri::from_parts(target).expect("a target with all of its parts is one");
}

/// The headers for a module: names in lower case, repeats kept. A value that is not UTF-8 is read as Latin-1, which
/// loses no byte. The host is a header for every version and form of target; cookies that HTTP/2 has split are joined.
pub(super) fn headers(parts: &Parts) -> Vec<(String, String)> {
    let mut headers = Vec::with_capacity(parts.headers.len() + 1);
    // A target with a host overrides the header: RFC 9112 section 3.2.2.
    let host = parts.uri.authority().map(Authority::as_str);
    if let Some(host) = host {
        headers.push((HOST.as_str().to_owned(), host.to_owned()));
    }
    let join_cookies = is_http2(parts) && parts.headers.get_all(COOKIE).iter().nth(1).is_some();
    for (name, value) in &parts.headers {
        if (host.is_some() && name == HOST) || (join_cookies && name == COOKIE) {
            continue;
        }
        headers.push((name.as_str().to_owned(), text(value)));
    }
    if join_cookies {
        headers.push((COOKIE.as_str().to_owned(), cookies(&parts.headers)));
    }
    headers
}

fn cookies(headers: &HeaderMap) -> String {
    let crumbs: Vec<String> = headers.get_all(COOKIE).iter().map(text).collect();
    crumbs.join("; ")
}

fn text(value: &HeaderValue) -> String {
    let bytes = value.as_bytes();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(version: Version, method: &str, uri: &str, lines: &[(&'static str, &[u8])]) -> Parts {
        let mut request = http::Request::builder().version(version).method(method).uri(uri).body(()).unwrap();
        for (name, value) in lines {
            request.headers_mut().append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        request.into_parts().0
    }

    fn check_head(
        version: Version,
        method: &str,
        uri: &str,
        lines: &[(&'static str, &[u8])],
        expected: Option<HeadFault>,
    ) {
        let found = check(&parts(version, method, uri, lines), &[Method::GET, Method::POST]).err();
        assert_eq!(found, expected, "{version:?} {method} {uri} {lines:?}");
    }

    #[test]
    fn a_request_names_one_host() {
        let one = Version::HTTP_11;
        check_head(one, "GET", "/", &[("host", b"a.example:80")], None);
        check_head(one, "GET", "/", &[("host", b"[::1]:80")], None);
        check_head(one, "GET", "/", &[("host", b"")], None);
        check_head(one, "GET", "/", &[], Some(HeadFault::Host));
        check_head(one, "GET", "http://a.example/", &[], Some(HeadFault::Host));
        check_head(one, "GET", "http://a.example/", &[("host", b"b.example")], None);
        check_head(one, "GET", "/", &[("host", b"a"), ("host", b"a")], Some(HeadFault::Host));
        check_head(one, "GET", "/", &[("host", b"a b")], Some(HeadFault::Host));
        check_head(one, "GET", "/", &[("host", b"user@a")], Some(HeadFault::Host));
        check_head(one, "GET", "/", &[("host", b"a/b")], Some(HeadFault::Host));
        check_head(one, "GET", "/", &[("host", b"\xff")], Some(HeadFault::Host));
        check_head(one, "GET", "/", &[("host", b"a:")], None);
        check_head(one, "GET", "/", &[("host", b"a:65536")], Some(HeadFault::Host));
        check_head(Version::HTTP_10, "GET", "/", &[], None);
        check_head(Version::HTTP_2, "GET", "https://a.example/", &[], None);
        check_head(Version::HTTP_2, "GET", "https://a.example/", &[("host", b"a.example")], None);
        check_head(Version::HTTP_2, "GET", "https://a.example/", &[("host", b"b.example")], Some(HeadFault::Host));
    }

    #[test]
    fn methods_and_expectations_are_checked() {
        let host: (&'static str, &[u8]) = ("host", b"a");
        check_head(Version::HTTP_11, "DELETE", "/", &[host], Some(HeadFault::Method));
        check_head(Version::HTTP_11, "CONNECT", "a.example:80", &[host], Some(HeadFault::Method));
        check_head(Version::HTTP_11, "POST", "/", &[host, ("expect", b"100-Continue")], None);
        check_head(Version::HTTP_11, "POST", "/", &[host, ("expect", b"a-pony")], Some(HeadFault::Expectation));
    }

    #[test]
    fn a_tunnel_leads_to_a_host_and_a_port() {
        let check = |version, uri: &str, expected| {
            let found = check_connect(&parts(version, "CONNECT", uri, &[]), false).err();
            assert_eq!(found, expected, "{uri}");
        };
        check(Version::HTTP_11, "a.example:443", None);
        check(Version::HTTP_11, "[::1]:443", None);
        check(Version::HTTP_2, "a.example:1", None);
        for uri in ["a.example", "a.example:", "a.example:0", "a.example:65536", "/", "*", "http://a.example:80/"] {
            check(Version::HTTP_11, uri, Some(HeadFault::Destination));
        }
        let with_body = check_connect(&parts(Version::HTTP_11, "CONNECT", "a.example:443", &[]), true);
        assert_eq!(with_body, Err(HeadFault::Content));
    }

    #[test]
    fn a_body_is_chunked_once() {
        let check = |lines: &[&'static [u8]], expected| {
            let host: (&'static str, &[u8]) = ("host", b"a");
            let lines: Vec<_> = lines.iter().map(|line| ("transfer-encoding", *line)).chain([host]).collect();
            check_head(Version::HTTP_11, "POST", "/", &lines, expected);
        };
        check(&[b"chunked"], None);
        check(&[b" Chunked ,"], None);
        check(&[b"chunked, chunked"], Some(HeadFault::Chunks));
        check(&[b"chunked", b"CHUNKED"], Some(HeadFault::Chunks));
        check(&[b"gzip, chunked"], Some(HeadFault::Coding));
        check(&[b"chunked;x=1, chunked"], Some(HeadFault::Coding));
    }

    fn check_headers(version: Version, uri: &str, lines: &[(&'static str, &[u8])], expected: &[(&str, &str)]) {
        let found = headers(&parts(version, "GET", uri, lines));
        let found: Vec<(&str, &str)> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn headers_reach_the_module() {
        let one = Version::HTTP_11;
        check_headers(one, "/", &[("a", b"1"), ("b", b"2"), ("a", b"3")], &[("a", "1"), ("a", "3"), ("b", "2")]);
        check_headers(one, "/", &[("a", "\u{e9}".as_bytes()), ("b", b"\xe9")], &[("a", "\u{e9}"), ("b", "\u{e9}")]);
        check_headers(one, "http://a.example/", &[("host", b"b.example")], &[("host", "a.example")]);
        check_headers(
            Version::HTTP_2,
            "https://a.example/",
            &[("cookie", b"a=1"), ("x", b"y"), ("cookie", b"b=2")],
            &[("host", "a.example"), ("x", "y"), ("cookie", "a=1; b=2")],
        );
        check_headers(one, "/", &[("cookie", b"a=1"), ("cookie", b"b=2")], &[("cookie", "a=1"), ("cookie", "b=2")]);
    }

    #[test]
    fn targets_are_completed() {
        let check = |uri: &str, host: Option<&'static [u8]>, encrypted: bool, expected: &str| {
            let lines: Vec<(&'static str, &[u8])> = host.map(|host| ("host", host)).into_iter().collect();
            let mut parts = parts(Version::HTTP_11, "GET", uri, &lines);
            complete_target(&mut parts, encrypted);
            assert_eq!(parts.uri.to_string(), expected);
        };
        check("/a?b", Some(b"x:80"), false, "http://x:80/a?b");
        check("/", Some(b"x"), true, "https://x/");
        check("http://y/a", Some(b"x"), true, "https://y/a");
        check("/", Some(b""), false, "http://localhost/");
        check("/", None, false, "http://localhost/");
        let mut asterisk = parts(Version::HTTP_11, "OPTIONS", "*", &[("host", b"x")]);
        complete_target(&mut asterisk, false);
        assert_eq!(target(&asterisk.uri), "*");
    }

    #[test]
    fn every_form_of_target_has_a_path() {
        let check = |uri: &str, expected: &str| assert_eq!(target(&uri.parse().unwrap()), expected);
        check("/a/b?c=%20d", "/a/b?c=%20d");
        check("http://a.example/x?y", "/x?y");
        check("http://a.example", "/");
        check("*", "*");
        check("a.example:443", "a.example:443");
    }
}
