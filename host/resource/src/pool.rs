//! The pool of a resource's connections. Permits limit the number of users; of the free connections the last used is taken first.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::step::run_step;
use super::{Phase, PoolSettings, ResourceError};
use crate::{Connection, Resource, Reuse};
use wasmcage_core::admission::{Admission, AdmissionError, Permit};
use wasmcage_core::request::Deadline;

/// Most operations that wait for a connection; further ones fail with `OVERLOADED`.
const QUEUE_MAX: usize = 10_000;
/// A connection that was free for so long is checked before it is used.
const CHECKED_AFTER: Duration = Duration::from_secs(1);
/// A connection whose check takes longer is discarded.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection whose reset takes longer is discarded.
const RESET_TIMEOUT: Duration = Duration::from_secs(5);

/// The pool of one resource. It never has more connections than `size`: a new one is made by the holder of a permit, and only
/// when none is free.
pub(crate) struct ConnectionPool {
    resource: Box<dyn Resource>,
    settings: PoolSettings,
    permits: Arc<Admission>,
    free: Mutex<Free>,
    /// Wakes the maintenance task.
    pub(super) attention: Notify,
}

#[derive(Default)]
struct Free {
    /// In the order of their last use.
    connections: Vec<FreeConnection>,
    /// The pool is closed: connections that are returned are closed.
    closed: bool,
    /// The maintenance task sleeps until a connection is returned.
    is_idle: bool,
}

struct FreeConnection {
    state: ConnectionState,
    made: Instant,
    since: Instant,
    /// The module that has used it, if it may serve no other module.
    module: Option<Arc<str>>,
}

enum ConnectionState {
    Ready(Box<dyn Connection>),
    /// It is being reset after its last use, and is sent when that is done. The sender is dropped when the reset fails.
    Resetting(oneshot::Receiver<Box<dyn Connection>>),
}

/// The use of one connection. Dropping it discards the connection; `keep` returns it to the pool.
pub(crate) struct ConnectionLease {
    /// None while a stream has it. Declared before the permit, so that it is closed before another connection may be made.
    connection: Option<Box<dyn Connection>>,
    made: Instant,
    module: Option<Arc<str>>,
    /// Until when it may be used: the caller's deadline, or an earlier one by the pool's `max_time_ms`.
    pub(crate) deadline: Deadline,
    pool: Arc<ConnectionPool>,
    _permit: Permit,
}

impl ConnectionPool {
    pub(super) fn new(resource: Box<dyn Resource>, settings: PoolSettings) -> Self {
        let permits = Admission::new(settings.size, QUEUE_MAX);
        Self { resource, settings, permits, free: Mutex::default(), attention: Notify::new() }
    }

    pub(super) fn resource(&self) -> &dyn Resource {
        &*self.resource
    }

