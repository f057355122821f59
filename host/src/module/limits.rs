//! What an instance may grow to. Asked by wasmtime on every growth; remembers the first refusal, because the guest that
//! is refused usually traps with a text that does not say why.

use wasmtime::ResourceLimiter;

/// Memories and tables of one instance, and core instances in it: far above what any toolchain makes.
const PARTS_MAX: usize = 2_000;

#[derive(Debug)]
pub struct Limits {
    memory_bytes_max: usize,
    table_elements_max: usize,
    memory_bytes: usize,
    table_elements: usize,
    refusal: Option<String>,
}

impl Limits {
    pub fn new(memory_bytes_max: usize, table_elements_max: usize) -> Self {
        Self { memory_bytes_max, table_elements_max, memory_bytes: 0, table_elements: 0, refusal: None }
    }

    /// Bytes of linear memory, all memories of the instance together.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The first limit that was hit since the last call of this.
    pub fn take_refusal(&mut self) -> Option<String> {
        self.refusal.take()
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        let granted = total <= self.memory_bytes_max;
        if granted {
            self.memory_bytes = total;
        } else {
            let max = self.memory_bytes_max >> 20;
            self.refusal.get_or_insert_with(|| format!("memory limit of {max} MiB reached (memory_mb in cage.toml)"));
        }
        Ok(granted)
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
    use super::*;

    #[test]
    fn memories_count_together_and_the_first_refusal_is_told() {
        let mut limits = Limits::new(4 << 20, 10);
        assert!(limits.memory_growing(0, 3 << 20, None).unwrap());
        assert!(limits.memory_growing(0, 1 << 20, None).unwrap());
        assert!(!limits.memory_growing(1 << 20, 2 << 20, None).unwrap());
        assert!(!limits.memory_growing(0, usize::MAX, None).unwrap());
        assert_eq!(limits.memory_bytes(), 4 << 20);
        assert!(!limits.table_growing(0, 11, None).unwrap());
        assert!(limits.take_refusal().is_some_and(|text| text.contains("4 MiB")));
        assert!(limits.take_refusal().is_none());
    }
}
