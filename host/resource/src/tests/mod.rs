//! Tests of pools, grants and the cache, with a fake resource.

mod caching;
mod grants;
mod pools;
