//! Guests as code: files become versions (`watcher`, `compiler`, `loader`), versions stand in slots, instances of them run
//! requests. The dispatcher is the only caller at serving time.

pub mod binding;
pub mod cache;
pub mod carrier;
mod command;
mod compile_worker;
pub mod compiler;
pub mod component_file;
pub mod engine;
pub mod exports;
pub mod instance;
pub mod limits;
pub mod loader;
mod places;
pub mod retry;
pub mod room;
pub mod slot;
pub mod value;
pub mod version;
pub mod watcher;
pub mod web;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use self::slot::{ModuleSnapshot, Slot};
use wasmcage_config::InstanceMode;

pub use self::compile_worker::compile_worker;

/// Set for a program that is run to compile a module.
pub const COMPILE_VARIABLE: &str = "WASMCAGE_COMPILE";

/// The slots of one cage, by module name. Slots are made for files and for interfaces, never for names that a guest made
/// up; one whose file has gone stays, empty.
#[derive(Default)]
pub struct Modules {
    slots: ArcSwap<HashMap<Arc<str>, Arc<Slot>>>,
    creating: Mutex<()>,
}

impl Modules {
    pub fn get(&self, name: &str) -> Option<Arc<Slot>> {
        self.slots.load().get(name).cloned()
    }

    pub fn get_or_create(&self, name: &str) -> Arc<Slot> {
        let _creating = self.creating.lock();
        if let Some(slot) = self.get(name) {
            return slot;
        }
        let slot = Arc::new(Slot::new(name.into()));
        let mut slots = HashMap::clone(&self.slots.load());
        slots.insert(slot.name.clone(), slot.clone());
        self.slots.store(Arc::new(slots));
        slot
    }

    pub fn all(&self) -> Vec<Arc<Slot>> {
        self.slots.load().values().cloned().collect()
    }

    /// Names of modules that have a version.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.all().into_iter().filter(|slot| slot.current().is_some()).map(|slot| slot.name.clone()).collect()
    }

    /// Sorted by name.
    pub fn snapshot(&self) -> Vec<ModuleSnapshot> {
        let mut modules: Vec<_> = self.all().iter().map(|slot| slot.snapshot()).collect();
        modules.sort_by(|a, b| a.module.cmp(&b.module));
        modules
    }

    /// Frees instances that were idle for longer than their module's setting.
    pub fn drop_idle(&self) {
        for version in self.all().iter().filter_map(|slot| slot.current()) {
            version.drop_idle(version.home.settings.instances.idle_timeout);
        }
    }

    /// Frees all idle instances but those that are their module's only one, whose memory is not to be lost; says how many.
    pub fn make_room(&self) -> usize {
        let versions = self.all().into_iter().filter_map(|slot| slot.current());
        let versions = versions.filter(|version| version.mode != InstanceMode::Single);
        versions.map(|version| version.drop_idle(Duration::ZERO)).sum()
    }

    /// At the cage's end: no version is current any more.
    pub fn clear(&self) {
        self.all().iter().for_each(|slot| slot.swap(None));
    }
}
