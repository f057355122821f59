//! Implements `wasmcage:cage/lock`: locks and queues in memory that the modules of a cage share. The locks that a guest holds
//! are kept outside its table of resources, so that the end of a request releases them even if the guest keeps its handles.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::Resource;

use super::GuestState;
use super::bindings::lock::{Host, HostHeld, LockError, Mode};
use super::bindings::types::Payload;
use wasmcage_core::request::RequestContext;
use wasmcage_resource::locks::{self, Locks};

/// A guest's handle of a lock that it holds, or that it held in an earlier request.
pub struct Held {
    mode: Mode,
    number: u64,
}

/// The locks that a guest holds while it works on one request.
#[derive(Default)]
pub(super) struct HeldLocks {
    held: HashMap<u64, locks::LockGuard>,
    /// The number of the last lock. No number is used twice, so that a handle of an earlier request cannot release a lock of
    /// this one.
    last_number: u64,
}

impl HeldLocks {
    fn add(&mut self, held: locks::LockGuard) -> u64 {
        self.last_number += 1;
        self.held.insert(self.last_number, held);
        self.last_number
    }

    /// Releases all locks. Must be called at the end of each request.
    pub(super) fn release(&mut self) {
        self.held.clear();
    }
}

impl Host for GuestState {
    async fn acquire(
        &mut self,
        name: String,
        mode: Mode,
        timeout_ms: Option<u32>,
    ) -> wasmtime::Result<Result<Resource<Held>, LockError>> {
        let (locks, request) = match self.locking() {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let deadline = match timeout_ms {
            Some(timeout) => request.deadline_now().within(Duration::from_millis(timeout.into())),
            None => request.deadline_now(),
        };
        let held = match locks.acquire(&name, mode.into(), request.id, deadline).await {
            Ok(held) => held,
            Err(error) => return Ok(Err(error.into())),
        };
        let number = self.held.add(held);
        Ok(Ok(self.table.push(Held { mode, number })?))
    }

    async fn queue_push(&mut self, queue: String, entry: Payload) -> wasmtime::Result<Result<u32, LockError>> {
        let pushed = self.locking().and_then(|(locks, _)| Ok(locks.push(&queue, entry.into())?));
        Ok(pushed.map(|length| u32::try_from(length).unwrap_or(u32::MAX)))
    }

    async fn queue_pop(
        &mut self,
        queue: String,
        timeout_ms: u32,
    ) -> wasmtime::Result<Result<Option<Payload>, LockError>> {
        let (locks, request) = match self.locking() {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let deadline = request.deadline_now().within(Duration::from_millis(timeout_ms.into()));
        match locks.pop(&queue, deadline).await {
            Ok(Some(entry)) => Ok(Ok(Some(entry.try_into()?))),
            Ok(None) => Ok(Ok(None)),
            Err(error) => Ok(Err(error.into())),
        }
    }

    async fn queue_length(&mut self, queue: String) -> wasmtime::Result<u32> {
        let length = self.locking().map_or(0, |(locks, _)| locks.length(&queue));
        Ok(u32::try_from(length).unwrap_or(u32::MAX))
    }
}

impl HostHeld for GuestState {
    async fn mode(&mut self, held: Resource<Held>) -> wasmtime::Result<Mode> {
        Ok(self.table.get(&held)?.mode)
    }

    async fn drop(&mut self, held: Resource<Held>) -> wasmtime::Result<()> {
        let Held { number, .. } = self.table.delete(held)?;
        self.held.held.remove(&number);
        Ok(())
    }
}

impl GuestState {
    /// Returns the cage's locks, and the request that will hold them.
    ///
    /// # Errors
    /// `Invalid` while the module is being loaded.
    fn locking(&self) -> Result<(Arc<Locks>, Arc<RequestContext>), LockError> {
        let request = self.request.clone().ok_or_else(|| {
            LockError::Invalid(
                "there is no request to hold or wait for anything while the module is being loaded".into(),
            )
        })?;
        Ok((self.home.services.locks.clone(), request))
    }
}

impl From<Mode> for locks::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Read => Self::Read,
            Mode::Write => Self::Write,
        }
    }
}

impl From<locks::LockError> for LockError {
    fn from(error: locks::LockError) -> Self {
        match error {
            locks::LockError::Invalid(text) => Self::Invalid(text),
            locks::LockError::TimedOut(text) => Self::TimedOut(text),
            locks::LockError::WouldDeadlock(text) => Self::WouldDeadlock(text),
        }
    }
}
