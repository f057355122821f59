//! `wasmcage state`, on a running cage and on a stopped one.
