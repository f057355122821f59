//! Modules: files become versions (`watcher`, `compiler`, `loader`), each slot holds the current version of a module, and
//! instances of the versions run requests. Only the dispatcher calls this code to serve requests.

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

/// The environment variable that is set for a program which is run to compile a module.
pub const COMPILE_VARIABLE: &str = "WASMCAGE_COMPILE";

/// The slots of one cage, by module name. Slots are made for files and for interfaces, never for names that a guest asks
/// for. A slot whose file was removed stays, without a version.
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

    /// Returns the names of the modules that have a version.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.all().into_iter().filter(|slot| slot.current().is_some()).map(|slot| slot.name.clone()).collect()
    }

    /// Returns the state of each module, sorted by name.
    pub fn snapshot(&self) -> Vec<ModuleSnapshot> {
        let mut modules: Vec<_> = self.all().iter().map(|slot| slot.snapshot()).collect();
        modules.sort_by(|a, b| a.module.cmp(&b.module));
        modules
    }

    /// Frees the instances that were idle for at least the `idle_timeout` of their module.
    pub fn drop_idle(&self) {
        for version in self.all().iter().filter_map(|slot| slot.current()) {
            version.drop_idle(version.home.settings.instances.idle_timeout);
        }
    }

    /// Frees all idle instances and returns their number. Instances of `single` modules stay, so that their memory is not lost.
    pub fn make_room(&self) -> usize {
        let versions = self.all().into_iter().filter_map(|slot| slot.current());
        let versions = versions.filter(|version| version.mode != InstanceMode::Single);
        versions.map(|version| version.drop_idle(Duration::ZERO)).sum()
    }

    /// Removes all versions from the slots at the end of the cage.
    pub fn clear(&self) {
        self.all().iter().for_each(|slot| slot.swap(None));
    }
}
