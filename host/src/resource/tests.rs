//! Pools, caches and operations, with a double for the other side.
