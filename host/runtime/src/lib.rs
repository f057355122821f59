//! Runs guests: `dispatcher/` admits and routes requests and calls, `module/` holds versions and instances of modules, and
//! `host_api/` is what a guest may ask for meanwhile. The only crate that knows wasmtime.

pub mod dispatcher;
pub mod host_api;
pub mod module;
pub mod services;
