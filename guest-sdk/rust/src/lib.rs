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
//!
//! A module's work ends in one of four ways, and the caller learns which: an answer; [`Error::Refused`], never to be
//! tried again; [`Error::Failed`], later may help; or a panic, which is logged with its message and place, ends the
//! module's instance, and counts as failed.

mod arguments;
mod bindings;
mod call;
pub mod config;
pub mod context;
mod error;
#[doc(hidden)]
pub mod export;
pub mod log;
mod request;
mod response;

pub use bindings::imports::wasmcage::cage::types::{Payload, Request, Response};
pub use call::{Args, Arguments, CallError, Cage, Module, cage, module};
pub use error::{Error, Result};
pub use wasmcage_guest_macros::{handler, service};
pub use {serde, serde_json};
