//! One binary, a file for each promise.

mod compiled_files;
mod hot_swap;
