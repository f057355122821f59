//! Access to resources of any protocol, which are configured by `[resources.x]` in `cage.toml` and granted to the module by
//! `allow = { resources = ["x"] }`. [`sql`](mod@crate::sql), [`http`](mod@crate::http) and [`file`](mod@crate::file) have types
//! for the resources of their protocols.
//!
//! ```no_run
//! use std::time::Duration;
//! use wasmcage_guest::{Result, resource, resource::{Caching, Operation}};
//!
//! fn rate(currency: &str) -> Result<String> {
//!     let bank = resource("bank").timeout(Duration::from_secs(1)).caching(Caching::new().reads("rates"));
//!     let reply = bank.execute(Operation::of("GET", &format!("/rates/{currency}")))?;
//!     Ok(String::from_utf8(reply.body)?)
//! }
//! ```

mod error;

use std::time::Duration;

pub use self::error::{Phase, ResourceError};
use crate::bindings::imports::wasmcage::cage::resources;
pub use crate::bindings::imports::wasmcage::cage::resources::{Operation, Reply};

/// The resource with this name.
pub fn resource(name: &str) -> Resource<'_> {
    Resource { name, options: resources::Options { timeout_ms: None, begin: Vec::new(), caching: None } }
}

/// A resource with options for operations, made by [`resource`].
#[derive(Clone, Debug)]
pub struct Resource<'a> {
    name: &'a str,
    options: resources::Options,
}

impl Resource<'_> {
    /// Sets the timeout; the request's deadline holds anyway.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout_ms = Some(milliseconds(timeout));
        self
    }

    /// Sets an option for the beginning of the operation's transaction, such as `isolation` of a database.
    pub fn begin(mut self, option: &str, value: &str) -> Self {
        self.options.begin.push((option.to_owned(), value.to_owned()));
        self
    }

    /// Sets the use of the resource's cache of reads, if `cage.toml` configures one.
    pub fn caching(mut self, caching: Caching) -> Self {
        self.options.caching = Some(caching.0);
        self
    }

    /// Does one operation, in a transaction of its own.
    ///
    /// # Errors
    /// See [`ResourceError`]: `recoverable` says that nothing irreversible happened.
    pub fn execute(&self, operation: Operation) -> Result<Reply, ResourceError> {
        Ok(resources::execute(self.name, &operation, &self.options)?)
    }

    /// As [`execute`](Self::execute), for a long reply: its body is empty, and comes in parts. It holds a connection until its end.
    ///
    /// # Errors
    /// Those of [`Resource::execute`].
    pub fn open(&self, operation: Operation) -> Result<(Reply, Parts), ResourceError> {
        let (reply, stream) = resources::open(self.name, &operation, &self.options)?;
        Ok((reply, Parts { stream: Some(stream) }))
    }
}

impl Operation {
    /// Makes an operation without headers and body.
    pub fn of(action: &str, target: &str) -> Self {
        Self { action: action.to_owned(), target: target.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// How an operation uses the cache. By default its reply is cached for the same operation.
#[derive(Clone, Debug)]
pub struct Caching(resources::Caching);

impl Default for Caching {
    fn default() -> Self {
        Self::new()
    }
}

impl Caching {
    pub fn new() -> Self {
        let (reads, writes) = (Vec::new(), Vec::new());
        Self(resources::Caching { key: None, ttl_ms: None, reads, writes, bypass: false })
    }

    /// Adds a part to the cache key, besides the operation itself.
    pub fn key(mut self, key: &str) -> Self {
        self.0.key = Some(key.to_owned());
        self
    }

    /// Sets how long a cached reply may be used, if shorter than by the resource's settings.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.0.ttl_ms = Some(milliseconds(ttl));
        self
    }

    /// Names something that the reply depends on: the cached reply is dropped when an operation writes it.
    pub fn reads(mut self, name: &str) -> Self {
        self.0.reads.push(name.to_owned());
        self
    }

    /// Names something that the operation changes. Such an operation is never answered from the cache.
    pub fn writes(mut self, name: &str) -> Self {
        self.0.writes.push(name.to_owned());
        self
    }

    /// Neither reads from the cache nor stores in it.
    pub fn bypass(mut self) -> Self {
        self.0.bypass = true;
        self
    }
}

/// The parts of a long reply. Nothing follows an error.
#[derive(Debug)]
pub struct Parts {
    /// The stream; none after the end.
    stream: Option<resources::ReplyStream>,
}

impl Iterator for Parts {
    type Item = Result<Vec<u8>, ResourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.stream.as_ref()?.next().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.stream = None;
        }
        next.map(|part| part.map_err(ResourceError::from))
    }
}

pub(crate) fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
