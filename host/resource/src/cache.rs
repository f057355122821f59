//! The cache of replies to reads, for modules that ask for it. It is limited in bytes and time, and a reply is dropped when
//! something that it depends on is written. Callers that ask for the same reply at the same time share one read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use moka::future::Cache;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::writes::WriteClock;
use super::{CacheSettings, Caching, Operation, OperationReply, Phase, ResourceError};
use wasmcage_core::request::Deadline;

/// Most names in one operation's `reads` or `writes`.
const NAMES_MAX: usize = 64;
/// Longest of these names, and longest key.
const NAME_BYTES_MAX: usize = 256;
/// Memory that an entry takes besides its bytes.
const ENTRY_BYTES: usize = 256;

pub(super) struct ReadCache {
    settings: CacheSettings,
    replies: Cache<Arc<CacheKey>, Arc<CachedReply>>,
    reads_in_flight: Mutex<ReadsInFlight>,
    writes: Mutex<WriteClock>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Each read, with the number of callers that share it.
type ReadsInFlight = HashMap<Arc<CacheKey>, (Arc<SharedRead>, usize)>;

/// The key of a cached reply.
#[derive(PartialEq, Eq, Hash)]
struct CacheKey {
    operation: Operation,
    begin: Vec<(String, String)>,
    key: Option<String>,
}

struct CachedReply {
    reply: OperationReply,
    reads: Vec<String>,
    /// When the read began, on the clock of `WriteClock`.
    started: u64,
    at: Instant,
}

/// A read that several callers share. moka's `try_get_with` cannot replace it: that gives a failed leader's error to all
/// waiters, while here the next of them does the read, and it caches every success, while some replies must not be cached.
/// moka's `and_try_compute_with` would make the waiters for such a reply do their reads one after the other.
#[derive(Default)]
struct SharedRead {
    /// Held by the leader, who does the read. If it fails or leaves, the next waiter becomes the leader.
    leader_lock: tokio::sync::Mutex<()>,
    /// The leader's reply must not be cached, so each waiter does the read itself, without the lock.
    not_cached: AtomicBool,
}

/// Marks the names that an operation writes as being written, until it is dropped.
pub(crate) struct WriteMark {
    cache: Arc<ReadCache>,
    names: Vec<String>,
}

impl ReadCache {
    pub(super) fn new(settings: CacheSettings) -> Self {
        let weigh = |key: &Arc<CacheKey>, cached: &Arc<CachedReply>| {
            u32::try_from(key.bytes() + cached.bytes()).unwrap_or(u32::MAX)
        };
        let replies = Cache::builder().max_capacity(settings.size).weigher(weigh).time_to_live(settings.ttl).build();
        Self {
            settings,
            replies,
            reads_in_flight: Mutex::default(),
            writes: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// Marks names as being written until the mark is dropped: replies that depend on them are dropped, and none are cached.
    pub(super) fn write(self: &Arc<Self>, names: Vec<String>) -> WriteMark {
        self.writes.lock().begin(&names);
        WriteMark { cache: self.clone(), names }
    }

    /// Returns the cached reply, or that of `work`, which is done once for all callers that ask at the same time. Only replies
    /// with a status of success are cached.
    ///
    /// # Errors
    /// That of `work`; a harmless one when another caller was still doing the work at the deadline.
    pub(super) async fn read(
        &self,
        operation: Operation,
        begin: &[(String, String)],
        caching: &Caching,
        deadline: Deadline,
        work: impl AsyncFnOnce(Operation) -> Result<OperationReply, ResourceError>,
    ) -> Result<OperationReply, ResourceError> {
        let key = Arc::new(CacheKey { operation, begin: begin.to_owned(), key: caching.key.clone() });
        if let Some(reply) = self.find(&key, caching).await {
            return Ok(reply);
        }
        let waiter = self.join(&key);
        let shared = &*waiter.shared;
        let leader = timeout_at(deadline.instant(), shared.leader_lock.lock()).await.map_err(|_| {
            let text = "the same read by another request was not done before the deadline";
            ResourceError::harmless(Phase::Acquire, ResourceError::TIMED_OUT, text)
        })?;
        if let Some(reply) = self.find(&key, caching).await {
            return Ok(reply);
        }
        let _leader = (!shared.not_cached.load(Relaxed)).then_some(leader);
        self.misses.fetch_add(1, Relaxed);
        let started = self.writes.lock().read_begins(&caching.reads);
        let reply = work(key.operation.clone()).await?;
        match started.filter(|started| (200..300).contains(&reply.status) && self.is_current(*started, &caching.reads))
        {
            Some(started) => {
                let cached =
                    CachedReply { reply: reply.clone(), reads: caching.reads.clone(), started, at: Instant::now() };
                self.replies.insert(key.clone(), Arc::new(cached)).await;
            }
            None => shared.not_cached.store(true, Relaxed),
        }
        Ok(reply)
    }

    async fn find(&self, key: &Arc<CacheKey>, caching: &Caching) -> Option<OperationReply> {
        let cached = self.replies.get(key).await?;
        let ttl = caching.ttl.map_or(self.settings.ttl, |ttl| ttl.min(self.settings.ttl));
        if cached.at.elapsed() >= ttl || !self.is_current(cached.started, &cached.reads) {
            return None;
        }
        self.hits.fetch_add(1, Relaxed);
        Some(cached.reply.clone())
    }

    fn is_current(&self, started: u64, reads: &[String]) -> bool {
        self.writes.lock().is_current(started, reads)
    }

    fn join(&self, key: &Arc<CacheKey>) -> ReadWaiter<'_> {
        let mut reads_in_flight = self.reads_in_flight.lock();
        let (shared, count) = reads_in_flight.entry(key.clone()).or_default();
        *count += 1;
        ReadWaiter { cache: self, key: key.clone(), shared: shared.clone() }
    }

    pub(super) fn snapshot(&self) -> CacheSnapshot {
        CacheSnapshot {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            entries: self.replies.entry_count(),
            bytes: self.replies.weighted_size(),
        }
    }
}

/// A caller that waits for a shared read, or does it.
struct ReadWaiter<'a> {
    cache: &'a ReadCache,
    key: Arc<CacheKey>,
    shared: Arc<SharedRead>,
}

impl Drop for ReadWaiter<'_> {
    fn drop(&mut self) {
        let mut reads_in_flight = self.cache.reads_in_flight.lock();
        if let Some((_, count)) = reads_in_flight.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                reads_in_flight.remove(&self.key);
            }
        }
    }
}

