//! One resource in its present configuration: its protocol's implementation, pool, cache and readings.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio_util::task::AbortOnDropHandle;

use super::cache::{CacheSnapshot, ReadCache, WriteMark};
use super::maintenance::maintain;
use super::operation_record::OperationRecord;
use super::pool::ConnectionPool;
use super::{
    CacheSettings, Caller, ConnectionLease, OpenReply, Operation, OperationOptions, OperationReply, Phase,
    PoolSettings, ResourceError, run_step,
};
use crate::Resource;
use wasmcage_config::{ConfigError, ResourceConfig, Section};
use wasmcage_core::readings::{Readings, ReadingsSnapshot};
use wasmcage_core::request::Deadline;
use wasmcage_core::telemetry::{LevelCell, Throttle};

/// Failures of one resource that are logged in one second; further ones are only counted.
const FAILURES_LOGGED_PER_SECOND: u64 = 10;

/// A resource and its settings, made from its section of `cage.toml`.
pub struct ResourceParts {
    pub(super) resource: Box<dyn Resource>,
    pub(super) pool: PoolSettings,
    pub(super) cache: Option<CacheSettings>,
}

/// Makes a resource of the protocol of this name from a section. Fails with all mistakes in the section.
pub type MakeResource = dyn Fn(&str, Section) -> Result<Box<dyn Resource>, ConfigError> + Send + Sync;

/// Makes a resource without connecting it. This is also how a configuration is checked.
///
/// # Errors
/// All mistakes in its section.
pub fn build(config: &ResourceConfig, make: &MakeResource) -> Result<ResourceParts, ConfigError> {
    let section = config.section.clone();
    let (pool, cache) = (PoolSettings::read(&section), CacheSettings::read(&section));
    Ok(ResourceParts { resource: make(&config.protocol, section)?, pool, cache })
}

/// A resource in use.
pub struct LiveResource {
    pub(super) cage: Arc<str>,
    pub(super) level: Arc<LevelCell>,
    pub(super) readings: Readings,
    pub(super) failures: Throttle,
    config: ResourceConfig,
    cache: Option<Arc<ReadCache>>,
    pool: Arc<ConnectionPool>,
    _maintenance: AbortOnDropHandle<()>,
}

impl LiveResource {
    /// # Errors
    /// The protocol's, when something that the section names, such as a file, has changed since it was checked.
    pub(super) fn start(
        cage: Arc<str>,
        level: Arc<LevelCell>,
        config: ResourceConfig,
        make: &MakeResource,
    ) -> Result<Self, ConfigError> {
        let built = build(&config, make)?;
        Ok(Self::new(cage, level, config, built))
    }

    pub(super) fn new(cage: Arc<str>, level: Arc<LevelCell>, config: ResourceConfig, built: ResourceParts) -> Self {
        let pool = Arc::new(ConnectionPool::new(built.resource, built.pool));
        let maintenance = maintain(pool.clone(), config.name.as_str().into(), cage.clone());
        Self {
            cage,
            level,
            readings: Readings::default(),
            failures: Throttle::new(FAILURES_LOGGED_PER_SECOND, Duration::from_secs(1)),
            config,
            cache: built.cache.map(|settings| Arc::new(ReadCache::new(settings))),
            pool,
            _maintenance: AbortOnDropHandle::new(tokio::spawn(maintenance)),
        }
    }

    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Closes free connections; operations that have begun go on to their end.
    pub(super) fn close(&self) {
        self.pool.close();
    }

    pub(super) fn config(&self) -> &ResourceConfig {
        &self.config
    }

    /// Returns whether a rollback undoes the effects of this operation.
    pub fn can_roll_back(&self, operation: &Operation) -> bool {
        self.pool.resource().can_roll_back(operation)
    }

    /// Drops cached replies that depend on these names, and caches none until the mark is dropped.
    pub(crate) fn mark_writes(&self, names: Vec<String>) -> Option<WriteMark> {
        self.cache.as_ref().map(|cache| cache.write(names))
    }

    /// Returns the deadline of an operation.
    pub fn deadline(&self, caller: &Caller, timeout: Option<Duration>) -> Deadline {
        let shortest = self.config.timeout.into_iter().chain(timeout).min();
        shortest.map_or(caller.request.deadline_now(), |shortest| caller.request.deadline_now().within(shortest))
    }

