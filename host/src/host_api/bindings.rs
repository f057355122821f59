//! What `wit/` says, as Rust types and traits; nothing else.

wasmtime::component::bindgen!({
    path: "../wit",
    world: "wasmcage:cage/imports",
    imports: {
        "wasmcage:cage/call.call": async,
        "wasmcage:cage/call.call-all": async,
    },
});

pub use self::wasmcage::cage::{call, config, context, log, types};
