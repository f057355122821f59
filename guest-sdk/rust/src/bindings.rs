//! The bindings that wit-bindgen generates from `wit/`: the imports once, and one module for each interface that a component may
//! export. An export becomes part of a component only where its `export_..!` macro is expanded, which `#[handler]`, `#[service]`
//! and `handover!` do in the author's crate. All share the types of `imports`.

pub(crate) mod imports {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "imports",
        // Requests and responses are used by the exports only.
        generate_unused_types: true,
        additional_derives: [Clone, PartialEq, Eq],
    });
}

pub mod handler {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "handler-module",
        with: {
            "wasmcage:cage/types@0.1.0": crate::bindings::imports::wasmcage::cage::types,
            "wasmcage:cage/log@0.1.0": crate::bindings::imports::wasmcage::cage::log,
            "wasmcage:cage/context@0.1.0": crate::bindings::imports::wasmcage::cage::context,
            "wasmcage:cage/call@0.1.0": crate::bindings::imports::wasmcage::cage::call,
            "wasmcage:cage/config@0.1.0": crate::bindings::imports::wasmcage::cage::config,
            "wasmcage:cage/state@0.1.0": crate::bindings::imports::wasmcage::cage::state,
            "wasmcage:cage/lock@0.1.0": crate::bindings::imports::wasmcage::cage::lock,
            "wasmcage:cage/resources@0.1.0": crate::bindings::imports::wasmcage::cage::resources,
            "wasmcage:cage/transaction@0.1.0": crate::bindings::imports::wasmcage::cage::transaction,
        },
        pub_export_macro: true,
        export_macro_name: "export_handler",
    });
}

pub mod service {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "service-module",
        with: {
            "wasmcage:cage/types@0.1.0": crate::bindings::imports::wasmcage::cage::types,
            "wasmcage:cage/log@0.1.0": crate::bindings::imports::wasmcage::cage::log,
            "wasmcage:cage/context@0.1.0": crate::bindings::imports::wasmcage::cage::context,
            "wasmcage:cage/call@0.1.0": crate::bindings::imports::wasmcage::cage::call,
            "wasmcage:cage/config@0.1.0": crate::bindings::imports::wasmcage::cage::config,
            "wasmcage:cage/state@0.1.0": crate::bindings::imports::wasmcage::cage::state,
            "wasmcage:cage/lock@0.1.0": crate::bindings::imports::wasmcage::cage::lock,
            "wasmcage:cage/resources@0.1.0": crate::bindings::imports::wasmcage::cage::resources,
            "wasmcage:cage/transaction@0.1.0": crate::bindings::imports::wasmcage::cage::transaction,
        },
        pub_export_macro: true,
        export_macro_name: "export_service",
    });
}

pub mod handover {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "handover-module",
        pub_export_macro: true,
        export_macro_name: "export_handover",
    });
}