    /// Checks an operation as far as that needs no connection.
    ///
    /// # Errors
    /// In phase `Check`.
    pub fn check(&self, operation: &Operation) -> Result<(), ResourceError> {
        self.pool.resource().check(operation)
    }

    pub(crate) async fn acquire(&self, caller: &Caller, deadline: Deadline) -> Result<ConnectionLease, ResourceError> {
        self.pool.acquire(&caller.module, deadline).await
    }

    pub(crate) fn start_record(self: &Arc<Self>, caller: &Caller, operation: &Operation) -> OperationRecord {
        OperationRecord::begin(self, caller, &operation.action)
    }

    /// Does one operation, in a transaction of its own.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn execute(
        self: &Arc<Self>,
        caller: &Caller,
        operation: Operation,
        options: OperationOptions,
    ) -> Result<OperationReply, ResourceError> {
        let deadline = self.deadline(caller, options.timeout);
        let mut record = self.start_record(caller, &operation);
        let result = self.execute_cached(caller, &mut record, operation, &options, deadline).await;
        record.end(caller, result)
    }

    async fn execute_cached(
        &self,
        caller: &Caller,
        record: &mut OperationRecord,
        operation: Operation,
        options: &OperationOptions,
        deadline: Deadline,
    ) -> Result<OperationReply, ResourceError> {
        let begin = &options.begin;
        let Some((cache, caching)) = self.cache.as_ref().zip(options.caching.as_ref()) else {
            return self.execute_uncached(caller, record, operation, begin, deadline).await;
        };
        caching.check()?;
        let _write = cache.write(caching.writes.clone());
        if caching.bypass || !caching.writes.is_empty() {
            return self.execute_uncached(caller, record, operation, begin, deadline).await;
        }
        let work = async |operation| self.execute_uncached(caller, record, operation, begin, deadline).await;
        cache.read(operation, begin, caching, deadline, work).await
    }

    async fn execute_uncached(
        &self,
        caller: &Caller,
        record: &mut OperationRecord,
        operation: Operation,
        begin: &[(String, String)],
        deadline: Deadline,
    ) -> Result<OperationReply, ResourceError> {
        self.check(&operation)?;
        let mut lease = self.acquire(caller, deadline).await?;
        record.acquired();
        let deadline = lease.deadline;
        let execute = lease.connection().execute_alone(operation, begin, deadline);
        let result = run_step(Phase::Execute, deadline, execute).await;
        if result.as_ref().err().is_none_or(|error| !error.terminal) {
            lease.keep();
        }
        result
    }

    /// Does one operation, in a transaction of its own, whose reply comes in parts. It holds a connection until its end.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn open(
        self: &Arc<Self>,
        caller: &Caller,
        operation: Operation,
        options: OperationOptions,
    ) -> Result<(OperationReply, OpenReply), ResourceError> {
        let deadline = self.deadline(caller, options.timeout);
        let mut record = self.start_record(caller, &operation);
        let opened = async {
            self.check(&operation)?;
            let mut lease = self.acquire(caller, deadline).await?;
            record.acquired();
            let open = lease.take().open(operation, &options.begin, lease.deadline);
            let (reply, stream) = run_step(Phase::Execute, lease.deadline, open).await?;
            Ok((reply, stream, lease))
        };
        match opened.await {
            Ok((reply, stream, lease)) => Ok((reply, OpenReply::new(stream, lease, caller.clone(), record))),
            Err(error) => record.end(caller, Err(error)),
        }
    }

    pub(super) fn snapshot(&self) -> ResourceSnapshot {
        let counts = self.pool.counts();
        ResourceSnapshot {
            resource: self.config.name.clone(),
            protocol: self.config.protocol.clone(),
            size: self.pool.settings().size,
            in_use: counts.in_use,
            free: counts.free,
            waiting: counts.waiting,
            cache: self.cache.as_ref().map(|cache| cache.snapshot()),
            trouble: self.pool.resource().trouble(),
            readings: self.readings.snapshot(),
        }
    }
}

/// State of a resource, for operators.
#[derive(Debug, Serialize)]
pub struct ResourceSnapshot {
    pub resource: String,
    pub protocol: String,
    /// Most connections.
    pub size: usize,
    pub in_use: usize,
    pub free: usize,
    /// Number of operations that wait for a connection.
    pub waiting: usize,
    /// State of its cache; none: it has no cache.
    pub cache: Option<CacheSnapshot>,
    /// The problem that keeps it from working now, if one is known.
    pub trouble: Option<String>,
    pub readings: ReadingsSnapshot,
}
