//! Locks and queues in memory that the modules of a cage share.

/// One for a cage.
#[derive(Debug, Default)]
pub struct Locks {}
