//! What a cage keeps for its modules and interfaces besides the modules themselves. Made by the cage, and given to the
//! dispatcher and to each version of a module.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::module::room::CageRoom;
use wasmcage_core::admission::Admission;
use wasmcage_core::task::Tasks;
use wasmcage_resource::Resources;
use wasmcage_resource::locks::Locks;
use wasmcage_store::Store;

/// One for a cage; a clone is the same.
#[derive(Clone)]
pub struct Services {
    /// The cage's limit of requests in work, and its queue.
    pub admission: Arc<Admission>,
    pub store: Arc<Store>,
    pub resources: Arc<Resources>,
    pub locks: Arc<Locks>,
    /// The cage's part of what guests take of the process.
    pub room: Arc<CageRoom>,
    /// What goes on when its request is over: commits that nobody waits for, rollbacks.
    pub background: TaskTracker,
    /// Watches the tasks of the cage and of its interfaces for panics.
    pub tasks: Tasks,
}
