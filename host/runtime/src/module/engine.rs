//! The two wasmtime engines that every cage of the process shares, and the thread that makes their epochs tick.
//!
//! A component without async functions runs on the engine without concurrency support, where a call into the guest costs
//! a third of what it costs on the other; `wasi:http@0.3` and the like need the other.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, ResourcesRequired};

use super::limits::PARTS_MAX;
use wasmcage_config::TABLE_ELEMENTS_MAX;

/// How often a running guest is interrupted to see whether its deadline has passed and to let its lane serve others.
pub const EPOCH_TICK: Duration = Duration::from_millis(1);

/// Linear memory up to this size is kept resident and cleared by hand when its instance is dropped, which is faster than
/// giving it back to the kernel. Guests built with a 64 KiB stack start below it.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 512 * 1024;
/// Memory slots that stay warm after their instance has gone.
const WARM_SLOTS_MAX: u32 = 64;
/// Instances are counted, and no room is kept for them: what ends first are the stacks.
const CORE_INSTANCES_MAX: u32 = STACKS_MAX * PARTS_MAX as u32;
const COMPONENT_INSTANCES_MAX: u32 = STACKS_MAX;
/// Each reserves a bit over 4 GiB of address space, none of it backed by memory before use.
const MEMORIES_MAX: u32 = 4_000;
const TABLES_MAX: u32 = 20_000;
/// Guests that may be suspended in the middle of a call at one time.
const STACKS_MAX: u32 = 4_000;
/// What the pool of one engine is divided into. An instance takes so many units that the pool's memories, tables and stacks
/// are enough for all instances that have theirs.
pub const POOL_UNITS: usize = 20_000;
/// Frames of the guest. Interpreters recurse over what a request nests: CPython reads JSON of some 9,900 levels with it. It
/// costs address space only, until a guest uses it.
const GUEST_STACK_BYTES: usize = 4 << 20;
/// Above them on the same native stack, those of the host function that the guest called.
const HOST_STACK_BYTES: usize = 512 << 10;

/// Which of the two engines a component needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// No async functions.
    Plain,
    /// Async functions, streams, futures.
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

    /// Settings that decide how code is compiled: the same in the compiling child and in the serving process.
    fn config(self) -> Config {
        let mut config = Config::new();
        config
            .epoch_interruption(true)
            .concurrency_support(self == Self::Concurrent)
            .wasm_component_model_map(true)
            .max_wasm_stack(GUEST_STACK_BYTES)
            .async_stack_size(GUEST_STACK_BYTES + HOST_STACK_BYTES)
            .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(20))
            // Python heaps are tens of MiB, mostly zero: still mapped copy-on-write, never copied at each start.
            .memory_guaranteed_dense_image_size(64 << 20);
        config
    }

    /// An engine that compiles and runs nothing; dropped with all that compiling left in it.
    ///
    /// # Errors
    /// wasmtime's, when this machine cannot run compiled code.
    pub fn compiling(self) -> wasmtime::Result<Engine> {
        Engine::new(&self.config())
    }
}

/// Units of the pool that an instance takes.
pub fn pool_units(required: &ResourcesRequired) -> usize {
    let each = |number: u32, max: u32| (number as usize * POOL_UNITS).div_ceil(max as usize);
    let memories = each(required.num_memories, MEMORIES_MAX);
    memories.max(each(required.num_tables, TABLES_MAX)).max(each(1, STACKS_MAX))
}

/// The engines. They tick as long as anything lives that belongs to one: a guest may still be running when this has been
/// dropped, and without a tick it would hold its lane for ever.
pub struct Engines {
    plain: Engine,
    concurrent: Engine,
}

impl Engines {
    /// # Errors
    /// wasmtime's, when this machine cannot run compiled code.
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

    /// Differs whenever code compiled by another build of the host, of wasmtime, or for another processor must not be
    /// used by this one.
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
        // Address space can be limited from outside (ulimit -v, containers): slower instances are better than none.
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
