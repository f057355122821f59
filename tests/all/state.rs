//! Durable keys and queues of modules: what was acknowledged is there after whatever happens.
