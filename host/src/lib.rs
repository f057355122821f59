//! wasmcage: a host for WebAssembly components.
//!
//! The way of a request: `protocol/<p>/interface.rs` takes it, `request.rs` is its shape, `dispatcher/` admits and routes
//! it, `module/` runs it (slot, version, instance), and `host_api/` is what the guest may ask for meanwhile.

mod admission;
pub mod backoff;
pub mod body_budget;
pub mod cage;
pub mod config;
pub mod directories;
pub mod dispatcher;
pub mod drain;
pub mod file_identity;
pub mod host;
pub mod host_api;
pub mod keys;
pub mod lanes;
pub mod locks;
mod machine;
pub mod module;
pub mod private;
pub mod protocol;
pub mod readings;
pub mod regular_file;
mod reload;
pub mod request;
pub mod resource;
pub mod services;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod transaction;
pub mod unix_socket;
pub mod web_client;
