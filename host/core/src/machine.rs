//! The machine's memory, from which limits are derived.

use std::fs;
use std::path::Path;

/// Used where the system does not say how much memory there is.
const MEMORY_BYTES_DEFAULT: usize = 4 << 30;

/// Returns the bytes of memory that this process may use: those of the machine, or fewer where a control group sets a limit.
pub fn memory_bytes() -> usize {
    memory_bytes_below(Path::new("/"))
}

fn memory_bytes_below(root: &Path) -> usize {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.saturating_mul(1024))
    });
    let own = read("proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    // A limit holds for all groups below it.
    let groups = Path::new(&own).ancestors().map(|group| Path::new("sys/fs/cgroup").join(group).join("memory.max"));
    let first = Path::new("sys/fs/cgroup/memory/memory.limit_in_bytes").to_path_buf();
    let limits = groups.chain([first]).filter_map(|file| read(file.to_str()?)?.trim().parse::<usize>().ok());
    limits.chain(machine).min().unwrap_or(MEMORY_BYTES_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_bounded_by_control_groups_above() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(memory_bytes_below(root.path()), MEMORY_BYTES_DEFAULT);
        write("proc/meminfo", "MemTotal:       8000 kB\nMemFree: 1 kB\n");
        assert_eq!(memory_bytes_below(root.path()), 8_000 << 10);
        write("proc/self/cgroup", "0::/system.slice/cage.service\n");
        write("sys/fs/cgroup/system.slice/cage.service/memory.max", "max\n");
        assert_eq!(memory_bytes_below(root.path()), 8_000 << 10);
        write("sys/fs/cgroup/system.slice/memory.max", "2048000\n");
        assert_eq!(memory_bytes_below(root.path()), 2_048_000);
    }
}
