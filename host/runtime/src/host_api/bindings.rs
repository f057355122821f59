//! Contains only the Rust types and traits that are generated from `wit/`.

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "wasmcage:cage/imports",
    imports: {
        "wasmcage:cage/call": async,
        "wasmcage:cage/state": async,
        "wasmcage:cage/lock": async | trappable,
        "wasmcage:cage/resources": async | trappable,
        "wasmcage:cage/transaction": async | trappable,
    },
    with: {
        "wasmcage:cage/lock.held": super::lock::Held,
        "wasmcage:cage/resources.reply-stream": super::resources::OpenReplyHandle,
        "wasmcage:cage/transaction.transaction": super::transaction::TransactionHandle,
    },
});

pub use self::wasmcage::cage::{call, config, context, lock, log, resources, state, transaction, types};
