//! `wasmcage compile`: the child process in which a component is compiled. Not for people.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

/// Compile a component to machine code; started by a cage
#[derive(Debug, Args)]
pub(super) struct CompileArgs {
    input: PathBuf,
    output: PathBuf,
}

impl CompileArgs {
    pub(super) fn execute(&self) -> ExitCode {
        wasmcage::module::compile_worker(&self.input, &self.output)
    }
}
