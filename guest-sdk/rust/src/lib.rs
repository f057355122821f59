//! Write wasmcage modules in Rust.
//!
//! A module that answers requests is one function:
//!
//! ```
//! use wasmcage_guest::{Request, Response, handler};
//!
//! #[handler]
//! fn handle(request: Request) -> Response {
//!     Response::text(format!("Hello, {} !", request.parameter("name").unwrap_or("world".into())))
//! }
//! ```
//!
//! A module that other modules call is a Rust module; its public functions are callable by name:
//!
//! ```
//! use wasmcage_guest::service;
//!
//! #[service]
//! mod api {
//!     use wasmcage_guest::{Error, Result};
//!
//!     pub fn divide(dividend: i64, divisor: i64) -> Result<i64> {
//!         dividend.checked_div(divisor).ok_or_else(|| Error::refused("division by zero"))
//!     }
//! }
//! ```
//!
//! and is called from anywhere like this:
//!
//! ```no_run
//! # use wasmcage_guest::{Result, cage};
//! # fn f() -> Result<()> {
//! let third: i64 = cage("worker").module("calculator").call("divide", (9, 3))?;
//! # Ok(()) }
//! ```
//!
//! Build with `wasmcage build`, or with `cargo build --release --target wasm32-wasip2`; the crate's type is `cdylib`.
//! Functions that do not use the host can be tested by `cargo test` as in any crate. There is no host in such a test, so
//! calls, settings, the context and the log panic.
//!
//! A module's work ends in one of five ways, and the caller learns which: an answer; [`Error::BadArguments`] or
//! [`Error::Refused`], after which a retry is useless; [`Error::Failed`], after which a later retry may succeed; or a panic,
//! which is logged with its message and location, ends the module's instance, and counts as failed.

pub mod amqp;
mod arguments;
mod bindings;
mod call;
pub mod config;
pub mod context;
mod error;
#[doc(hidden)]
pub mod export;
pub mod file;
pub mod http;
pub mod lock;
pub mod log;
mod request;
pub mod resource;
mod response;
pub mod sql;
pub mod state;
pub mod transaction;

pub use bindings::imports::wasmcage::cage::types::{Payload, Request, Response};
pub use call::{Args, Arguments, Cage, CallError, CopyResult, Module, Retried, cage, module};
pub use error::{Error, Result};
pub use resource::resource;
pub use sql::sql;
pub use transaction::transaction;
/// ```
/// use wasmcage_guest::{Error, Request, Response, Result, handler};
///
/// #[handler]
/// fn handle(request: Request) -> Result<Response> {
///     let name = request.parameter("name").ok_or_else(|| Error::bad_arguments("no name was given"))?;
///     Ok(Response::html(format!("<h1>Hello, {name} !</h1>")))
/// }
/// ```
pub use wasmcage_guest_macros::handler;
/// ```
/// use wasmcage_guest::service;
///
/// #[service]
/// mod api {
///     use wasmcage_guest::{Error, Payload, Result};
///
///     /// `greet("world")`, `greet("world", "Hello")`, `greet(greeting = "Hello", name = "world")`
///     pub fn greet(name: &str, greeting: Option<String>) -> String {
///         format!("{}, {name} !", greeting.unwrap_or("Hi".into()))
///     }
///
///     pub fn store(content: Payload) -> Result<usize> {
///         match content {
///             Payload::Bytes(bytes) => Ok(bytes.len()),
///             Payload::Json(_) => Err(Error::bad_arguments("bytes were expected")),
///         }
///     }
/// }
/// # fn main() {}
/// ```
pub use wasmcage_guest_macros::service;
pub use {serde, serde_json};
