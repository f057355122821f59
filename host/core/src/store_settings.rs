//! What `cage.toml` says of durable data. Read by the configuration, obeyed by the store.

/// What the cage's configuration says of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// With less room on the disk, nothing is written.
    pub minimum_free_bytes: u64,
}

/// What a module may keep, or keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Of keys, values and entries of queues together.
    pub bytes: u64,
    /// Keys and entries of queues.
    pub entries: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { bytes: 1 << 30, entries: 10_000_000 }
    }
}