impl Drop for WriteMark {
    fn drop(&mut self) {
        self.cache.writes.lock().end(&self.names);
    }
}

impl CacheKey {
    fn bytes(&self) -> usize {
        let pairs =
            |pairs: &[(String, String)]| pairs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let Operation { action, target, headers, body } = &self.operation;
        let key = self.key.as_ref().map_or(0, String::len);
        ENTRY_BYTES + action.len() + target.len() + pairs(headers) + body.len() + pairs(&self.begin) + key
    }
}

impl CachedReply {
    fn bytes(&self) -> usize {
        let headers: usize = self.reply.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        headers + self.reply.body.len() + self.reads.iter().map(String::len).sum::<usize>()
    }
}

impl Caching {
    /// # Errors
    /// `BAD_OPERATION`: these options do not go together, or exceed a limit.
    pub fn check(&self) -> Result<(), ResourceError> {
        let bad = |text: String| Err(ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, text));
        if !self.reads.is_empty() && !self.writes.is_empty() {
            return bad("an operation that both reads and writes cannot be cached: name what it writes only".into());
        }
        if self.reads.len().max(self.writes.len()) > NAMES_MAX {
            return bad(format!("more than {NAMES_MAX} names of what it reads or writes"));
        }
        let names = self.reads.iter().chain(&self.writes).chain(&self.key);
        match names.map(String::len).max() {
            Some(longest) if longest > NAME_BYTES_MAX => bad(format!("a name or key over {NAME_BYTES_MAX} bytes")),
            _ => Ok(()),
        }
    }
}

/// State of a cache, for operators.
#[derive(Debug, Serialize)]
pub struct CacheSnapshot {
    pub hits: u64,
    pub misses: u64,
    /// Number of entries. It lags behind by up to some hundred milliseconds, and so does `bytes`.
    pub entries: u64,
    pub bytes: u64,
}
