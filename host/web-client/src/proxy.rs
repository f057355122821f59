//! Requests through a proxy: those without TLS are sent to the proxy, for others it makes a tunnel.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::error::{WebError, WebErrorKind};
use wasmcage_config::{Proxy, url_port};

/// Longest answer of a proxy to the request for a tunnel.
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// Returns whether a request for this URL goes through the proxy.
pub(super) fn leads_to(proxy: &Proxy, uri: &Uri) -> bool {
    match (uri.host(), url_port(uri)) {
        (Some(host), Some(port)) => !proxy.except.iter().any(|pattern| pattern.allows(host, port)),
        _ => false,
    }
}

/// Returns the client's authorization for the proxy.
pub(super) fn authorization(proxy: &Proxy) -> Option<HeaderValue> {
    let user = proxy.user.as_ref()?;
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(user))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Turns a connection to the proxy into a tunnel to `host` (as in a URL) and `port`.
///
/// # Errors
/// `Proxy`, with the status, when the proxy refuses; `Disconnected` when it closes the connection.
pub(super) async fn tunnel(proxy: &Proxy, mut stream: TcpStream, host: &str, port: u16) -> Result<TcpStream, WebError> {
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n").into_bytes();
    if let Some(authorization) = authorization(proxy) {
        request.extend_from_slice(b"proxy-authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let disconnected = |error: io::Error| WebError::new(WebErrorKind::Disconnected, format!("the proxy: {error}"));
    stream.write_all(&request).await.map_err(disconnected)?;
    let mut answer = Vec::new();
    // The answer is read byte by byte, because what follows belongs to the tunnel.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= ANSWER_BYTES_MAX {
            return Err(WebError::new(WebErrorKind::Proxy, "the proxy's answer is too long"));
        }
        answer.push(stream.read_u8().await.map_err(disconnected)?);
    }
    match status(&answer) {
        Some(200..=299) => Ok(stream),
        Some(status) => {
            let text = format!("the proxy refuses a tunnel to {host}:{port}: status {status}");
            Err(WebError::new(WebErrorKind::Proxy, text))
        }
        None => Err(WebError::new(WebErrorKind::Proxy, "the proxy does not speak HTTP/1")),
    }
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|byte| *byte == b'\r').next()?).ok()?;
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn proxy(url: &str, except: &[&str]) -> Proxy {
        let mut proxy: Proxy = url.parse().unwrap();
        proxy.except = except.iter().map(|pattern| pattern.parse().unwrap()).collect();
        proxy
    }

    #[test]
    fn some_hosts_are_spared() {
        let proxy = proxy("http://proxy:3128", &["*.internal", "10.0.0.1:80"]);
        let check = |uri: &str, expected| assert_eq!(leads_to(&proxy, &uri.parse().unwrap()), expected, "{uri}");
        check("https://api.example.org/", true);
        check("https://db.internal/", false);
        check("http://10.0.0.1/", false);
        check("http://10.0.0.1:81/", true);
    }

    /// Makes a tunnel through a proxy that gives this answer. Returns the result and the request that the proxy got.
    async fn asked(url: &str, answer: &'static [u8]) -> (Result<Vec<u8>, WebError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let made = match tunnel(&proxy(url, &[]), stream, "api.example.org", 443).await {
            Ok(mut stream) => {
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.unwrap();
                Ok(rest)
            }
            Err(error) => Err(error),
        };
        (made, served.await.unwrap())
    }

    #[tokio::test]
    async fn a_tunnel_begins_right_after_the_answer() {
        let (made, request) = asked("http://u:p%40ss@proxy:1", b"HTTP/1.1 200 OK\r\nvia: x\r\n\r\nhello").await;
        assert_eq!(made.unwrap(), b"hello");
        assert!(
            request.starts_with("CONNECT api.example.org:443 HTTP/1.1\r\nhost: api.example.org:443\r\n"),
            "{request}"
        );
        // u:p@ss
        assert!(request.contains("proxy-authorization: Basic dTpwQHNz\r\n"), "{request}");
    }

    #[tokio::test]
    async fn a_proxy_that_makes_no_tunnel_is_told() {
        let refused = |answer| async move { asked("http://proxy:1", answer).await.0.unwrap_err() };
        let error = refused(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
        assert_eq!((error.kind, error.text.contains("status 407")), (WebErrorKind::Proxy, true), "{error}");
        assert_eq!(refused(b"SSH-2.0-x\r\n\r\n").await.kind, WebErrorKind::Proxy);
        assert_eq!(refused(b"HTTP/1.1 200").await.kind, WebErrorKind::Disconnected);
        static ENDLESS: [u8; ANSWER_BYTES_MAX + 1] = [b'x'; ANSWER_BYTES_MAX + 1];
        assert_eq!(refused(&ENDLESS).await.kind, WebErrorKind::Proxy);
    }
}
