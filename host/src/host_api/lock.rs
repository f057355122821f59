//! `wasmcage:cage/lock`: locks and queues in memory that the modules of a cage share.

use wasmtime::component::Resource;

use super::GuestState;
use super::bindings::lock::{Host, HostHeld, LockError, Mode};
use super::bindings::types::Payload;

/// A lock that a guest holds.
pub struct Held {
    mode: Mode,
}

fn unavailable() -> LockError {
    LockError::Invalid("not in this version".into())
}

impl Host for GuestState {
    async fn acquire(
        &mut self,
        _name: String,
        _mode: Mode,
        _timeout_ms: Option<u32>,
    ) -> wasmtime::Result<Result<Resource<Held>, LockError>> {
        Ok(Err(unavailable()))
    }

    async fn queue_push(&mut self, _queue: String, _entry: Payload) -> wasmtime::Result<Result<u32, LockError>> {
        Ok(Err(unavailable()))
    }

    async fn queue_pop(
        &mut self,
        _queue: String,
        _timeout_ms: u32,
    ) -> wasmtime::Result<Result<Option<Payload>, LockError>> {
        Ok(Err(unavailable()))
    }

    async fn queue_length(&mut self, _queue: String) -> wasmtime::Result<u32> {
        Ok(0)
    }
}

impl HostHeld for GuestState {
    async fn mode(&mut self, held: Resource<Held>) -> wasmtime::Result<Mode> {
        Ok(self.table.get(&held)?.mode)
    }

    async fn drop(&mut self, held: Resource<Held>) -> wasmtime::Result<()> {
        self.table.delete(held)?;
        Ok(())
    }
}
