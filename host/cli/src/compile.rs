//! `wasmcage compile`: the child process in which a component is compiled. It is not meant to be used by people.

use std::process::ExitCode;

use clap::Args;

/// Compile a component from standard input to machine code on standard output; started by a cage
#[derive(Debug, Args)]
pub(super) struct CompileArgs {}

impl CompileArgs {
    pub(super) fn execute(&self) -> ExitCode {
        wasmcage_runtime::module::compile_worker()
    }
}