    pub(super) fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// Waits for a permit, the earliest deadline first; then takes a free connection or makes one.
    ///
    /// # Errors
    /// Harmless ones: `TIMED_OUT`, `OVERLOADED`; in phase `Connect` those of the protocol.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        module: &Arc<str>,
        deadline: Deadline,
    ) -> Result<ConnectionLease, ResourceError> {
        let permit = self.permits.enter(deadline).await.map_err(|refusal| self.not_acquired(&refusal))?;
        if deadline.left() < self.settings.time_min {
            let text = format!("less than {:?} was left, see `min_time_ms` of its pool", self.settings.time_min);
            return Err(ResourceError::harmless(Phase::Acquire, ResourceError::TIMED_OUT, text));
        }
        let deadline = self.settings.time_max.map_or(deadline, |time_max| deadline.within(time_max));
        let module = self.resource.keeps_modules_apart().then(|| module.clone());
        let lease = |connection: Box<dyn Connection>, made, module| {
            let pool = self.clone();
            ConnectionLease { connection: Some(connection), made, module, deadline, pool, _permit: permit }
        };
        while let Some(FreeConnection { state, made, since, .. }) = self.take(module.as_ref()) {
            let Some(mut connection) = state.ready(deadline).await else {
                if deadline.passed() {
                    let text = "the deadline passed before a connection was reset after its last use";
                    return Err(ResourceError::harmless(Phase::Acquire, ResourceError::TIMED_OUT, text));
                }
                continue;
            };
            if connection.is_used_up() {
                continue;
            }
            if since.elapsed() < CHECKED_AFTER || is_healthy(&mut *connection, deadline).await {
                return Ok(lease(connection, made, module));
            }
        }
        let connection = run_step(Phase::Connect, deadline, self.resource.connect(deadline)).await?;
        Ok(lease(connection, Instant::now(), module))
    }

    fn not_acquired(&self, refusal: &AdmissionError) -> ResourceError {
        let size = self.settings.size;
        match refusal {
            AdmissionError::Expired | AdmissionError::ModuleBusy | AdmissionError::Closed => {
                let text = format!("all {size} connections were in use until the deadline");
                ResourceError::harmless(Phase::Acquire, ResourceError::TIMED_OUT, text)
            }
            AdmissionError::Full(waiting) => {
                let text = format!("{waiting} operations wait for one of its {size} connections already");
                ResourceError::harmless(Phase::Acquire, ResourceError::OVERLOADED, text)
            }
        }
    }

    /// Takes the free connection that was used last, may serve this module and is not too old. If there is none, makes room for
    /// a new one.
    fn take(&self, module: Option<&Arc<str>>) -> Option<FreeConnection> {
        let now = Instant::now();
        let mut closed = Vec::new();
        let mut free = self.free.lock();
        let serves = |free: &FreeConnection| free.module.is_none() || free.module.as_ref() == module;
        let found = loop {
            let Some(index) = free.connections.iter().rposition(serves) else { break None };
            let connection = free.connections.remove(index);
            match self.expired(&connection, now) {
                true => closed.push(connection),
                false => break Some(connection),
            }
        };
        // Connections of other modules are closed to make room, the longest unused first.
        while found.is_none() && !free.connections.is_empty() {
            if free.connections.len() + self.permits.in_work() <= self.settings.size {
                break;
            }
            closed.push(free.connections.remove(0));
        }
        let lacking = free.connections.len() < self.settings.standby;
        drop(free);
        // Connections are closed after the lock is released.
        drop(closed);
        if lacking {
            self.attention.notify_one();
        }
        found
    }

    fn expired(&self, connection: &FreeConnection, now: Instant) -> bool {
        now.duration_since(connection.made) >= self.settings.age_max
            || now.duration_since(connection.since) >= self.settings.idle_timeout
    }

    fn put(&self, state: ConnectionState, made: Instant, module: Option<Arc<str>>) {
        let now = Instant::now();
        let mut free = self.free.lock();
        if free.closed || now.duration_since(made) >= self.settings.age_max {
            drop(free);
            drop(state);
            return;
        }
        free.connections.push(FreeConnection { state, made, since: now, module });
        if std::mem::take(&mut free.is_idle) {
            self.attention.notify_one();
        }
    }

    /// Closes free connections, now and from now on. Operations that wait or work already go on to their end.
    pub(super) fn close(&self) {
        let mut free = self.free.lock();
        free.closed = true;
        let connections = std::mem::take(&mut free.connections);
        drop(free);
        drop(connections);
    }

    /// Closes free connections that are too old or were unused for too long, and drops those that could not be reset.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut free = self.free.lock();
        let ended = |free: &mut FreeConnection| !free.state.is_usable() || self.expired(free, now);
        let expired: Vec<_> = free.connections.extract_if(.., ended).collect();
        drop(free);
        drop(expired);
    }

    /// Makes one more standby connection, if one is lacking and there is room for it. Returns whether it did.
    ///
    /// # Errors
    /// Those of the protocol.
    pub(super) async fn refill(&self, time_max: Duration) -> Result<bool, ResourceError> {
        let Some(_permit) = self.permits.try_enter() else { return Ok(false) };
        {
            let free = self.free.lock();
            let count = free.connections.len();
            if free.closed || count >= self.settings.standby || count + self.permits.in_work() > self.settings.size {
                return Ok(false);
            }
        }
        let deadline = Deadline::after(time_max);
        let connection = run_step(Phase::Connect, deadline, self.resource.connect(deadline)).await?;
        self.put(ConnectionState::Ready(connection), Instant::now(), None);
        Ok(true)
    }

    /// Returns whether there is no maintenance to do until a connection is returned.
    pub(super) fn is_idle(&self) -> bool {
        let mut free = self.free.lock();
        free.is_idle = free.connections.is_empty() && self.settings.standby == 0;
        free.is_idle || free.closed
    }

    pub(super) fn counts(&self) -> PoolCounts {
        let free = self.free.lock().connections.len();
        PoolCounts { free, in_use: self.permits.in_work(), waiting: self.permits.waiting() }
    }
}

