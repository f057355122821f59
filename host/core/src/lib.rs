//! What every part of the host speaks and stands on: a request and its reply, the one table of errors, calls between modules
//! and their form as bytes, deadlines, drain, admission, lanes, readings, logs, and the few ways in which the host touches
//! files and tasks. Knows neither a protocol nor wasmtime.

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
