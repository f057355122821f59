//! One binary, a file for each promise.

mod bad_input;
mod bindings;
mod call_command;
mod calls;
mod compiled_files;
mod config_live;
mod context;
mod doctor;
mod drain;
mod hot_swap;
mod http;
mod isolation;
mod keys;
mod limits;
mod processes;
mod python;
mod rpc;
mod rpc_chaos;
mod tidy;
mod wasi_http;
