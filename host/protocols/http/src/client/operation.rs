//! Turns an operation into a request. A module chooses method, path, headers and body; server and configured headers
//! are the resource's.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Uri};

use super::config::ClientConfig;
use wasmcage_resource::{Operation, Phase, ResourceError};

/// A request, which may have to be sent more than once.
pub(super) struct ClientRequest {
    pub(super) head: Parts,
    pub(super) body: Bytes,
}

impl ClientRequest {
    /// # Errors
    /// `BAD_OPERATION`: the operation is no valid request, or leads out of the resource's `url`.
    pub(super) fn new(config: &ClientConfig, operation: Operation) -> Result<Self, ResourceError> {
        let method = Method::from_bytes(operation.action.as_bytes())
            .map_err(|_| bad(format!("{:?} is no method", operation.action)))?;
        if method == Method::CONNECT {
            return Err(bad("CONNECT opens tunnels, which a resource is not for".into()));
        }
        let (mut head, ()) = Request::new(()).into_parts();
        head.uri = target(config, &operation.target)?;
        head.method = method;
        head.headers = config.headers.clone();
        for (name, value) in operation.headers {
            let name = HeaderName::try_from(&name).map_err(|_| bad(format!("{name:?} is no name of a header")))?;
            if is_framing(&name) {
                return Err(bad(format!("header {name} is set by the host")));
            }
            if config.headers.contains_key(&name) && name != header::USER_AGENT {
                return Err(bad(format!("header {name} is set by the resource")));
            }
            let value = HeaderValue::try_from(value).map_err(|_| bad(format!("header {name} cannot be sent")))?;
            match name {
                header::USER_AGENT => drop(head.headers.insert(name, value)),
                name => drop(head.headers.try_append(name, value).map_err(|_| bad("too many headers".into()))?),
            }
        }
        Ok(Self { head, body: operation.body })
    }
}

fn target(config: &ClientConfig, target: &str) -> Result<Uri, ResourceError> {
    if !(target.is_empty() || target.starts_with(['/', '?'])) {
        return Err(bad(format!("{target:?} is no path: it begins with a slash, and the host is the resource's")));
    }
    if has_dot_segments(target) {
        return Err(bad(format!("{target:?} has `.` or `..` in it, which may lead elsewhere")));
    }
    config.base.join(target).ok_or_else(|| bad(format!("{target:?} is no path")))
}

/// Returns whether the path may lead out of the resource's `url`: it has a segment `.` or `..`, plain or encoded.
pub(super) fn has_dot_segments(target: &str) -> bool {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let plain = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    plain.split(['/', '\\']).any(|segment| segment == "." || segment == "..")
}

/// Returns whether the header determines a message's server or its end.
pub(super) fn is_framing(name: &HeaderName) -> bool {
    const FRAMING: [HeaderName; 6] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    FRAMING.contains(name) || ["keep-alive", "proxy-connection", "http2-settings", "trailer"].contains(&name.as_str())
}

fn bad(text: String) -> ResourceError {
    ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, text)
}
