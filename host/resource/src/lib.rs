//! Resources that modules use by name, `[resources.x]`: pools of connections, the cache of reads, transactions, locks. A
//! protocol implements `Resource` and connects to the other side; nothing here depends on a protocol.

mod cache;
mod connection;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod live;
pub mod locks;
mod maintenance;
mod operation;
mod operation_record;
mod pool;
mod settings;
mod step;
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
pub use self::live::{LiveResource, MakeResource, ResourceSnapshot, build};
pub use self::operation::{Caching, Caller, Operation, OperationOptions, OperationReply, ReplyStream};
pub(crate) use self::operation_record::OperationRecord;
pub(crate) use self::pool::ConnectionLease;
pub use self::settings::{CacheSettings, PoolSettings};
pub(crate) use self::step::run_step;
pub use self::stream::OpenReply;
use wasmcage_config as config;
use wasmcage_config::{CageConfig, Grants};
use wasmcage_core::telemetry::{self, LevelCell};

/// The resources of a cage in its present configuration.
pub struct Resources {
    cage: Arc<str>,
    level: Arc<LevelCell>,
    make: Arc<MakeResource>,
    by_name: RwLock<BTreeMap<String, Arc<LiveResource>>>,
}

impl Resources {
    /// `make` makes resources of all protocols.
    pub fn new(cage: &str, level: Arc<LevelCell>, make: Arc<MakeResource>) -> Self {
        Self { cage: cage.into(), level, make, by_name: RwLock::default() }
    }

    /// Applies a configuration that was checked: new and changed resources are made, removed ones are closed. Operations that
    /// have begun end on the resource that they began with. If a resource cannot be made, that is logged and the old one stays.
    /// Must be called on the ordinary runtime, where the pools are maintained.
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

    /// Closes all free connections, and those in use when they are returned.
    pub fn close(&self) {
        std::mem::take(&mut *self.by_name.write()).values().for_each(|live| live.close());
    }

    /// Returns the resource of this name, for a module with these grants.
    ///
    /// # Errors
    /// `NOT_PERMITTED`, `NO_SUCH_RESOURCE`, with a text that says how to mend it.
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
            // The hint names only resources that the module may use.
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
