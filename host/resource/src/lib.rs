//! What modules reach by name: `[resources.x]`. Pools of connections, the cache of reads. What speaks to the other side is a
//! protocol's `Resource`; nothing here knows one.

mod cache;
mod connection;
#[cfg(test)]
pub(crate) mod double;
mod error;
mod guarded;
mod live;
pub mod locks;
mod maintenance;
mod observed;
mod operation;
mod pool;
mod settings;
mod stream;
pub mod transaction;
mod writes;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

pub use self::cache::CacheSnapshot;
pub(crate) use self::cache::WriteMark;
pub use self::connection::{Connection, Resource, Reuse};
pub use self::error::{Phase, ResourceError};
pub(crate) use self::guarded::guarded;
pub use self::live::{LiveResource, MakeResource, ResourceSnapshot, build};
pub(crate) use self::observed::Observed;
pub use self::operation::{Caching, Caller, Operation, OperationOptions, OperationReply, ReplyStream};
pub(crate) use self::pool::Lease;
pub use self::settings::{CacheSettings, PoolSettings};
pub use self::stream::OpenReply;
use wasmcage_config as config;
use wasmcage_config::{CageConfig, Grants};
use wasmcage_core::telemetry::{self, LevelCell};

/// The resources of a cage, as its configuration says now.
pub struct Resources {
    cage: Arc<str>,
    level: Arc<LevelCell>,
    make: Arc<MakeResource>,
    by_name: RwLock<BTreeMap<String, Arc<LiveResource>>>,
}

impl Resources {
    /// `make` knows the protocols.
    pub fn new(cage: &str, level: Arc<LevelCell>, make: Arc<MakeResource>) -> Self {
        Self { cage: cage.into(), level, make, by_name: RwLock::default() }
    }

    /// Takes over a configuration that was checked: what is new or changed is made, what is gone is drained. Operations that
    /// have begun end on what they began with. One that cannot be made is logged, and leaves what was there. Must be called on
    /// the ordinary runtime, where the pools are maintained.
    pub fn apply(&self, config: &CageConfig) {
        let mut by_name = self.by_name.write();
        let wanted = |name: &String| config.resources.get(name).filter(|resource| resource.enabled);
        for (_, gone) in by_name.extract_if(.., |name, _| wanted(name).is_none()) {
            gone.close();
        }
        for (name, resource) in config.resources.iter().filter(|(_, resource)| resource.enabled) {
            if by_name.get(name).is_some_and(|live| live.config() == resource) {
                continue;
            }
            match LiveResource::start(self.cage.clone(), self.level.clone(), resource.clone(), &*self.make) {
                Ok(live) => {
                    if let Some(old) = by_name.insert(name.clone(), Arc::new(live)) {
                        old.close();
                    }
                }
                Err(error) => {
                    let error = telemetry::error_chain(&error);
                    tracing::error!(cage = %self.cage, resource = %name, error, "resource cannot be made");
                }
            }
        }
    }

    /// Closes all connections that are free, and those in use when they are given back.
    pub fn close(&self) {
        std::mem::take(&mut *self.by_name.write()).values().for_each(|live| live.close());
    }

    /// The resource of that name, for a module with these grants.
    ///
    /// # Errors
    /// `NOT_PERMITTED`, `NO_SUCH_RESOURCE`: what to write where, or what was meant.
    pub fn granted(&self, name: &str, module: &str, grants: &Grants) -> Result<Arc<LiveResource>, ResourceError> {
        let refused = |code: &str, text: String| ResourceError {
            participant: name.to_owned(),
            ..ResourceError::harmless(Phase::Check, code, text)
        };
        let by_name = self.by_name.read();
        let found = by_name.get(name);
        if found.is_some() && !grants.resources.iter().any(|granted| granted == name) {
            let text = format!(
                "module {module} may not use resource {name}: add it to allow = {{ resources = [..] }} of [modules.{module}]"
            );
            return Err(refused(ResourceError::NOT_PERMITTED, text));
        }
        found.cloned().ok_or_else(|| {
            // Others' resources are nothing to be told of.
            let granted = grants.resources.iter().map(String::as_str).filter(|name| by_name.contains_key(*name));
            let hint =
                config::nearest(name, granted).map_or_else(String::new, |known| format!("; did you mean `{known}`?"));
            let text = format!("there is no [resources.{name}] in the cage.toml of cage {}{hint}", self.cage);
            refused(ResourceError::NO_SUCH_RESOURCE, text)
        })
    }

    pub fn snapshot(&self) -> Vec<ResourceSnapshot> {
        self.by_name.read().values().map(|live| live.snapshot()).collect()
    }
}

#[cfg(test)]
mod tests;
