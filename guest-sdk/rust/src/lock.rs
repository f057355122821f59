//! Locks and queues in memory that the modules of a cage share.
