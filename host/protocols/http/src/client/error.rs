//! Turns failures of requests into errors of the resource. A request that was not sent can be retried; one that was
//! sent cannot be undone.

use wasmcage_resource::{Phase, ResourceError};
use wasmcage_web_client::{WebError, WebErrorKind};

/// The error of a failed request. `sent`: an earlier request of the same operation has reached the server.
pub(super) fn of_request(error: &WebError, sent: bool) -> ResourceError {
    let code = match error.kind {
        WebErrorKind::Dns => "dns",
        WebErrorKind::Certificate | WebErrorKind::Alert(_) | WebErrorKind::Tls => "tls",
        WebErrorKind::Refused | WebErrorKind::Unreachable | WebErrorKind::Connect | WebErrorKind::Proxy => {
            ResourceError::CONNECT
        }
        WebErrorKind::Uri => ResourceError::BAD_OPERATION,
        WebErrorKind::DnsTimedOut
        | WebErrorKind::ConnectTimedOut
        | WebErrorKind::HeadTimedOut
        | WebErrorKind::BodyTimedOut => ResourceError::TIMED_OUT,
        WebErrorKind::ConnectionLimit => ResourceError::OVERLOADED,
        WebErrorKind::HeadTooLarge => ResourceError::TOO_LARGE,
        WebErrorKind::Disconnected | WebErrorKind::RequestBody => ResourceError::DISCONNECTED,
        WebErrorKind::Protocol => "bad-response",
    };
    let sent = sent || error.sent;
    let phase = if error.sent { Phase::Execute } else { Phase::Connect };
    ResourceError { recoverable: !sent, ..ResourceError::harmless(phase, code, error.text.clone()) }
}

/// The error for a response that is longer than `max` bytes.
pub(super) fn too_large(max: usize) -> ResourceError {
    let text = format!("the answer has more than {max} bytes (max_response_bytes); use `open`");
    let error = ResourceError::harmless(Phase::Execute, ResourceError::TOO_LARGE, text);
    ResourceError { recoverable: false, ..error }
}
