//! One binary, a file for each promise.

mod bad_input;
mod compiled_files;
mod hot_swap;
