//! Settings of the store: the configuration reads them, the store applies them.

/// A cage's settings of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// With less free space on the disk, nothing is written.
    pub minimum_free_bytes: u64,
}

/// How much a module may store, or has stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of keys, values and entries of queues together.
    pub bytes: u64,
    /// Number of keys and entries of queues together.
    pub entries: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { bytes: 1 << 30, entries: 10_000_000 }
    }
}
