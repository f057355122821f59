//! HTTP servers as resources, and requests of modules by `wasi:http`.
