//! Finds out which cached replies are out of date: remembers when names were written, on a clock that counts reads and writes.

use std::collections::HashMap;

/// Most names whose last write is remembered. With more, all replies read so far count as out of date.
const NAMES_MAX: usize = 65_536;

#[derive(Default)]
pub(super) struct WriteClock {
    clock: u64,
    /// When a write of a name last began or ended.
    last: HashMap<String, u64>,
    /// Number of writes in flight, by name.
    under_way: HashMap<String, usize>,
    /// Replies read up to then are out of date.
    floor: u64,
}

impl WriteClock {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Returns the start of a read; none if its reply must not be cached, because something that it reads is being written.
    pub(super) fn read_begins(&mut self, reads: &[String]) -> Option<u64> {
        let written_now = reads.iter().any(|name| self.under_way.contains_key(name));
        (!written_now).then(|| self.tick())
    }

    /// Returns whether nothing that the reply depends on was written since.
    pub(super) fn is_current(&self, started: u64, reads: &[String]) -> bool {
        started > self.floor && reads.iter().all(|name| self.last.get(name).is_none_or(|written| *written < started))
    }

    pub(super) fn begin(&mut self, writes: &[String]) {
        for name in writes {
            *self.under_way.entry(name.clone()).or_default() += 1;
        }
        self.mark(writes);
    }

    pub(super) fn end(&mut self, writes: &[String]) {
        for name in writes {
            if let Some(count) = self.under_way.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.under_way.remove(name);
                }
            }
        }
        self.mark(writes);
    }

    fn mark(&mut self, writes: &[String]) {
        let now = self.tick();
        if self.last.len() + writes.len() > NAMES_MAX {
            self.last.clear();
            self.floor = now;
        }
        self.last.extend(writes.iter().map(|name| (name.clone(), now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_read_is_current_until_something_of_it_is_written_and_not_if_it_overlaps_a_write() {
        let (read, write, other) = (names(&["a", "b"]), names(&["b"]), names(&["c"]));
        let mut writes = WriteClock::default();
        // One after the other.
        let started = writes.read_begins(&read).unwrap();
        assert!(writes.is_current(started, &read));
        writes.begin(&other);
        writes.end(&other);
        assert!(writes.is_current(started, &read));
        writes.begin(&write);
        assert!(!writes.is_current(started, &read));
        // The write is under way when a read begins.
        assert_eq!(writes.read_begins(&read), None);
        assert!(writes.read_begins(&other).is_some());
        // Two writes of one name: the first that ends does not end both.
        writes.begin(&write);
        writes.end(&write);
        assert_eq!(writes.read_begins(&read), None);
        writes.end(&write);
        let started = writes.read_begins(&read).unwrap();
        assert!(writes.is_current(started, &read));
        assert!(writes.under_way.is_empty());
    }

    #[test]
    fn the_memory_of_writes_is_bounded_and_forgets_to_the_safe_side() {
        let mut writes = WriteClock::default();
        let read = names(&["a"]);
        let started = writes.read_begins(&read).unwrap();
        for number in 1..NAMES_MAX {
            let name = [number.to_string()];
            writes.begin(&name);
            writes.end(&name);
        }
        assert!(writes.is_current(started, &read));
        let one_more = names(&["x"]);
        writes.begin(&one_more);
        writes.end(&one_more);
        assert!(!writes.is_current(started, &read) && writes.last.len() < 3);
        let started = writes.read_begins(&read).unwrap();
        assert!(writes.is_current(started, &read));
    }
}
