//! The program `wasmcage`: the command line with the protocols of this build.

use std::process::ExitCode;

/// The allocator of the program: a request makes about thirty small allocations and one of 3 KiB, which the system's
/// allocator treats as large.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    wasmcage_cli::main(wasmcage_bin::protocols())
}
