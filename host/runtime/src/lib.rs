//! Runs guests: `dispatcher/` admits and routes requests and calls, `module/` holds the versions and instances of modules, and
//! `host_api/` has the functions that guests import. This is the only crate of the host that uses wasmtime.

pub mod dispatcher;
pub mod host_api;
pub mod module;
pub mod services;
