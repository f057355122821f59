//! Keeps the host's values that a guest holds while it works on one request. The guest's table of resources has only their
//! numbers, so that the end of the request drops the values even if the guest keeps its handles.

use std::collections::HashMap;
use std::marker::PhantomData;

/// A guest's handle of a value that it holds, or that it held in an earlier request.
pub struct Handle<T> {
    number: u64,
    of: PhantomData<fn() -> T>,
}

/// All values of one type that a guest holds for its current request.
pub(super) struct PerRequest<T> {
    held: HashMap<u64, T>,
    /// The number of the last handle. No number is used twice, so that a handle of an earlier request refers to no value of
    /// this one.
    last_number: u64,
}

impl<T> Handle<T> {
    pub(super) fn of_nothing() -> Self {
        Self { number: 0, of: PhantomData }
    }
}

impl<T> Default for PerRequest<T> {
    fn default() -> Self {
        Self { held: HashMap::new(), last_number: 0 }
    }
}

impl<T> PerRequest<T> {
    pub(super) fn add(&mut self, value: T) -> Handle<T> {
        self.last_number += 1;
        self.held.insert(self.last_number, value);
        Handle { number: self.last_number, of: PhantomData }
    }

    /// Returns the value of the handle. None if it was removed, or if its request has ended.
    pub(super) fn get(&mut self, handle: &Handle<T>) -> Option<&mut T> {
        self.held.get_mut(&handle.number)
    }

    pub(super) fn remove(&mut self, handle: &Handle<T>) {
        self.held.remove(&handle.number);
    }

    /// Drops all values. Must be called at the end of each request.
    pub(super) fn clear(&mut self) {
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_request_drops_what_its_guest_held() {
        let mut all = PerRequest::default();
        let [first, second] = ["first", "second"].map(|text| all.add(text));
        assert_eq!(all.get(&first), Some(&mut "first"));
        all.remove(&first);
        assert_eq!(all.get(&first), None);
        assert_eq!(all.get(&second), Some(&mut "second"));
        all.clear();
        let third = all.add("third");
        assert_eq!(all.get(&second), None);
        assert_eq!(all.get(&third), Some(&mut "third"));
    }
}
