//! What all parts of the host share: requests and replies, the table of errors, calls between modules and their encoding,
//! deadlines, drain, admission, lanes, readings, logs, and helpers for files and tasks. This crate depends on no protocol and
//! not on wasmtime.

pub mod admission;
pub mod backoff;
pub mod body;
pub mod body_budget;
pub mod call;
pub mod directories;
pub mod drain;
pub mod envelope;
pub mod error;
pub mod file_identity;
pub mod lanes;
pub mod machine;
pub mod private;
pub mod readings;
pub mod regular_file;
pub mod request;
pub mod run_to_end;
pub mod store_settings;
pub mod task;
pub mod telemetry;
pub mod unix_socket;
pub mod values;
