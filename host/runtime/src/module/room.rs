//! Counts the guests' memory and the parts of the engines' pools, which all cages of the process share. An amount is counted
//! before it is used, when an instance starts or its memory grows, and is given back when the instance ends.
//!
//! Any cage may take from the first three quarters of the total. The last quarter is for cages that use no more than their
//! share, which is the total divided by the number of cages. So no cage can take everything from the others, and a cage that
//! is alone in its process may use all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::engine::{EngineKind, POOL_UNITS};
use wasmcage_core::machine;

/// The environment variable with the limit on the memory of all guests of a process, in MiB.
const MEMORY_VARIABLE: &str = "WASMCAGE_GUEST_MEMORY_MB";

/// The memory and the pools that all cages of the process share.
#[derive(Debug)]
pub struct Room {
    memory: Whole,
    /// The units of each engine's pool, by `EngineKind`.
    units: [Whole; 2],
    cages: AtomicUsize,
}

/// A quantity that cages share: how much there is, and how much of it is in use.
#[derive(Debug)]
struct Whole {
    size: usize,
    used: AtomicUsize,
}

/// The memory and the pool units that one cage uses.
#[derive(Debug)]
pub struct CageRoom {
    room: Arc<Room>,
    /// The limit on the memory of the cage's guests, in bytes.
    memory_max: AtomicUsize,
    memory: AtomicUsize,
    units: [AtomicUsize; 2],
}

/// The memory that the instances of one version of a module use, and its limit, in bytes.
#[derive(Debug)]
pub struct ModuleRoom {
    cage: Arc<CageRoom>,
    memory_max: usize,
    memory: AtomicUsize,
}

/// The units of an engine's pool that an instance uses. They are given back when this is dropped.
#[derive(Debug)]
pub struct PoolPart {
    cage: Arc<CageRoom>,
    kind: EngineKind,
    units: usize,
}

/// The limit that was reached; the number is its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    #[error("guests of this module have {} MiB of memory together, its bound (total_memory_mb in cage.toml)", .0 >> 20)]
    Module(usize),
    #[error("guests of this cage have {} MiB of memory together, its bound (guest_memory_mb in cage.toml)", .0 >> 20)]
    Cage(usize),
    #[error("guests of this process share {} MiB of memory ({MEMORY_VARIABLE}), and nothing is left for this cage", .0 >> 20)]
    Process(usize),
    #[error("the process has no room for another instance of this cage: its pool is in use")]
    Pool,
}

impl Room {
    /// Sets the limit on memory to `WASMCAGE_GUEST_MEMORY_MB`, or to half the memory of the machine or of the process's control
    /// group when the variable is not set to a positive number.
    pub fn of_machine() -> Arc<Self> {
        let chosen = std::env::var(MEMORY_VARIABLE).ok().and_then(|text| text.parse::<usize>().ok());
        let chosen = chosen.filter(|megabytes| *megabytes > 0).map(|megabytes| megabytes.saturating_mul(1 << 20));
        Self::new(chosen.unwrap_or_else(|| machine::memory_bytes() / 2))
    }

    pub fn new(memory_bytes: usize) -> Arc<Self> {
        let whole = |size| Whole { size, used: AtomicUsize::new(0) };
        let units = EngineKind::ALL.map(|_| whole(POOL_UNITS));
        Arc::new(Self { memory: whole(memory_bytes), units, cages: AtomicUsize::new(0) })
    }

    /// Adds a cage and returns its part.
    pub fn cage(self: &Arc<Self>) -> Arc<CageRoom> {
        self.cages.fetch_add(1, Relaxed);
        Arc::new(CageRoom {
            room: self.clone(),
            memory_max: AtomicUsize::new(usize::MAX),
            memory: AtomicUsize::new(0),
            units: EngineKind::ALL.map(|_| AtomicUsize::new(0)),
        })
    }

    /// Takes `amount` for a cage that would then have `own`. Returns false, with nothing taken, if the rule above forbids it.
    fn take(&self, whole: &Whole, own: usize, amount: usize) -> bool {
        let used = whole.used.fetch_add(amount, Relaxed).saturating_add(amount);
        let share = whole.size / self.cages.load(Relaxed).max(1);
        let granted = used <= whole.size - whole.size / 4 || (used <= whole.size && own <= share);
        if !granted {
            whole.used.fetch_sub(amount, Relaxed);
        }
        granted
    }
}

impl CageRoom {
    /// Sets the limit on memory; memory that is in use beyond it stays.
    pub fn set_memory_max(&self, bytes: Option<usize>) {
        self.memory_max.store(bytes.unwrap_or(usize::MAX), Relaxed);
    }

    /// Returns the memory that the cage's guests have, in bytes.
    pub fn memory(&self) -> usize {
        self.memory.load(Relaxed)
    }

    pub fn module(self: &Arc<Self>, memory_max: Option<usize>) -> Arc<ModuleRoom> {
        let memory_max = memory_max.unwrap_or(usize::MAX);
        Arc::new(ModuleRoom { cage: self.clone(), memory_max, memory: AtomicUsize::new(0) })
    }

    fn take_memory(&self, bytes: usize) -> Result<(), Shortage> {
        let max = self.memory_max.load(Relaxed);
        let own = take(&self.memory, bytes, max).ok_or(Shortage::Cage(max))?;
        if self.room.take(&self.room.memory, own, bytes) {
            return Ok(());
        }
        self.memory.fetch_sub(bytes, Relaxed);
        Err(Shortage::Process(self.room.memory.size))
    }

