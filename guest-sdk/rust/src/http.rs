//! Requests to servers that were granted as resources of protocol `http`.
//!
//! Any status is an answer; an error is that there was none. One with `recoverable` set was not sent, or not as a whole,
//! and may be tried again.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::resource::{Operation, Parts, Reply, Resource, ResourceError, resource};

/// The server behind a resource, by the resource's name.
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

/// Made by [`http`].
#[derive(Clone, Copy, Debug)]
pub struct Http<'a> {
    resource: &'a str,
}

impl<'a> Http<'a> {
    /// `target` is a path with its query, beneath the resource's `url`.
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

/// A request that is being made.
#[derive(Clone, Debug)]
#[must_use = "it is sent by `send` or `open`"]
pub struct HttpRequest<'a> {
    resource: &'a str,
    operation: Operation,
    timeout: Option<Duration>,
}

impl<'a> HttpRequest<'a> {
    /// One header more. Those that say where a message goes and how long it is are the host's, those that the resource has are
    /// the resource's.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.operation.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.operation.body = body.into();
        self
    }

    /// The value as the body, and the header that says so.
    ///
    /// # Errors
    /// Failed when `value` cannot be put into JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> crate::Result<Self> {
        Ok(self.header("content-type", "application/json").body(serde_json::to_vec(value)?))
    }

    /// At most this long, and never longer than the request's own deadline.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// When there is none, or it is longer than the resource's `max_response_bytes`.
    pub fn send(self) -> Result<HttpResponse, ResourceError> {
        self.resource().execute(self.operation).map(HttpResponse::of)
    }

    /// Waits for the answer's head; its body comes in parts, of any length together.
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
    /// When there is no answer.
    pub fn open(self) -> Result<(HttpResponse, Parts), ResourceError> {
        let (reply, parts) = self.resource().open(self.operation)?;
        Ok((HttpResponse::of(reply), parts))
    }

    /// What is asked, for a transaction.
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

/// An answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    pub status: u16,
    /// Lower-case names, repeats kept.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpResponse {
    fn of(reply: Reply) -> Self {
        let Reply { status, headers, body } = reply;
        Self { status, headers, body }
    }

    /// The first header of that name, which is lower-case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text; what is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// # Errors
    /// Failed when the body is no JSON, or no such value.
    pub fn json<T: DeserializeOwned>(&self) -> crate::Result<T> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}
