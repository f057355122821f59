//! The two wasmtime engines that all cages of the process share, and the thread that increments their epochs.
//!
//! A component without async functions runs on the plain engine, which has no concurrency support; a call into the guest takes
//! a third of the time there. `wasi:http@0.3` and the like need the concurrent engine.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, ResourcesRequired};

use super::limits::PARTS_MAX;
use wasmcage_config::TABLE_ELEMENTS_MAX;

/// The interval at which a running guest is interrupted, to check its deadline and to let its lane serve others.
pub const EPOCH_TICK: Duration = Duration::from_millis(1);

/// The size up to which linear memory stays resident and is cleared when its instance is dropped, which is faster than to
/// give it back to the kernel. Guests built with a 64 KiB stack start below it.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 512 * 1024;
/// The number of memory slots that stay warm after their instance was dropped.
const WARM_SLOTS_MAX: u32 = 64;
/// The largest number of core instances in a pool. wasmtime only counts them, and the stacks run out first.
const CORE_INSTANCES_MAX: u32 = STACKS_MAX * PARTS_MAX as u32;
const COMPONENT_INSTANCES_MAX: u32 = STACKS_MAX;
/// The number of linear memories in a pool. Each reserves a little more than 4 GiB of address space, and uses memory only
/// when it is written to.
const MEMORIES_MAX: u32 = 4_000;
const TABLES_MAX: u32 = 20_000;
/// The number of stacks in a pool, which is the largest number of guests that may be in a call at one time.
const STACKS_MAX: u32 = 4_000;
/// The number of units into which the pool of one engine is divided. An instance takes so many units that the pool's memories,
/// tables and stacks suffice for all instances that have their units.
pub const POOL_UNITS: usize = 20_000;
/// The size of a guest's stack. Interpreters recurse over nested input: with this size CPython reads JSON of some 9,900
/// levels. Until a guest uses it, it takes address space only.
const GUEST_STACK_BYTES: usize = 4 << 20;
/// The size of the part of the same native stack that is left for the host functions that the guest calls.
const HOST_STACK_BYTES: usize = 512 << 10;

/// The engine that a component needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// The engine for components without async functions.
    Plain,
    /// The engine for components with async functions, streams or futures.
    Concurrent,
}

impl EngineKind {
    pub const ALL: [Self; 2] = [Self::Plain, Self::Concurrent];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Concurrent => "concurrent",
        }
    }

    /// Returns the settings that decide how code is compiled. They are the same in the compiling child and in the serving
    /// process.
    fn config(self) -> Config {
        let mut config = Config::new();
        config
            .epoch_interruption(true)
            .concurrency_support(self == Self::Concurrent)
            .wasm_component_model_map(true)
            .max_wasm_stack(GUEST_STACK_BYTES)
            .async_stack_size(GUEST_STACK_BYTES + HOST_STACK_BYTES)
            .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(20))
            // Python heaps have tens of MiB, mostly zeros. Up to this size they are mapped copy-on-write, not copied.
            .memory_guaranteed_dense_image_size(64 << 20);
        config
    }

    /// Makes an engine that only compiles. It is dropped afterwards, together with the memory that compiling took.
    ///
    /// # Errors
    /// Returns wasmtime's error when this machine cannot run compiled code.
    pub fn compiling(self) -> wasmtime::Result<Engine> {
        Engine::new(&self.config())
    }
}

/// Returns the number of units of the pool that an instance takes.
pub fn pool_units(required: &ResourcesRequired) -> usize {
    let each = |number: u32, max: u32| (number as usize * POOL_UNITS).div_ceil(max as usize);
    let memories = each(required.num_memories, MEMORIES_MAX);
    memories.max(each(required.num_tables, TABLES_MAX)).max(each(1, STACKS_MAX))
}

/// The engines. Their epochs are incremented as long as anything of them is in use, because a guest may still be running when
/// this is dropped, and it would never be interrupted otherwise.
pub struct Engines {
    plain: Engine,
    concurrent: Engine,
}

impl Engines {
    /// # Errors
    /// Returns wasmtime's error when this machine cannot run compiled code.
    pub fn start() -> wasmtime::Result<Self> {
        let [plain, concurrent] = EngineKind::ALL.map(serving);
        let engines = Self { plain: plain?, concurrent: concurrent? };
        let ticked = [engines.plain.weak(), engines.concurrent.weak()];
        std::thread::Builder::new().name("epoch".into()).spawn(move || {
            loop {
                std::thread::sleep(EPOCH_TICK);
                let alive = ticked.iter().filter_map(|engine| engine.upgrade());
                if alive.inspect(|engine| engine.increment_epoch()).count() == 0 {
                    return;
                }
            }
        })?;
        Ok(engines)
    }

    pub fn get(&self, kind: EngineKind) -> &Engine {
        match kind {
            EngineKind::Plain => &self.plain,
            EngineKind::Concurrent => &self.concurrent,
        }
    }

    /// Returns a hash that differs for code which this process must not use, because it was compiled by another version of the
    /// host or of wasmtime, with other settings, or for another processor.
    pub fn compatibility(&self, kind: EngineKind) -> u64 {
        let mut hasher = DefaultHasher::new();
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        self.get(kind).precompile_compatibility_hash().hash(&mut hasher);
        hasher.finish()
    }
}

fn serving(kind: EngineKind) -> wasmtime::Result<Engine> {
    let mut config = kind.config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    Engine::new(&config).or_else(|error| {
        // The address space may be limited (ulimit -v, containers). Instances without a pool are slower, but they work.
        tracing::warn!(error = %format!("{error:#}"), "instance pool not available, instances are allocated one by one");
        Engine::new(&kind.config())
    })
}

fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.linear_memory_keep_resident(MEMORY_KEEP_RESIDENT_BYTES)
        .table_keep_resident(64 * 1024)
        .async_stack_keep_resident(16 * 1024)
        .max_unused_warm_slots(WARM_SLOTS_MAX)
        .total_component_instances(COMPONENT_INSTANCES_MAX)
        .total_core_instances(CORE_INSTANCES_MAX)
        .total_memories(MEMORIES_MAX)
        .total_tables(TABLES_MAX)
        .total_stacks(STACKS_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(4 << 30)
        // Python components consist of hundreds of core modules.
        .max_core_instances_per_component(PARTS_MAX as u32)
        .max_memories_per_component(50)
        .max_tables_per_component(200)
        .max_core_instance_size(8 << 20)
        .max_component_instance_size(8 << 20);
    pool
}
