//! Requests to servers that are granted as resources of protocol `http`.
//!
//! An answer with any status is a success; an error means that there was no answer. A request whose error is `recoverable` was
//! not sent, or not completely, and may be retried.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::resource::{Operation, Parts, Reply, Resource, ResourceError, resource};

/// The server of the resource with this name.
///
/// ```no_run
/// # use wasmcage_guest::{Result, http::http};
/// # fn f() -> Result<()> {
/// let answer = http("api").get("/users/7").header("accept", "application/json").send()?;
/// let user: serde_json::Value = answer.json()?;
/// # Ok(()) }
/// ```
pub fn http(resource: &str) -> Http<'_> {
    Http { resource }
}

/// A server, made by [`http`].
#[derive(Clone, Copy, Debug)]
pub struct Http<'a> {
    resource: &'a str,
}

impl<'a> Http<'a> {
    /// Makes a request. `target` is a path with its query, below the resource's `url`.
    pub fn request(self, method: &str, target: &str) -> HttpRequest<'a> {
        let operation =
            Operation { action: method.to_owned(), target: target.to_owned(), headers: Vec::new(), body: Vec::new() };
        HttpRequest { resource: self.resource, operation, timeout: None }
    }

    pub fn get(self, target: &str) -> HttpRequest<'a> {
        self.request("GET", target)
    }

    pub fn post(self, target: &str) -> HttpRequest<'a> {
        self.request("POST", target)
    }

    pub fn put(self, target: &str) -> HttpRequest<'a> {
        self.request("PUT", target)
    }

    pub fn delete(self, target: &str) -> HttpRequest<'a> {
        self.request("DELETE", target)
    }
}

/// A request that is not sent yet.
#[derive(Clone, Debug)]
#[must_use = "it is sent by `send` or `open`"]
pub struct HttpRequest<'a> {
    resource: &'a str,
    operation: Operation,
    timeout: Option<Duration>,
}

impl<'a> HttpRequest<'a> {
    /// Adds a header. The host sets those that say where a message goes and how long it is; headers in the resource's
    /// configuration cannot be overridden.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.operation.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.operation.body = body.into();
        self
    }

    /// Sets the value as the body, in JSON, and the header `content-type`.
    ///
    /// # Errors
    /// `Failed` when `value` cannot be converted to JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> crate::Result<Self> {
        Ok(self.header("content-type", "application/json").body(serde_json::to_vec(value)?))
    }

    /// Sets the timeout; the request's deadline holds anyway.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sends the request, and waits for the whole answer.
    ///
    /// # Errors
    /// There is no answer, or it is longer than the resource's `max_response_bytes`.
    pub fn send(self) -> Result<HttpResponse, ResourceError> {
        self.resource().execute(self.operation).map(HttpResponse::of)
    }

    /// Sends the request, and waits for the head of the answer; the body, of any length, comes in parts.
    ///
    /// ```no_run
    /// # use wasmcage_guest::{Result, http::http};
    /// # fn f() -> Result<()> {
    /// let (answer, body) = http("api").get("/export").open()?;
    /// assert_eq!(answer.status, 200);
    /// for part in body {
    ///     println!("{} bytes", part?.len());
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// There is no answer.
    pub fn open(self) -> Result<(HttpResponse, Parts), ResourceError> {
        let (reply, parts) = self.resource().open(self.operation)?;
        Ok((HttpResponse::of(reply), parts))
    }

    /// Converts the request to an operation, for a transaction.
    pub fn into_operation(self) -> Operation {
        self.operation
    }

    fn resource(&self) -> Resource<'a> {
        let resource = resource(self.resource);
        match self.timeout {
            Some(timeout) => resource.timeout(timeout),
            None => resource,
        }
    }
}

/// An answer with any status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    pub status: u16,
    /// Names are in lower case and may repeat.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpResponse {
    fn of(reply: Reply) -> Self {
        let Reply { status, headers, body } = reply;
        Self { status, headers, body }
    }

    /// Returns the first header with this name, which must be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the body as text; bytes that are no UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Converts the body from JSON.
    ///
    /// # Errors
    /// `Failed` when the body is no JSON or does not fit `T`.
    pub fn json<T: DeserializeOwned>(&self) -> crate::Result<T> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}
