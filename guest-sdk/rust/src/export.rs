//! Used by the code that `#[handler]`, `#[service]` and `handover!` generate. Not for authors of modules: it may change with
//! any version.

use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

pub use crate::arguments::{Parameter, ParsedArguments};
use crate::bindings::imports::wasmcage::cage::log::{Level, log};
pub use crate::bindings::imports::wasmcage::cage::types::Error as RawError;
use crate::bindings::imports::wasmcage::cage::types::Payload;
pub use crate::bindings::{handler, handover, service};
use crate::error::{Error, Result};

/// Installs the panic hook. Every export of a component calls this first.
#[inline]
pub fn enter() {
    static ENTERED: AtomicBool = AtomicBool::new(false);
    if !ENTERED.swap(true, Ordering::Relaxed) {
        std::panic::set_hook(Box::new(log_panic));
    }
}

/// Logs message and location of a panic in the cage's log. The standard hook would write to stderr.
fn log_panic(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("a value that is no text");
    let text = match info.location() {
        Some(place) => format!("panicked at {place}: {message}"),
        None => format!("panicked: {message}"),
    };
    log(Level::Error, &text);
}

pub fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// The error for a function that `functions` does not list. The host checks this itself; this is for hosts that do not.
pub fn unknown(function: &str) -> Error {
    Error::refused(format_args!("there is no function {function}"))
}

/// Types that a function of a service may return.
pub trait IntoPayload {
    fn into_payload(self) -> Result<Payload>;
}

impl<T: Serialize> IntoPayload for T {
    fn into_payload(self) -> Result<Payload> {
        Ok(Payload::Json(serde_json::to_string(&self)?))
    }
}

impl IntoPayload for Payload {
    fn into_payload(self) -> Result<Payload> {
        Ok(self)
    }
}

/// Exports `wasmcage:cage/handover`: carries the memory of a module with `instances = { mode = "single" }` over a swap.
///
/// The first function, `fn() -> Vec<u8>`, is the last call of the old version and returns at most 16 MiB. The second,
/// `fn(Vec<u8>) -> Result<()>`, is the first call of the new version; if it fails, the new version is refused, and the old one
/// goes on.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use wasmcage_guest::Result;
///
/// static COUNT: AtomicU64 = AtomicU64::new(0);
///
/// fn save() -> Vec<u8> {
///     COUNT.load(Ordering::Relaxed).to_string().into()
/// }
///
/// fn restore(saved: Vec<u8>) -> Result<()> {
///     COUNT.store(String::from_utf8(saved)?.parse()?, Ordering::Relaxed);
///     Ok(())
/// }
///
/// wasmcage_guest::handover!(save, restore);
/// ```
#[macro_export]
macro_rules! handover {
    ($save:path, $restore:path) => {
        #[allow(dead_code)]
        const _: () = {
            struct Component;
            impl $crate::export::handover::exports::wasmcage::cage::handover::Guest for Component {
                fn save() -> ::std::vec::Vec<u8> {
                    $crate::export::enter();
                    $save()
                }

                fn restore(saved: ::std::vec::Vec<u8>) -> ::std::result::Result<(), ::std::string::String> {
                    $crate::export::enter();
                    let restored: $crate::Result<()> = $restore(saved);
                    restored.map_err(|error| error.text().into())
                }
            }
            // Only for wasm, so that the author's own tests can be linked.
            #[cfg(target_family = "wasm")]
            $crate::export::handover::export_handover! { Component with_types_in $crate::export::handover }
        };
    };
}
