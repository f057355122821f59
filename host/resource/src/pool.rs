//! The connections of one resource: places for those who may use one, and those that are free, the last used first.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::guarded::guarded;
use super::{Phase, PoolSettings, ResourceError};
use crate::{Connection, Resource, Reuse};
use wasmcage_core::admission::{Admission, AdmissionError, Permit};
use wasmcage_core::request::Deadline;

/// Operations that wait for a connection; past it: overloaded.
const WAITING_MAX: usize = 10_000;
/// A connection that was free for so long is asked whether it still works before it is used.
const CHECKED_AFTER: Duration = Duration::from_secs(1);
/// An answer to that which takes longer is a no.
const CHECK_TIME_MAX: Duration = Duration::from_secs(2);

/// A connection that is not reset after so long is discarded.
const RESET_TIME_MAX: Duration = Duration::from_secs(5);

/// Of one resource. Never has more connections than `size`: a new one is made by the holder of a place, and only when none
/// is free.
pub(crate) struct Pool {
    resource: Box<dyn Resource>,
    settings: PoolSettings,
    places: Arc<Admission>,
    free: Mutex<Free>,
    /// Rings when maintenance should look now.
    pub(super) attention: Notify,
}

#[derive(Default)]
struct Free {
    /// The last used is the last.
    connections: Vec<FreeConnection>,
    /// Nothing is kept any more.
    closed: bool,
    /// Maintenance sleeps until there is something to look after.
    unattended: bool,
}

struct FreeConnection {
    state: State,
    made: Instant,
    since: Instant,
    /// The module that has used it, where such a connection serves no other.
    module: Option<Arc<str>>,
}

enum State {
    Ready(Box<dyn Connection>),
    /// It comes when what its last user has left in it is taken away; the sender is dropped when that fails.
    Resetting(oneshot::Receiver<Box<dyn Connection>>),
}

/// The use of one connection. Dropped, it discards the connection; `keep` gives it back.
pub struct Lease {
    /// None while its stream has it. Before the place, so that it is closed before another may be made.
    connection: Option<Box<dyn Connection>>,
    made: Instant,
    module: Option<Arc<str>>,
    /// Until when it may be used: the caller's, or sooner by the pool's `max_time_ms`.
    pub deadline: Deadline,
    pool: Arc<Pool>,
    _place: Permit,
}

impl Pool {
    pub(super) fn new(resource: Box<dyn Resource>, settings: PoolSettings) -> Self {
        let places = Admission::new(settings.size, WAITING_MAX);
        Self { resource, settings, places, free: Mutex::default(), attention: Notify::new() }
    }

    pub(super) fn resource(&self) -> &dyn Resource {
        &*self.resource
    }

