//! A body that streams between an interface and a module.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

/// A streamed body on its way in or out of a module that speaks `wasi:http`.
pub type StreamBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
