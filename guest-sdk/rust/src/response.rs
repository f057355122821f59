//! Constructors of responses.

use serde::Serialize;

use crate::bindings::imports::wasmcage::cage::types::Response;
use crate::error::Result;

impl Response {
    /// Makes a response with an empty body. Protocols other than HTTP ignore the status.
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// Status 200, `text/plain`.
    pub fn text(text: impl Into<String>) -> Self {
        Self::of("text/plain; charset=utf-8", text.into().into_bytes())
    }

    /// Status 200, `text/html`.
    pub fn html(text: impl Into<String>) -> Self {
        Self::of("text/html; charset=utf-8", text.into().into_bytes())
    }

    /// Status 200, `application/json`.
    ///
    /// # Errors
    /// `Failed` when `value` cannot be converted to JSON, such as a map whose keys are no texts.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Ok(Self::of("application/json", serde_json::to_vec(value)?))
    }

    /// Status 200, `application/octet-stream`.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self::of("application/octet-stream", bytes.into())
    }

    /// Sets the status.
    ///
    /// ```
    /// # use wasmcage_guest::Response;
    /// let response = Response::text("no such page").status(404).header("cache-control", "no-store");
    /// assert_eq!(response.status, 404);
    /// ```
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header; `content-type` replaces the present one.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        if name.eq_ignore_ascii_case("content-type") {
            self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case("content-type"));
        }
        self.headers.push((name, value.into()));
        self
    }

    fn of(content_type: &str, body: Vec<u8>) -> Self {
        Self { status: 200, headers: vec![("content-type".into(), content_type.into())], body }
    }
}

impl From<&str> for Response {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Response {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

/// An empty response with status 204, such as the handler of a schedule returns.
impl From<()> for Response {
    fn from((): ()) -> Self {
        Self::new(204)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_type_is_replaced_and_other_headers_repeat() {
        let response = Response::text("a").header("Content-Type", "text/css").header("x", "1").header("x", "2");
        let headers: Vec<_> = response.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(headers, [("Content-Type", "text/css"), ("x", "1"), ("x", "2")]);
        assert_eq!(Response::from(()).status, 204);
        assert_eq!(Response::json(&[1, 2]).unwrap().body, b"[1,2]");
    }
}
