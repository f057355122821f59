//! The store, resources, locks and limits that all modules and interfaces of a cage share. The cage makes them, and gives them
//! to the dispatcher and to each version of a module.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::module::room::CageRoom;
use wasmcage_core::admission::Admission;
use wasmcage_core::task::Tasks;
use wasmcage_resource::Resources;
use wasmcage_resource::locks::Locks;
use wasmcage_store::Store;

/// The shared services of one cage. Clones refer to the same services.
#[derive(Clone)]
pub struct Services {
    /// Limits how many requests the cage works on at once, and queues further ones.
    pub admission: Arc<Admission>,
    pub store: Arc<Store>,
    pub resources: Arc<Resources>,
    pub locks: Arc<Locks>,
    /// Limits the cage's share of the process's memory and pools for guests.
    pub room: Arc<CageRoom>,
    /// Tracks tasks that outlive their request: commits that the guest does not wait for, and rollbacks.
    pub background: TaskTracker,
    /// Watches the tasks of the cage and of its interfaces for panics.
    pub tasks: Tasks,
}
