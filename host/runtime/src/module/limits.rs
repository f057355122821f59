//! Limits the memory and the tables of an instance. wasmtime asks on every growth. The first refusal is kept, because a guest
//! that is refused usually traps with a text that does not say why.

use std::sync::Arc;

use wasmtime::ResourceLimiter;

use super::room::{ModuleRoom, Shortage};

/// The largest number each of memories, tables and core instances in one instance, far above what any toolchain makes.
pub const PARTS_MAX: usize = 2_000;

#[derive(Debug)]
pub struct Limits {
    memory_bytes_max: usize,
    table_elements_max: usize,
    memory_bytes: usize,
    table_elements: usize,
    refusal: Option<String>,
    /// The last shortage of shared memory for which a growth was refused, not counting the instance's own limit.
    shortage: Option<Shortage>,
    room: Arc<ModuleRoom>,
}

impl Limits {
    pub fn new(memory_bytes_max: usize, table_elements_max: usize, room: Arc<ModuleRoom>) -> Self {
        Self {
            memory_bytes_max,
            table_elements_max,
            memory_bytes: 0,
            table_elements: 0,
            refusal: None,
            shortage: None,
            room,
        }
    }

    /// Returns the size of all linear memories of the instance together, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Takes the text of the first limit that was reached since the last call of this.
    pub fn take_refusal(&mut self) -> Option<String> {
        self.refusal.take()
    }

    /// Returns the last shortage, if memory was refused because guests together have too much of it.
    pub fn shortage(&self) -> Option<Shortage> {
        self.shortage
    }

    fn grow(&mut self, bytes: usize) -> Result<(), String> {
        let total = self.memory_bytes.saturating_add(bytes);
        if total > self.memory_bytes_max {
            let max = self.memory_bytes_max >> 20;
            return Err(format!("memory limit of {max} MiB reached (memory_mb in cage.toml)"));
        }
        self.room.take_memory(bytes).map_err(|shortage| {
            self.shortage = Some(shortage);
            shortage.to_string()
        })?;
        self.memory_bytes = total;
        Ok(())
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.room.give_back_memory(self.memory_bytes);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let Err(refusal) = self.grow(desired.saturating_sub(current)) else { return Ok(true) };
        self.refusal.get_or_insert(refusal);
        Ok(false)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.table_elements.saturating_add(desired.saturating_sub(current));
        let granted = total <= self.table_elements_max;
        if granted {
            self.table_elements = total;
        } else {
            let max = self.table_elements_max;
            self.refusal
                .get_or_insert_with(|| format!("limit of {max} table elements reached (table_elements in cage.toml)"));
        }
        Ok(granted)
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        PARTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::super::room::Room;
    use super::*;

    #[test]
    fn memories_count_together_and_the_first_refusal_is_told() {
        let mut limits = Limits::new(4 << 20, 10, Room::new(usize::MAX).cage().module(None));
        assert!(limits.memory_growing(0, 3 << 20, None).unwrap());
        assert!(limits.memory_growing(0, 1 << 20, None).unwrap());
        assert!(!limits.memory_growing(1 << 20, 2 << 20, None).unwrap());
        assert!(!limits.memory_growing(0, usize::MAX, None).unwrap());
        assert_eq!(limits.memory_bytes(), 4 << 20);
        assert!(!limits.table_growing(0, 11, None).unwrap());
        assert!(limits.take_refusal().is_some_and(|text| text.contains("4 MiB")));
        assert!(limits.take_refusal().is_none());
    }

    #[test]
    fn instances_of_all_modules_count_together_and_give_back_what_they_had() {
        let room = Room::new(4 << 20);
        let cage = room.cage();
        let limits = || Limits::new(4 << 20, 10, cage.module(None));
        let (mut first, mut second) = (limits(), limits());
        assert!(first.memory_growing(0, 3 << 20, None).unwrap());
        assert!(!second.memory_growing(0, 2 << 20, None).unwrap());
        assert_eq!(second.shortage(), Some(Shortage::Process(4 << 20)));
        assert!(second.take_refusal().is_some_and(|text| text.contains("share 4 MiB")));
        drop(first);
        assert!(second.memory_growing(0, 2 << 20, None).unwrap());
        assert_eq!(cage.memory(), 2 << 20);
    }
}
