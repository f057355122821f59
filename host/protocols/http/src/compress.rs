//! Compresses responses of the content types that `compress` names; without that key there is no compression.
//! `interface.rs` calls this with a finished response, so that interfaces without compression pay nothing.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Version};
use tower_http::compression::Compression;
use tower_service::Service;

use super::body::ResponseContent;
use wasmcage_core::body::StreamBody;

/// Which answers are compressed.
#[derive(Clone, Debug)]
pub(super) struct Compress {
    /// Patterns such as `text/*` or `application/json`, in lower case.
    pub(super) types: Vec<String>,
    /// Shorter responses stay uncompressed.
    pub(super) bytes_min: u64,
}

/// The encodings that a client accepts: a request with only that header, for the library.
pub(super) struct AcceptedEncodings(Request<()>);

impl AcceptedEncodings {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut request = Request::new(());
        for value in headers.get_all(ACCEPT_ENCODING) {
            request.headers_mut().append(ACCEPT_ENCODING, value.clone());
        }
        Self(request)
    }
}

impl Compress {
    pub(super) async fn apply(
        &self,
        accepted: AcceptedEncodings,
        method: &Method,
        response: Response<ResponseContent>,
    ) -> Response<ResponseContent> {
        if !self.applies_to(&response) {
            return response;
        }
        if *method == Method::HEAD {
            // The response to GET would be compressed, to an unknown length.
            let mut response = response;
            response.headers_mut().remove(CONTENT_LENGTH);
            return response;
        }
        let status = response.status();
        let always = |_: StatusCode, _: Version, _: &HeaderMap, _: &Extensions| true;
        let Ok(response) = Compression::new(ReadyResponse(Some(response))).compress_when(always).call(accepted.0).await;
        let mut response = response.map(|body| ResponseContent::Stream(StreamBody::new(body)));
        // The library changes the status to 406 if no accepted encoding fits; the client gets the response uncompressed
        // instead.
        *response.status_mut() = status;
        response
    }

    fn applies_to(&self, response: &Response<ResponseContent>) -> bool {
        let bytes = response.body().exact_bytes();
        let status = response.status();
        bytes.is_none_or(|bytes| bytes >= self.bytes_min)
            && status != StatusCode::PARTIAL_CONTENT
            && !has_token(response.headers(), CACHE_CONTROL.as_str(), "no-transform")
            && response.headers().get(CONTENT_TYPE).is_some_and(|kind| self.includes_type(kind.as_bytes()))
    }

    fn includes_type(&self, content_type: &[u8]) -> bool {
        let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let Ok(essence) = std::str::from_utf8(essence) else { return false };
        let essence = essence.to_ascii_lowercase();
        // A compressor would hold back events until there are more.
        essence != "text/event-stream"
            && self.types.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => essence.starts_with(start),
                None => essence == *pattern,
            })
    }
}

/// Returns whether a header that is a list of tokens has this one.
fn has_token(headers: &HeaderMap, name: &str, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// A service for the library to wrap, which has its response already.
struct ReadyResponse(Option<Response<ResponseContent>>);

impl Service<Request<()>> for ReadyResponse {
    type Response = Response<ResponseContent>;
    type Error = Infallible;
    type Future = Ready<Result<Response<ResponseContent>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(self.0.take().unwrap_or_else(|| Response::new(ResponseContent::Empty))))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderValue;
    use http::header::CONTENT_ENCODING;
    use http_body_util::BodyExt;

    use super::*;

    /// The encoding of a response, and its size.
    async fn check(accepts: &'static str, kind: &'static str, bytes: usize) -> (Option<String>, usize) {
        let compress = Compress { types: vec!["text/*".into(), "application/json".into()], bytes_min: 100 };
        let mut asked = HeaderMap::new();
        asked.insert(ACCEPT_ENCODING, HeaderValue::from_static(accepts));
        let mut response = Response::new(ResponseContent::from(Bytes::from("x".repeat(bytes))));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        let response = compress.apply(AcceptedEncodings::of(&asked), &Method::GET, response).await;
        assert_eq!(response.status(), 200);
        let encoding = response.headers().get(CONTENT_ENCODING).map(|value| value.to_str().unwrap().to_owned());
        (encoding, response.into_body().collect().await.unwrap().to_bytes().len())
    }

    #[tokio::test]
    async fn the_configured_types_are_compressed() {
        let (encoding, bytes) = check("gzip", "text/html; charset=utf-8", 1000).await;
        assert_eq!(encoding.as_deref(), Some("gzip"));
        assert!(bytes < 500);
        assert_eq!(check("gzip;q=0.5, br", "Application/JSON", 1000).await.0.as_deref(), Some("br"));
        assert_eq!(check("gzip", "text/html", 99).await, (None, 99));
        assert_eq!(check("gzip", "image/png", 1000).await, (None, 1000));
        assert_eq!(check("gzip", "text/event-stream", 1000).await, (None, 1000));
        assert_eq!(check("identity", "text/html", 1000).await, (None, 1000));
        assert_eq!(check("zstd, identity;q=0", "text/html", 1000).await, (None, 1000));
    }
}
