//! Turns a module's reply into an HTTP response. The reply is untrusted: what HTTP cannot carry, and headers that only
//! the host may set, become a `ReplyError`. It never panics.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, InvalidHeaderName, InvalidHeaderValue, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;

use super::body::ResponseContent;
use wasmcage_core::body::StreamBody;
use wasmcage_core::request::Reply;
use wasmcage_core::task;

/// How much of a name an error shows.
const SHOWN_CHARACTERS_MAX: usize = 60;

#[derive(Debug, thiserror::Error)]
pub(super) enum ReplyError {
    #[error("status {0} is not in 200 to 599")]
    Status(u16),
    #[error("status {0} to CONNECT would begin a tunnel, which only a wasi:http module can")]
    Tunnel(u16),
    #[error("header name {0:?} is not valid")]
    Name(String, #[source] InvalidHeaderName),
    #[error("value of header {0:?} is not valid")]
    Value(String, #[source] InvalidHeaderValue),
    #[error("header {0:?} is the host's to set")]
    Connection(HeaderName),
    #[error("headers of {bytes} bytes, more than max_response_header_bytes = {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("{0} headers are too many")]
    TooMany(usize),
}

/// The response of a `handler` module.
///
/// # Errors
/// The first part that HTTP cannot carry.
pub(super) fn whole(
    reply: Reply,
    method: &Method,
    header_bytes_max: usize,
) -> Result<Response<ResponseContent>, ReplyError> {
    let status = status(reply.status, method)?;
    let mut headers = checked_headers(reply.headers, header_bytes_max)?;
    let announced = headers.remove(CONTENT_LENGTH);
    let content = if bodiless(status) {
        ResponseContent::Empty
    } else if *method == Method::HEAD {
        let length = match announced {
            // The module made no body for HEAD, so only the module knows its length.
            Some(length) if reply.body.is_empty() && is_number(&length) => length,
            _ => HeaderValue::from(reply.body.len()),
        };
        headers.insert(CONTENT_LENGTH, length);
        ResponseContent::Empty
    } else {
        ResponseContent::from(reply.body)
    };
    let mut response = Response::new(content);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// The response of a streaming module. hyper checks the body's length against the announced one.
///
/// # Errors
/// The first part that HTTP cannot carry.
pub(super) fn streamed(
    response: Response<StreamBody>,
    method: &Method,
    header_bytes_max: usize,
) -> Result<Response<ResponseContent>, ReplyError> {
    let (mut parts, body) = response.into_parts();
    status(parts.status.as_u16(), method)?;
    check_headers(&parts.headers, header_bytes_max)?;
    // hyper trusts the header, so it must be a single number, or missing.
    if parts.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some()
        || parts.headers.get(CONTENT_LENGTH).is_some_and(|length| !is_number(length))
        || (bodiless(parts.status) && parts.status != StatusCode::NOT_MODIFIED)
    {
        parts.headers.remove(CONTENT_LENGTH);
    }
    let content = if bodiless(parts.status) || *method == Method::HEAD {
        discard(body);
        ResponseContent::Empty
    } else {
        ResponseContent::Stream(body)
    };
    Ok(Response::from_parts(parts, content))
}

/// The response that begins a tunnel, and the bytes that the module sends through it. By RFC 9110 section 9.3.6 the
/// response to a successful CONNECT has no content, whatever its status, and no length.
///
/// # Errors
/// The first part that HTTP cannot carry.
pub(super) fn tunnel(
    response: Response<StreamBody>,
    header_bytes_max: usize,
) -> Result<(Response<ResponseContent>, StreamBody), ReplyError> {
    let (mut parts, body) = response.into_parts();
    check_headers(&parts.headers, header_bytes_max)?;
    parts.headers.remove(CONTENT_LENGTH);
    Ok((Response::from_parts(parts, ResponseContent::Empty), body))
}

/// Lets the module write its whole body, as for GET, and drops it. The module's deadline limits that.
fn discard(mut body: StreamBody) {
    if !body.is_end_stream() {
        tokio::spawn(async move {
            let result = task::catch_panic_async(async { while let Some(Ok(_)) = body.frame().await {} }).await;
            if let Err(panic) = result {
                tracing::error!(error = %panic, "the body of an answer to HEAD panicked");
            }
        });
    }
}

/// The headers that describe the connection, which only the host may set.
static CONNECTION_HEADERS: [HeaderName; 5] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

fn status(status: u16, method: &Method) -> Result<StatusCode, ReplyError> {
    match StatusCode::from_u16(status) {
        Ok(code) if code.is_success() && *method == Method::CONNECT => Err(ReplyError::Tunnel(status)),
        Ok(code) if (200..=599).contains(&status) => Ok(code),
        _ => Err(ReplyError::Status(status)),
    }
}

fn bodiless(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)
}

fn checked_headers(lines: Vec<(String, String)>, bytes_max: usize) -> Result<HeaderMap, ReplyError> {
    // This comes first, since a guest's list may be as large as its memory.
    check_size(lines.iter().map(|(name, value)| line_bytes(name, value.as_bytes())).sum(), bytes_max)?;
    let count = lines.len();
    let mut headers = HeaderMap::with_capacity(count.min(64));
    for (name, value) in lines {
        let name = match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => name,
            Err(error) => return Err(ReplyError::Name(shown(&name), error)),
        };
        if CONNECTION_HEADERS.contains(&name) {
            return Err(ReplyError::Connection(name));
        }
        let value = match HeaderValue::try_from(value) {
            Ok(value) => value,
            Err(error) => return Err(ReplyError::Value(shown(name.as_str()), error)),
        };
        // `append` panics if there are too many.
        headers.try_append(name, value).map_err(|_| ReplyError::TooMany(count))?;
    }
    Ok(headers)
}

/// Checks the headers of a streaming module, whose syntax is valid already.
fn check_headers(headers: &HeaderMap, bytes_max: usize) -> Result<(), ReplyError> {
    if let Some(name) = CONNECTION_HEADERS.iter().find(|name| headers.contains_key(*name)) {
        return Err(ReplyError::Connection(name.clone()));
    }
    check_size(headers.iter().map(|(name, value)| line_bytes(name.as_str(), value.as_bytes())).sum(), bytes_max)
}

fn check_size(bytes: usize, bytes_max: usize) -> Result<(), ReplyError> {
    if bytes > bytes_max { Err(ReplyError::TooLarge { bytes, bytes_max }) } else { Ok(()) }
}

/// The size of a header, with `: ` and the line's end, so that an empty header counts, too.
fn line_bytes(name: &str, value: &[u8]) -> usize {
    name.len() + value.len() + 4
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARACTERS_MAX).collect()
}

