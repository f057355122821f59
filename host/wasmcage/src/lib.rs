//! wasmcage: a host for WebAssembly components. This crate is for programs that embed it; the program `wasmcage` is one.
//!
//! The way of a request: the interface of a protocol takes it, the dispatcher of the runtime admits and routes it, a module
//! runs it, and asks the host for what it needs meanwhile.

pub mod cage;
pub mod host;
mod reload;

pub use wasmcage_protocol::Protocols;
