//! The program `wasmcage`: reads the command line, has it done, prints what went wrong, and ends with the right code.

mod command;
mod control;
mod supervisor;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::command::{Cli, CommandError};

/// A request makes some thirty small allocations and one of 3 KiB, which the system's allocator treats as large.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Where this program starts itself by a name that stays, `ps` and `pkill` would know it by the last part of that one.
    let _ = rustix::thread::set_name(c"wasmcage");
    wasmcage_core::task::install_panic_hook();
    command::completion::complete();
    let done = command::execute(Cli::parse());
    wasmcage_core::telemetry::flush();
    match done {
        Ok(code) => code,
        Err(error) => {
            let code = error.exit_code();
            report(error);
            ExitCode::from(code)
        }
    }
}

/// The error and its causes, each once.
fn report(error: CommandError) {
    // The reader of the output has left: it wants to hear nothing more.
    if matches!(error, CommandError::OutputClosed) {
        return;
    }
    let error = anyhow::Error::from(error);
    let mut text = format!("error: {error}\n");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !last.ends_with(&cause) {
            // Each mistake of a configuration is a line of its own.
            text += &format!("  caused by: {}\n", cause.replace('\n', "\n    "));
        }
        last = cause;
    }
    // There is nowhere left to say that this failed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