    fn take_units(self: &Arc<Self>, kind: EngineKind, units: usize) -> Result<PoolPart, Shortage> {
        let (own, whole) = (&self.units[kind as usize], &self.room.units[kind as usize]);
        let used = own.fetch_add(units, Relaxed) + units;
        if self.room.take(whole, used, units) {
            return Ok(PoolPart { cage: self.clone(), kind, units });
        }
        own.fetch_sub(units, Relaxed);
        Err(Shortage::Pool)
    }
}

impl ModuleRoom {
    /// # Errors
    /// Returns the limit that would be exceeded. Nothing is taken then.
    pub fn take_memory(&self, bytes: usize) -> Result<(), Shortage> {
        take(&self.memory, bytes, self.memory_max).ok_or(Shortage::Module(self.memory_max))?;
        self.cage.take_memory(bytes).inspect_err(|_| {
            self.memory.fetch_sub(bytes, Relaxed);
        })
    }

    pub fn give_back_memory(&self, bytes: usize) {
        self.memory.fetch_sub(bytes, Relaxed);
        self.cage.memory.fetch_sub(bytes, Relaxed);
        self.cage.room.memory.used.fetch_sub(bytes, Relaxed);
    }

    /// # Errors
    /// Returns `Shortage::Pool` if the pool has no room for an instance of this size.
    pub fn take_units(&self, kind: EngineKind, units: usize) -> Result<PoolPart, Shortage> {
        self.cage.take_units(kind, units)
    }
}

/// Adds `amount` unless the sum would exceed `max`, and returns the sum.
fn take(used: &AtomicUsize, amount: usize, max: usize) -> Option<usize> {
    let sum = |used: usize| used.checked_add(amount).filter(|sum| *sum <= max);
    used.fetch_update(Relaxed, Relaxed, sum).ok().map(|before| before + amount)
}

impl Drop for PoolPart {
    fn drop(&mut self) {
        self.cage.units[self.kind as usize].fetch_sub(self.units, Relaxed);
        self.cage.room.units[self.kind as usize].used.fetch_sub(self.units, Relaxed);
    }
}

impl Drop for CageRoom {
    fn drop(&mut self) {
        self.room.cages.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn one_cage_alone_may_use_everything_and_no_byte_more() {
        let room = Room::new(100 * MIB);
        let module = room.cage().module(None);
        assert_eq!(module.take_memory(100 * MIB), Ok(()));
        assert_eq!(module.take_memory(1), Err(Shortage::Process(100 * MIB)));
        module.give_back_memory(100 * MIB);
        assert_eq!(module.take_memory(1), Ok(()));
    }

    #[test]
    fn a_greedy_cage_leaves_the_last_quarter_to_those_below_their_share() {
        let room = Room::new(100 * MIB);
        let (greedy, modest) = (room.cage().module(None), room.cage().module(None));
        let taken = (0..100).filter(|_| greedy.take_memory(MIB).is_ok()).count();
        assert_eq!(taken, 75);
        let taken = (0..100).filter(|_| modest.take_memory(MIB).is_ok()).count();
        assert_eq!(taken, 25);
        // A cage that gave memory back can take it again as long as it stays within its share.
        modest.give_back_memory(10 * MIB);
        assert!(greedy.take_memory(MIB).is_err());
        assert_eq!(modest.take_memory(10 * MIB), Ok(()));
    }

    #[test]
    fn bounds_of_a_cage_and_of_a_module_are_told_and_leave_nothing_taken() {
        let room = Room::new(100 * MIB);
        let cage = room.cage();
        cage.set_memory_max(Some(10 * MIB));
        let (bounded, free) = (cage.module(Some(4 * MIB)), cage.module(None));
        assert_eq!(bounded.take_memory(5 * MIB), Err(Shortage::Module(4 * MIB)));
        assert_eq!(free.take_memory(11 * MIB), Err(Shortage::Cage(10 * MIB)));
        assert_eq!(free.take_memory(8 * MIB), Ok(()));
        assert_eq!(bounded.take_memory(3 * MIB), Err(Shortage::Cage(10 * MIB)));
        assert_eq!(bounded.take_memory(2 * MIB), Ok(()));
        assert_eq!((cage.memory(), room.memory.used.load(Relaxed)), (10 * MIB, 10 * MIB));
        assert_eq!(bounded.take_memory(usize::MAX), Err(Shortage::Module(4 * MIB)));
    }

    #[test]
    fn the_pool_is_shared_alike_and_parts_come_back() {
        let room = Room::new(MIB);
        let (greedy, modest) = (room.cage().module(None), room.cage().module(None));
        let all = |module: &ModuleRoom| -> Vec<_> {
            std::iter::from_fn(|| module.take_units(EngineKind::Plain, POOL_UNITS / 100).ok()).collect()
        };
        let taken = all(&greedy);
        assert_eq!(taken.len(), 75);
        assert_eq!(all(&modest).len(), 25);
        assert_eq!(greedy.take_units(EngineKind::Plain, POOL_UNITS / 100).err(), Some(Shortage::Pool));
        assert!(greedy.take_units(EngineKind::Concurrent, POOL_UNITS / 100).is_ok());
        drop(taken);
        assert_eq!(all(&modest).len(), 75);
    }
}
