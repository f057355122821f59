//! Limits the calls in flight for each key separately: for each cage that is called, or for each peer that calls. Fabrics
//! enforce `CallLimits` with it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Hands out at most the same number of permits for each key.
#[derive(Debug)]
pub(crate) struct KeyedLimit<K> {
    max: usize,
    /// Permits in use by key; a key without any is removed, so that keys that come and go use no memory.
    used: Mutex<HashMap<K, usize>>,
}

/// A permit of one key. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct KeyedPermit<K: Hash + Eq> {
    limit: Arc<KeyedLimit<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> KeyedLimit<K> {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, used: Mutex::default() })
    }

    /// Returns none when all permits of that key are in use.
    pub(crate) fn try_acquire(self: &Arc<Self>, key: K) -> Option<KeyedPermit<K>> {
        let mut all = self.used.lock();
        let used = all.entry(key.clone()).or_default();
        if *used >= self.max {
            if *used == 0 {
                all.remove(&key);
            }
            return None;
        }
        *used += 1;
        drop(all);
        Some(KeyedPermit { limit: self.clone(), key })
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }
}

impl<K: Hash + Eq> Drop for KeyedPermit<K> {
    fn drop(&mut self) {
        let mut all = self.limit.used.lock();
        if let Some(used) = all.get_mut(&self.key) {
            *used -= 1;
            if *used == 0 {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_bounded_by_key_and_given_back() {
        let limit = KeyedLimit::new(2);
        let (first, second) = (limit.try_acquire("a"), limit.try_acquire("a"));
        assert!(first.is_some() && second.is_some() && limit.try_acquire("a").is_none());
        assert!(limit.try_acquire("b").is_some());
        drop(first);
        assert!(limit.try_acquire("a").is_some());
        drop(second);
        assert!(limit.used.lock().is_empty());
        assert!(KeyedLimit::new(0).try_acquire("a").is_none());
    }
}
