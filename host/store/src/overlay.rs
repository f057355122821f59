//! Changes that are not in the file yet.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::Space;

/// The new values of keys, by table; none for keys that are removed.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    spaces: [BTreeMap<Vec<u8>, Option<Vec<u8>>>; Space::COUNT],
    bytes: usize,
}

impl Overlay {
    /// Returns none if the key is not changed here, and an inner none if it is removed.
    pub(super) fn get(&self, space: Space, key: &[u8]) -> Option<Option<&Vec<u8>>> {
        self.spaces[space as usize].get(key).map(Option::as_ref)
    }

    pub(super) fn set(&mut self, space: Space, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.spaces[space as usize].insert(key, value);
    }

    /// Adds the changes of `other`, which override those here.
    pub(super) fn merge(&mut self, other: Self) {
        for (mine, theirs) in self.spaces.iter_mut().zip(other.spaces) {
            mine.extend(theirs);
        }
        self.bytes += other.bytes;
    }

    /// Changes of keys from `from`, included, to `to`, not included, which must be greater.
    pub(super) fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
    ) -> impl DoubleEndedIterator<Item = (&Vec<u8>, Option<&Vec<u8>>)> {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        self.spaces[space as usize].range::<[u8], _>(bounds).map(|(key, value)| (key, value.as_ref()))
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = (Space, &BTreeMap<Vec<u8>, Option<Vec<u8>>>)> {
        Space::ALL.into_iter().zip(&self.spaces).filter(|(_, entries)| !entries.is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables().next().is_none()
    }

    /// Bytes of keys and values that were written, overwritten ones included.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
