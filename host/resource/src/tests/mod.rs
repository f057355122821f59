//! What pools, grants and operations promise, with a double for the other side.

mod caching;
mod grants;
mod pools;