    pub(super) fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// Waits for a place, the earliest deadline first; then takes a free connection or makes one.
    ///
    /// # Errors
    /// Harmless ones: `TIMED_OUT`, `OVERLOADED`; in phase `Connect` those of the protocol.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        module: &Arc<str>,
        deadline: Deadline,
    ) -> Result<Lease, ResourceError> {
        let place = self.places.enter(deadline).await.map_err(|refusal| self.not_acquired(&refusal))?;
        if deadline.left() < self.settings.time_min {
            let text = format!("less than {:?} was left, see `min_time_ms` of its pool", self.settings.time_min);
            return Err(ResourceError::harmless(Phase::Acquire, ResourceError::TIMED_OUT, text));
        }
        let deadline = self.settings.time_max.map_or(deadline, |time_max| deadline.within(time_max));
        let module = self.resource.keeps_modules_apart().then(|| module.clone());
        let lease = |connection: Box<dyn Connection>, made, module| {
            let pool = self.clone();
            Lease { connection: Some(connection), made, module, deadline, pool, _place: place }
        };
        while let Some(FreeConnection { state, made, since, .. }) = self.take(module.as_ref()) {
            let Some(mut connection) = state.ready(deadline).await else {
                if deadline.passed() {
                    let text = "the deadline came before a connection was reset after its last use";
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
        let connection = guarded(Phase::Connect, deadline, self.resource.connect(deadline)).await?;
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

    /// The free connection that was used last and may serve this module, unless it is too old. When there is none, there is
    /// room for a new one.
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
        // Those of other modules take up room, the longest unused first.
        while found.is_none() && !free.connections.is_empty() {
            if free.connections.len() + self.places.in_work() <= self.settings.size {
                break;
            }
            closed.push(free.connections.remove(0));
        }
        let lacking = free.connections.len() < self.settings.standby;
        drop(free);
        // Connections are closed without the lock.
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

    fn put(&self, state: State, made: Instant, module: Option<Arc<str>>) {
        let now = Instant::now();
        let mut free = self.free.lock();
        if free.closed || now.duration_since(made) >= self.settings.age_max {
            drop(free);
            drop(state);
            return;
        }
        free.connections.push(FreeConnection { state, made, since: now, module });
        if std::mem::take(&mut free.unattended) {
            self.attention.notify_one();
        }
    }

    /// Closes what is free, now and from now on. Who waits or works already goes on to its end.
    pub(super) fn close(&self) {
        let mut free = self.free.lock();
        free.closed = true;
        let connections = std::mem::take(&mut free.connections);
        drop(free);
        drop(connections);
    }

    /// Closes free connections that are too old, or were not used for too long; forgets those that could not be reset.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut free = self.free.lock();
        let ended = |free: &mut FreeConnection| !free.state.look() || self.expired(free, now);
        let expired: Vec<_> = free.connections.extract_if(.., ended).collect();
        drop(free);
        drop(expired);
    }

    /// Makes one connection more to be kept ready, if one is lacking and there is room for it. Whether it did.
    ///
    /// # Errors
    /// Those of the protocol.
    pub(super) async fn refill(&self, time_max: Duration) -> Result<bool, ResourceError> {
        let Some(_place) = self.places.try_enter() else { return Ok(false) };
        {
            let free = self.free.lock();
            let count = free.connections.len();
            if free.closed || count >= self.settings.standby || count + self.places.in_work() > self.settings.size {
                return Ok(false);
            }
        }
        let deadline = Deadline::after(time_max);
        let connection = guarded(Phase::Connect, deadline, self.resource.connect(deadline)).await?;
        self.put(State::Ready(connection), Instant::now(), None);
        Ok(true)
    }

    /// Whether nothing needs looking after until something is given back.
    pub(super) fn is_unattended(&self) -> bool {
        let mut free = self.free.lock();
        free.unattended = free.connections.is_empty() && self.settings.standby == 0;
        free.unattended || free.closed
    }

    pub(super) fn counts(&self) -> PoolCounts {
        let free = self.free.lock().connections.len();
        PoolCounts { free, in_use: self.places.in_work(), waiting: self.places.waiting() }
    }
}

/// Connections, and operations that wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolCounts {
    pub(super) free: usize,
    pub(super) in_use: usize,
    pub(super) waiting: usize,
}

async fn is_healthy(connection: &mut dyn Connection, deadline: Deadline) -> bool {
    let check = async { Ok(connection.is_healthy().await) };
    guarded(Phase::Acquire, deadline.within(CHECK_TIME_MAX), check).await.unwrap_or(false)
}

impl Lease {
    /// # Panics
    /// After `take`.
    pub fn connection(&mut self) -> &mut dyn Connection {
        &mut **self.connection.as_mut().expect("the connection was not taken")
    }

    /// The connection itself; its place stays.
    ///
    /// # Panics
    /// The second time.
    pub(super) fn take(&mut self) -> Box<dyn Connection> {
        self.connection.take().expect("the connection was not taken")
    }

    /// What was taken comes back.
    pub(super) fn restore(&mut self, connection: Box<dyn Connection>) {
        self.connection = Some(connection);
    }

    /// Gives the connection back for others to use. What was left in it is taken away meanwhile.
    pub fn keep(mut self) {
        let Some(connection) = self.connection.take().filter(|connection| !connection.is_used_up()) else { return };
        match connection.reuse() {
            Reuse::AsItIs => self.pool.put(State::Ready(connection), self.made, self.module.take()),
            Reuse::AfterReset => self.pool.put(State::reset(connection), self.made, self.module.take()),
            Reuse::Never => drop(connection),
        }
    }
}

impl State {
    /// Resets it while nobody waits for it, and closes it when nobody wants it any more.
    fn reset(mut connection: Box<dyn Connection>) -> Self {
        let (mut is_reset, ready) = oneshot::channel();
        tokio::spawn(async move {
            let reset = guarded(Phase::Acquire, Deadline::after(RESET_TIME_MAX), connection.reset());
            let done = tokio::select! {
                done = reset => done.is_ok(),
                () = is_reset.closed() => false,
            };
            if done {
                // Whoever would have used it may be gone by now.
                let _ = is_reset.send(connection);
            } else {
                // Before the one who waits for it may make another.
                drop(connection);
            }
        });
        Self::Resetting(ready)
    }

    /// The connection, once it is reset; none if it is of no more use, or the deadline comes first.
    async fn ready(self, deadline: Deadline) -> Option<Box<dyn Connection>> {
        match self {
            Self::Ready(connection) => Some(connection),
            Self::Resetting(ready) => tokio::time::timeout_at(deadline.instant(), ready).await.ok()?.ok(),
        }
    }

    /// Whether it is, or may become, a connection.
    fn look(&mut self) -> bool {
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
