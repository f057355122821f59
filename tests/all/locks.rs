//! Locks and queues in memory.
