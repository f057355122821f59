//! How many calls of a kind have no answer yet, with a bound: by the cage that is called, or by the peer that calls. Used by
//! fabrics for the bounds of `Limits`; knows neither calls nor peers.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Places of every key, up to the same number for each.
#[derive(Debug)]
pub struct Places<K> {
    max: usize,
    /// Without the keys that have none, so that keys that come and go leave nothing behind.
    taken: Mutex<HashMap<K, usize>>,
}

/// Given back when dropped.
#[derive(Debug)]
pub struct Place<K: Hash + Eq> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Places<K> {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::default() })
    }

    /// None when all places of that key are taken.
    pub fn enter(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut all = self.taken.lock();
        let taken = all.entry(key.clone()).or_default();
        if *taken >= self.max {
            if *taken == 0 {
                all.remove(&key);
            }
            return None;
        }
        *taken += 1;
        drop(all);
        Some(Place { places: self.clone(), key })
    }

    pub fn max(&self) -> usize {
        self.max
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut all = self.places.taken.lock();
        if let Some(taken) = all.get_mut(&self.key) {
            *taken -= 1;
            if *taken == 0 {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_by_key_and_given_back() {
        let places = Places::new(2);
        let (first, second) = (places.enter("a"), places.enter("a"));
        assert!(first.is_some() && second.is_some() && places.enter("a").is_none());
        assert!(places.enter("b").is_some());
        drop(first);
        assert!(places.enter("a").is_some());
        drop(second);
        assert!(places.taken.lock().is_empty());
        assert!(Places::new(0).enter("a").is_none());
    }
}
