//! What is known of the request that the module is working on. In calls made on its behalf the callee sees the same
//! request.

use std::time::Duration;

use crate::bindings::imports::wasmcage::cage::context;

pub use context::{cage, describe, fact, facts, log_level, module, request_id, set_log_level};

/// Time until the request's deadline, zero when it has passed. Calls made on the request's behalf inherit it.
pub fn deadline_left() -> Duration {
    Duration::from_millis(context::deadline_left_ms())
}
