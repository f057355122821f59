//! The pages of the interface itself: errors, and the welcome page of a cage without a module. They are text, HTML or
//! JSON by the client's `Accept`, and disclose nothing of the inside of the cage.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};

use super::body::ResponseContent;
use wasmcage_core::request::RequestId;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// Further parts of an `Accept` are ignored.
const ACCEPT_PARTS_MAX: usize = 64;

/// The parts of a request's head that a response still needs once a module has taken the head.
pub(super) struct RequestSummary {
    accept: Option<HeaderValue>,
    pub(super) method: Method,
    pub(super) version: Version,
}

impl RequestSummary {
    pub(super) fn of(parts: &Parts) -> Self {
        Self { accept: accept(&parts.headers).cloned(), method: parts.method.clone(), version: parts.version }
    }

    fn accept(&self) -> &str {
        self.accept.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("*/*")
    }
}

fn accept(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(http::header::ACCEPT)
}

/// An error that the interface answers with, instead of a module.
#[derive(Debug)]
pub(super) struct ErrorResponse {
    pub(super) request: RequestId,
    pub(super) status: StatusCode,
    /// The stable code, for programs.
    pub(super) code: &'static str,
    /// The text for people. It must not disclose anything.
    pub(super) text: &'static str,
    /// The allowed methods, with status 405.
    pub(super) allow: Option<HeaderValue>,
    /// The connection is closed after it, since what follows cannot be trusted or is unwanted.
    pub(super) close: bool,
}

impl ErrorResponse {
    pub(super) fn new(request: RequestId, status: StatusCode, code: &'static str, text: &'static str) -> Self {
        Self { request, status, code, text, allow: None, close: false }
    }

    pub(super) fn page(self, summary: &RequestSummary) -> Response<ResponseContent> {
        let request = self.request.to_string();
        let (kind, body) = match preferred(summary.accept(), &["text/plain", "application/json"]) {
            1 => {
                let body = serde_json::json!({ "code": self.code, "text": self.text, "request_id": request });
                (JSON, format!("{body}\n"))
            }
            _ => (TEXT, format!("{}: {}\nrequest {request}\n", self.code, self.text)),
        };
        let mut response = page(self.status, kind, body, summary);
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, HeaderValue::from_str(&request).expect("a request id is of digits and letters"));
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, allow);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        // The rest of the body is not worth waiting for. HTTP/2 ends the stream instead.
        let unread = matches!(self.status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE);
        if (unread || self.close) && summary.version < Version::HTTP_2 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The welcome page of a cage without a module: the server runs, and how to make a module.
pub(super) fn welcome(target: &str, cage: &str, module: &str, summary: &RequestSummary) -> Response<ResponseContent> {
    const TITLE: &str = "wasmcage HTTP server is up and running";
    // Names of cages and modules need no escaping: they consist of letters, digits, `_` and `-`.
    let next = format!("It has no module yet: put {module}.wasm into cages/{cage}, or make one: ");
    let make = format!("wasmcage new rust {module} --cage {cage} && wasmcage build {cage}");
    let (kind, body) = match preferred(summary.accept(), &["text/plain", "text/html"]) {
        1 => (
            HTML,
            format!(
                "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>wasmcage</title></head>\n\
                 <body><p>{TITLE}</p><p>URL: {}</p><p>{next}<code>{make}</code></p></body></html>\n",
                escaped(target)
            ),
        ),
        _ => (TEXT, format!("{TITLE}\nURL: {target}\n{next}{make}\n")),
    };
    page(StatusCode::OK, kind, body, summary)
}