/// Numbers of connections, and of operations that wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolCounts {
    pub(super) free: usize,
    pub(super) in_use: usize,
    pub(super) waiting: usize,
}

async fn is_healthy(connection: &mut dyn Connection, deadline: Deadline) -> bool {
    let check = async { Ok(connection.is_healthy().await) };
    run_step(Phase::Acquire, deadline.within(CHECK_TIMEOUT), check).await.unwrap_or(false)
}

impl ConnectionLease {
    /// Returns the connection.
    ///
    /// # Panics
    /// After `take`.
    pub(crate) fn connection(&mut self) -> &mut dyn Connection {
        &mut **self.connection.as_mut().expect("the connection was not taken")
    }

    /// Takes the connection out; the permit stays here.
    ///
    /// # Panics
    /// The second time.
    pub(super) fn take(&mut self) -> Box<dyn Connection> {
        self.connection.take().expect("the connection was not taken")
    }

    /// Puts the connection back after `take`.
    pub(super) fn restore(&mut self, connection: Box<dyn Connection>) {
        self.connection = Some(connection);
    }

    /// Returns the connection to the pool, and resets it there if its protocol requires that.
    pub(crate) fn keep(mut self) {
        let Some(connection) = self.connection.take().filter(|connection| !connection.is_used_up()) else { return };
        match connection.reuse() {
            Reuse::AsItIs => self.pool.put(ConnectionState::Ready(connection), self.made, self.module.take()),
            Reuse::AfterReset => self.pool.put(ConnectionState::reset(connection), self.made, self.module.take()),
            Reuse::Never => drop(connection),
        }
    }
}

impl ConnectionState {
    /// Resets the connection in a task of its own, and closes it if the pool drops it meanwhile.
    fn reset(mut connection: Box<dyn Connection>) -> Self {
        let (mut is_reset, ready) = oneshot::channel();
        tokio::spawn(async move {
            let reset = run_step(Phase::Acquire, Deadline::after(RESET_TIMEOUT), connection.reset());
            let done = tokio::select! {
                done = reset => done.is_ok(),
                () = is_reset.closed() => false,
            };
            if done {
                // The receiver may be gone by now.
                let _ = is_reset.send(connection);
            } else {
                // Closed before the sender is dropped, after which the waiter may make another connection.
                drop(connection);
            }
        });
        Self::Resetting(ready)
    }

    /// Waits until the connection is reset. None if the reset fails or the deadline comes first.
    async fn ready(self, deadline: Deadline) -> Option<Box<dyn Connection>> {
        match self {
            Self::Ready(connection) => Some(connection),
            Self::Resetting(ready) => tokio::time::timeout_at(deadline.instant(), ready).await.ok()?.ok(),
        }
    }

    /// Returns whether the connection is ready or still being reset, not failed.
    fn is_usable(&mut self) -> bool {
        let Self::Resetting(ready) = self else { return true };
        match ready.try_recv() {
            Ok(connection) => {
                *self = Self::Ready(connection);
                true
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => false,
        }
    }
}
