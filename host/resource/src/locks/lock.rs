//! Named reader/writer locks, first come, first served. One mutex guards the table of all locks; it is never held while a
//! caller waits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::LockError;
use wasmcage_core::request::{Deadline, RequestId};

/// Most names that are held or waited for at the same time.
const LOCKS_MAX: usize = 100_000;
/// Most holders and waiters of one lock.
const USERS_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Shared with other readers.
    Read,
    /// Exclusive.
    Write,
}

/// The locks in use, by name.
#[derive(Debug, Default)]
pub(super) struct LockTable(Mutex<LockMap>);

#[derive(Debug, Default)]
struct LockMap {
    locks: HashMap<Arc<str>, Lock>,
    /// Number of the ticket that was given last.
    last_ticket: u64,
}

#[derive(Debug, Default)]
struct Lock {
    /// One writer, or any number of readers.
    holders: Vec<LockHolder>,
    waiters: VecDeque<LockWaiter>,
}

#[derive(Debug)]
struct LockHolder {
    ticket: u64,
    request: RequestId,
    mode: Mode,
}

#[derive(Debug)]
struct LockWaiter {
    holder: LockHolder,
    granted: oneshot::Sender<()>,
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct LockGuard {
    table: Arc<LockTable>,
    name: Arc<str>,
    ticket: u64,
}

/// Acquires a lock. A waiter has a guard already: dropping it leaves the queue, or gives up the lock if it was granted meanwhile.
pub(super) async fn acquire(
    table: &Arc<LockTable>,
    name: &str,
    mode: Mode,
    request: RequestId,
    deadline: Deadline,
) -> Result<LockGuard, LockError> {
    let (guard, granted) = table.enter(name, mode, request)?;
    let Some(mut granted) = granted else { return Ok(guard) };
    let in_time = timeout_at(deadline.instant(), &mut granted).await.is_ok() || granted.try_recv().is_ok();
    in_time.then_some(guard).ok_or_else(|| LockError::TimedOut(format!("lock {name} was not free in time")))
}

impl LockTable {
    /// Takes the lock, or enters its queue and returns a receiver that is notified when the lock is granted.
    fn enter(
        self: &Arc<Self>,
        name: &str,
        mode: Mode,
        request: RequestId,
    ) -> Result<(LockGuard, Option<oneshot::Receiver<()>>), LockError> {
        let mut table = self.0.lock();
        let known = table.locks.get_key_value(name);
        if known.is_none() && table.locks.len() >= LOCKS_MAX {
            return Err(LockError::Invalid(format!("{LOCKS_MAX} locks are in use, which is the most there can be")));
        }
        if let Some((_, lock)) = known {
            lock.check(name, mode, request)?;
        }
        let name: Arc<str> = known.map_or_else(|| name.into(), |(name, _)| name.clone());
        table.last_ticket += 1;
        let ticket = table.last_ticket;
        let lock = table.locks.entry(name.clone()).or_default();
        let granted = lock.add(LockHolder { ticket, request, mode });
        Ok((LockGuard { table: self.clone(), name, ticket }, granted))
    }

    fn leave(&self, name: &str, ticket: u64) {
        let mut table = self.0.lock();
        let Some(lock) = table.locks.get_mut(name) else { return };
        lock.holders.retain(|holder| holder.ticket != ticket);
        lock.waiters.retain(|waiter| waiter.holder.ticket != ticket);
        lock.grant();
        if lock.holders.is_empty() && lock.waiters.is_empty() {
            table.locks.remove(name);
        }
    }

    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.0.lock().locks.len()
    }

    #[cfg(test)]
    pub(super) fn waiting(&self, name: &str) -> usize {
        self.0.lock().locks.get(name).map_or(0, |lock| lock.waiters.len())
    }
}

impl Lock {
    /// Checks that the request may acquire the lock or wait for it.
    fn check(&self, name: &str, mode: Mode, request: RequestId) -> Result<(), LockError> {
        let own = self.holders.iter().find(|holder| holder.request == request);
        if let Some(own) = own.filter(|own| own.mode == Mode::Write || mode == Mode::Write) {
            let holds = if own.mode == Mode::Write { "writes" } else { "reads" };
            return Err(LockError::WouldDeadlock(format!("this request {holds} lock {name} already")));
        }
        if self.holders.len() + self.waiters.len() >= USERS_MAX {
            let text = format!("lock {name} is held or waited for {USERS_MAX} times, which is the most there can be");
            return Err(LockError::Invalid(text));
        }
        Ok(())
    }

    fn add(&mut self, holder: LockHolder) -> Option<oneshot::Receiver<()>> {
        // A request that reads already must not wait for a writer, which waits for this very request.
        let reads = self.holders.iter().any(|known| known.request == holder.request);
        if reads || (self.waiters.is_empty() && self.admits(holder.mode)) {
            self.holders.push(holder);
            return None;
        }
        let (granted, receiver) = oneshot::channel();
        self.waiters.push_back(LockWaiter { holder, granted });
        Some(receiver)
    }

    fn admits(&self, mode: Mode) -> bool {
        match mode {
            Mode::Write => self.holders.is_empty(),
            Mode::Read => self.holders.iter().all(|holder| holder.mode == Mode::Read),
        }
    }

    /// Grants the lock to the first waiter, and to those behind it as long as their modes allow.
    fn grant(&mut self) {
        while self.waiters.front().is_some_and(|waiter| self.admits(waiter.holder.mode)) {
            let Some(waiter) = self.waiters.pop_front() else { return };
            self.holders.push(waiter.holder);
            // A waiter that has just given up drops its guard, which grants the lock to the next.
            let _ = waiter.granted.send(());
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.table.leave(&self.name, self.ticket);
    }
}
