//! `wasi:keyvalue` on the module's durable keys.
