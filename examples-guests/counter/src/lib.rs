//! A module with a memory: counts, in one instance (`instances = { mode = "single" }`), and hands the count over to its
//! next version.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use wasmcage_guest::{Result, handover, service};

static COUNT: AtomicU64 = AtomicU64::new(0);

#[service]
mod counter {
    use super::{COUNT, Relaxed};

    /// The count after this call.
    pub fn increment(by: Option<u64>) -> u64 {
        let by = by.unwrap_or(1);
        COUNT.fetch_add(by, Relaxed).wrapping_add(by)
    }

    pub fn count() -> u64 {
        COUNT.load(Relaxed)
    }
}

handover!(save, restore);

fn save() -> Vec<u8> {
    COUNT.load(Relaxed).to_string().into()
}

fn restore(saved: Vec<u8>) -> Result<()> {
    COUNT.store(String::from_utf8(saved)?.parse()?, Relaxed);
    Ok(())
}