fn page(status: StatusCode, kind: &'static str, body: String, summary: &RequestSummary) -> Response<ResponseContent> {
    let bytes = body.len();
    let content =
        if summary.method == Method::HEAD { ResponseContent::Empty } else { ResponseContent::from(Bytes::from(body)) };
    let mut response = Response::new(content);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// The index of the offered media type that an `Accept` prefers: by quality, then by how precisely it is named, then by
/// its position among the offers. It is the first if none is acceptable, since an error in an unwanted type is better
/// than none.
fn preferred(accept: &str, offers: &[&str]) -> usize {
    let mut best = (0, (0, 0));
    for (index, offer) in offers.iter().enumerate() {
        let score = accept.split(',').take(ACCEPT_PARTS_MAX).filter_map(|part| score(part, offer)).max_by_key(
            // The most precise part that matches an offer decides.
            |(quality, precision)| (*precision, *quality),
        );
        if let Some(score) = score.filter(|score| score.0 > 0 && *score > best.1) {
            best = (index, score);
        }
    }
    best.0
}

/// The quality in thousandths and the precision that one part of an `Accept` gives to an offer; none if it names
/// another type.
fn score(part: &str, offer: &str) -> Option<(u32, u32)> {
    let mut fields = part.split(';').map(str::trim);
    let range = fields.next()?.to_ascii_lowercase();
    let (kind, subtype) = offer.split_once('/')?;
    let precision = match range.split_once('/')? {
        ("*", "*") => 1,
        (k, "*") if k == kind => 2,
        (k, s) if k == kind && s == subtype => 3,
        // A client that reads `application/problem+json` or the like reads JSON.
        (k, s) if k == kind && s.strip_suffix(subtype).is_some_and(|s| s.ends_with('+')) => 3,
        _ => return None,
    };
    let quality = fields
        .filter_map(|field| field.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
        .map_or(Some(1.0), |(_, value)| value.trim().parse::<f32>().ok())
        .filter(|quality| (0.0..=1.0).contains(quality))
        .unwrap_or(0.0);
    Some(((quality * 1000.0) as u32, precision))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn check(accept: &str, offers: &[&str], expected: &str) {
        assert_eq!(offers[preferred(accept, offers)], expected, "{accept}");
    }

    #[test]
    fn accept_decides() {
        let errors = &["text/plain", "application/json"];
        check("*/*", errors, "text/plain");
        check("", errors, "text/plain");
        check("application/json", errors, "application/json");
        check("APPLICATION/JSON", errors, "application/json");
        check("application/problem+json", errors, "application/json");
        check("application/*", errors, "application/json");
        check("application/json, */*", errors, "application/json");
        check("application/json;q=0.5, text/plain", errors, "text/plain");
        check("application/json;q=0.5, text/*;q=0.4", errors, "application/json");
        check("application/json;q=0, */*", errors, "text/plain");
        check("text/html, application/xhtml+xml, */*;q=0.8", errors, "text/plain");
        check("image/png", errors, "text/plain");
        check("application/json;q=nonsense", errors, "text/plain");
        check("application/json;q=7", errors, "text/plain");
        check("/,;q=,=;;,application", errors, "text/plain");
        let pages = &["text/plain", "text/html"];
        check("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", pages, "text/html");
        check("*/*", pages, "text/plain");
    }

    fn summary(accept: &str, method: Method) -> RequestSummary {
        RequestSummary { accept: HeaderValue::from_str(accept).ok(), method, version: Version::HTTP_11 }
    }

    async fn text(response: Response<ResponseContent>) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_url_is_not_markup() {
        let page =
            welcome("/<script>alert('\"&')</script>", "hello", "interface_web", &summary("text/html", Method::GET));
        let body = text(page).await;
        assert!(body.contains("URL: /&lt;script&gt;alert(&#39;&quot;&amp;&#39;)&lt;/script&gt;"), "{body}");
    }

    #[tokio::test]
    async fn an_error_page_is_complete() {
        let request = RequestId::new();
        let refusal =
            || ErrorResponse::new(request, StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many requests");
        let page = refusal().page(&summary("application/json", Method::GET));
        assert_eq!(page.status(), 503);
        assert_eq!(page.headers()[RETRY_AFTER], "1");
        assert_eq!(page.headers()[REQUEST_ID], request.to_string().as_str());
        let json: serde_json::Value = serde_json::from_str(&text(page).await).unwrap();
        assert_eq!(json["code"], "overloaded");
        assert_eq!(json["request_id"], request.to_string());
        let head = refusal().page(&summary("*/*", Method::HEAD));
        assert_ne!(head.headers()[CONTENT_LENGTH], "0");
        assert_eq!(text(head).await, "");
        assert!(
            text(refusal().page(&summary("*/*", Method::GET))).await.starts_with("overloaded: too many requests\n")
        );
    }
}
