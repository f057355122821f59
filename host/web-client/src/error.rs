//! Errors of requests, which also say whether anything was sent.

use std::error::Error;
use std::io;

use hyper_util::client::legacy;

use wasmcage_core::telemetry::error_chain;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebErrorKind {
    /// The name has no address.
    Dns,
    DnsTimedOut,
    /// The URL has an invalid port.
    Uri,
    /// The proxy refused the request.
    Proxy,
    /// Nobody listens at the address.
    Refused,
    /// There is no route to the address.
    Unreachable,
    Connect,
    /// The connection, or the part of it that the text names, was not made in time.
    ConnectTimedOut,
    /// The client has `connections_max` connections already.
    ConnectionLimit,
    /// The server's certificate is not accepted.
    Certificate,
    /// The server refused the connection by a TLS alert of this number.
    Alert(u8),
    Tls,
    HeadTimedOut,
    HeadTooLarge,
    BodyTimedOut,
    /// The connection ended before the answer did.
    Disconnected,
    /// The server violates HTTP.
    Protocol,
    /// The body of the request broke off.
    RequestBody,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct WebError {
    pub kind: WebErrorKind,
    pub text: String,
    /// There was a connection, so that the server may have seen the request.
    pub sent: bool,
}

impl WebError {
    /// The error of a request that was not sent.
    pub fn new(kind: WebErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), sent: false }
    }
}

impl WebErrorKind {
    /// Returns whether this is the error of a pooled connection that the server has closed.
    pub(super) fn is_stale(self) -> bool {
        self == Self::Disconnected
    }
}

/// Converts the error of an exchange without a response.
pub(super) fn of_exchange(error: &legacy::Error) -> WebError {
    if let Some(own) = find::<WebError>(error) {
        return own.clone();
    }
    let Some(hyper) = find::<hyper::Error>(error) else {
        return WebError::new(WebErrorKind::Connect, error_chain(error));
    };
    of_hyper(hyper, "the server closed the connection before it answered")
}

/// Converts the error of a response's body that broke off.
pub(super) fn of_body(error: &hyper::Error) -> WebError {
    WebError { sent: true, ..of_hyper(error, "the connection ended before the answer did") }
}

fn of_hyper(error: &hyper::Error, disconnected: &str) -> WebError {
    let kind = if error.is_parse_too_large() {
        return WebError::new(WebErrorKind::HeadTooLarge, "the answer's head is larger than allowed");
    } else if error.is_user() {
        WebErrorKind::RequestBody
    } else if error.is_parse() {
        WebErrorKind::Protocol
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return WebError::new(WebErrorKind::Disconnected, disconnected);
    } else if let Some(io) = find::<io::Error>(error) {
        // Since TLS 1.3, a server refuses a client's certificate, or the lack of one, only after the handshake.
        match io.get_ref().and_then(|inner| find(inner)) {
            Some(rustls::Error::AlertReceived(alert)) => WebErrorKind::Alert(u8::from(*alert)),
            _ => WebErrorKind::Disconnected,
        }
    } else {
        WebErrorKind::Protocol
    };
    WebError::new(kind, error_chain(error))
}

/// Returns the first error of this type among an error and its causes.
pub(super) fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
