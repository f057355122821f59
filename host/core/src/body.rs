//! The type of bodies that stream between an interface and a module.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

/// A streamed body of a request or a response of a module that uses `wasi:http`.
pub type StreamBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
