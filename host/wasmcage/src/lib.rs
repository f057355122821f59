//! wasmcage, a host for WebAssembly components. This crate is for programs that embed it; the program `wasmcage` is one.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use wasmcage::{CompileIn, Host, Payload};
//!
//! let host = Host::builder("cages").cage("hello").compile_in(CompileIn::ThisProcess).start().await?;
//! let cage = host.cage("hello").ok_or("no such cage")?;
//! let arguments = Payload::Json(r#"{"args": [20, 22]}"#.to_owned());
//! let sum = cage.call("calculator.add", arguments, Duration::from_secs(1)).await?;
//! println!("{sum:?}, {} interfaces", host.snapshot().cages[0].interfaces.len());
//! host.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! A host needs a multi-threaded tokio runtime from `start` to `stop`; guests run on threads of the host. Log lines are events
//! of `tracing`: `wasmcage_core::telemetry::install` writes them to the cages' files; another subscriber may be used instead.
//! Several hosts may run in one process if their cages have different names.
//!
//! The way of a request: the interface of a protocol receives it, the dispatcher of the runtime admits and routes it, and a
//! module runs it and calls the host for what it needs.

mod builder;
pub mod cage;
pub mod host;
mod interface;
mod reload;

pub use self::builder::HostBuilder;
pub use self::host::{Host, HostOptions, StartError};
pub use self::interface::InterfaceSnapshot;
pub use wasmcage_core::error::DispatchError;
pub use wasmcage_core::request::Payload;
pub use wasmcage_protocol::Protocols;
pub use wasmcage_runtime::module::compiler::CompileIn;
