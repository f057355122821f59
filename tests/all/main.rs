//! One binary, a file for each promise.

mod bad_input;
mod calls;
mod compiled_files;
mod context;
mod drain;
mod hot_swap;
mod http;
mod python;
mod wasi_http;
