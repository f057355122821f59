//! Implements `wasi:cli/environment`: the environment variables of `cage.toml`, and the words that a command is called with.
//! The words differ from call to call; wasmtime's own implementation would keep those from the start of the instance.

use wasmtime::component::{HasSelf, Linker};
use wasmtime_wasi::{p2, p3};

use super::GuestState;
use crate::module::engine::EngineKind;

/// Replaces wasmtime's functions.
///
/// # Errors
/// wasmtime may return an error, but no case is known.
pub(super) fn add_to_linker(linker: &mut Linker<GuestState>, kind: EngineKind) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    p2::bindings::cli::environment::add_to_linker::<_, HasSelf<GuestState>>(linker, |state| state)?;
    if kind == EngineKind::Concurrent {
        p3::bindings::cli::environment::add_to_linker::<_, HasSelf<GuestState>>(linker, |state| state)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

impl p2::bindings::cli::environment::Host for GuestState {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.home.settings.env.clone())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.words.clone())
    }

    fn initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(None)
    }
}

impl p3::bindings::cli::environment::Host for GuestState {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.home.settings.env.clone())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.words.clone())
    }

    fn get_initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(None)
    }
}