fn is_number(value: &HeaderValue) -> bool {
    let digits = value.as_bytes();
    !digits.is_empty() && digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const HEADER_BYTES_MAX: usize = 200;

    fn reply(status: u16, headers: &[(&str, &str)], body: &'static str) -> Reply {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Reply { status, headers, body: Bytes::from_static(body.as_bytes()) }
    }

    fn check_refused(status: u16, headers: &[(&str, &str)], expected: &str) {
        let error = whole(reply(status, headers, "x"), &Method::GET, HEADER_BYTES_MAX).err().unwrap();
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_reply_that_http_cannot_carry_is_refused() {
        for status in [0, 99, 100, 101, 199, 600, 999, 1000, u16::MAX] {
            check_refused(status, &[], &format!("status {status} is not in 200 to 599"));
        }
        check_refused(200, &[("", "x")], "header name \"\" is not valid");
        check_refused(200, &[("a b", "x")], "header name \"a b\" is not valid");
        check_refused(200, &[("a\r\nb", "x")], "header name \"a\\r\\nb\" is not valid");
        check_refused(200, &[("é", "x")], "header name \"é\" is not valid");
        check_refused(200, &[("a", "x\r\nset-cookie: y")], "value of header \"a\" is not valid");
        check_refused(200, &[("a", "x\ny")], "value of header \"a\" is not valid");
        check_refused(200, &[("a", "x\0")], "value of header \"a\" is not valid");
        check_refused(200, &[("Connection", "close")], "header \"connection\" is the host's to set");
        check_refused(200, &[("transfer-encoding", "chunked")], "header \"transfer-encoding\" is the host's to set");
        check_refused(200, &[("keep-alive", "1")], "header \"keep-alive\" is the host's to set");
        let large = "x".repeat(HEADER_BYTES_MAX);
        check_refused(200, &[("a", &large)], "headers of 205 bytes, more than max_response_header_bytes = 200");
        let many = [("", ""); 60];
        check_refused(200, &many, "headers of 240 bytes, more than max_response_header_bytes = 200");
    }

    #[test]
    fn no_tunnel_is_made() {
        let answer = |status| whole(reply(status, &[], ""), &Method::CONNECT, HEADER_BYTES_MAX);
        assert_eq!(
            answer(200).err().unwrap().to_string(),
            "status 200 to CONNECT would begin a tunnel, which only a wasi:http module can"
        );
        assert_eq!(answer(403).unwrap().status(), 403);
    }

    fn check_answer(method: Method, reply: Reply, length: Option<&str>, body_bytes: Option<u64>) {
        let response = whole(reply, &method, HEADER_BYTES_MAX).unwrap();
        let announced = response.headers().get(CONTENT_LENGTH).map(|value| value.to_str().unwrap());
        assert_eq!((announced, response.body().exact_bytes()), (length, body_bytes));
    }

    #[test]
    fn lengths_are_correct() {
        check_answer(Method::GET, reply(200, &[], "hello"), None, Some(5));
        check_answer(Method::GET, reply(200, &[("content-length", "7")], "hello"), None, Some(5));
        check_answer(Method::GET, reply(204, &[("content-length", "5")], "hello"), None, Some(0));
        check_answer(Method::GET, reply(304, &[], "hello"), None, Some(0));
        check_answer(Method::HEAD, reply(200, &[], "hello"), Some("5"), Some(0));
        check_answer(Method::HEAD, reply(200, &[("content-length", "70")], ""), Some("70"), Some(0));
        check_answer(Method::HEAD, reply(200, &[("content-length", "-1")], ""), Some("0"), Some(0));
        check_answer(Method::HEAD, reply(200, &[("content-length", "7")], "hello"), Some("5"), Some(0));
        check_answer(Method::HEAD, reply(204, &[], "hello"), None, Some(0));
    }

    #[test]
    fn headers_are_kept_as_they_are() {
        let answer = reply(299, &[("X-A", "1"), ("x-a", "é"), ("x-empty", "")], "");
        let response = whole(answer, &Method::GET, HEADER_BYTES_MAX).unwrap();
        assert_eq!(response.status(), 299);
        let values: Vec<&[u8]> = response.headers().get_all("x-a").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, [b"1".as_slice(), "é".as_bytes()]);
        assert_eq!(response.headers()["x-empty"], "");
    }
}
