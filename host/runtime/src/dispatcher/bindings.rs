//! Answers the questions of typed bindings about modules in this process. They are asked when a version is loaded, never
//! during a call.

use std::sync::Arc;

use super::{Dispatcher, WeakDispatcher};
use crate::module::binding::BoundFunction;
use crate::module::version::Version;
use wasmcage_config::BindingTarget;

impl Dispatcher {
    /// Returns the version that serves a module of this cage, or of another cage of this process. None if there is none in this
    /// process now.
    pub fn serving(&self, target: &BindingTarget) -> Option<Arc<Version>> {
        let cage = match &target.cage {
            Some(cage) => self.neighbour(cage)?,
            None => self.clone(),
        };
        cage.0.modules.get(&target.module)?.current()
    }

    /// Returns the functions of a module of this cage that modules of this process are bound to, each with its caller's
    /// `cage/module`.
    pub fn bound_to(&self, module: &str) -> Vec<(String, Arc<BoundFunction>)> {
        let cages: Vec<_> = self.0.cages.by_name.read().values().filter_map(WeakDispatcher::upgrade).collect();
        let flock = &self.0.config.load().flock;
        let neighbours = cages.iter().filter(|cage| cage.0.config.load().flock == *flock);
        let mut bound = Vec::new();
        for version in neighbours.flat_map(|cage| cage.0.modules.all()).filter_map(|slot| slot.current()) {
            let home = &version.home;
            let caller = format!("{}/{}", home.cage, home.module);
            let mine = version.bound.iter().filter(|interface| {
                let target = &interface.target;
                target.module == module && *target.cage.as_deref().unwrap_or(&home.cage) == *self.0.cage
            });
            bound.extend(mine.flat_map(|interface| interface.functions.iter().map(|f| (caller.clone(), f.clone()))));
        }
        bound
    }
}
