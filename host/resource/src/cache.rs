//! Replies to reads, kept where a module asks for it: up to so many bytes, for so long, until something that they depend on
//! is written. One read is done once for all who ask at the same time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use moka::future::Cache;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::writes::Writes;
use super::{CacheSettings, Caching, Operation, OperationReply, Phase, ResourceError};
use wasmcage_core::request::Deadline;

/// Names in one operation's `reads` or `writes`, and bytes of each.
const NAMES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 256;
/// What an entry takes besides its bytes.
const ENTRY_BYTES: usize = 256;

pub(super) struct ReadCache {
    settings: CacheSettings,
    replies: Cache<Arc<Key>, Arc<Kept>>,
    /// Reads under way, with how many wait for each or do it.
    flights: Mutex<HashMap<Arc<Key>, Crowd>>,
    writes: Mutex<Writes>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What a reply is kept under.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    operation: Operation,
    begin: Vec<(String, String)>,
    key: Option<String>,
}

struct Kept {
    reply: OperationReply,
    reads: Vec<String>,
    /// On the clock of writes.
    begun: u64,
    at: Instant,
}

/// One read that several want.
#[derive(Default)]
struct Flight {
    /// Held by the one who does it; the next one does it when that one failed.
    turn: tokio::sync::Mutex<()>,
    /// It was done, and cannot be had from the cache all the same: each does it for itself.
    not_kept: AtomicBool,
}

/// A read, and how many want it.
type Crowd = (Arc<Flight>, usize);

/// While it lives, what the operation changes is being written.
pub struct WriteMark {
    cache: Arc<ReadCache>,
    names: Vec<String>,
}

impl ReadCache {
    pub(super) fn new(settings: CacheSettings) -> Self {
        let weigh = |key: &Arc<Key>, kept: &Arc<Kept>| u32::try_from(key.bytes() + kept.bytes()).unwrap_or(u32::MAX);
        let replies = Cache::builder().max_capacity(settings.size).weigher(weigh).time_to_live(settings.ttl).build();
        Self {
            settings,
            replies,
            flights: Mutex::default(),
            writes: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// Does a write: what depends on it is forgotten before and after, and nothing that is read meanwhile is kept.
    pub(super) fn write(self: &Arc<Self>, names: Vec<String>) -> WriteMark {
        self.writes.lock().begin(&names);
        WriteMark { cache: self.clone(), names }
    }

    /// The reply that is kept, or that of `work`, which is done once for all who ask at the same time. A reply with a status
    /// that is no success is not kept.
    ///
    /// # Errors
    /// That of `work`; harmless, when another did the work until the deadline.
    pub(super) async fn read(
        &self,
        operation: Operation,
        begin: &[(String, String)],
        caching: &Caching,
        deadline: Deadline,
        work: impl AsyncFnOnce(Operation) -> Result<OperationReply, ResourceError>,
    ) -> Result<OperationReply, ResourceError> {
        let key = Arc::new(Key { operation, begin: begin.to_owned(), key: caching.key.clone() });
        if let Some(reply) = self.find(&key, caching).await {
            return Ok(reply);
        }
        let boarded = self.board(&key);
        let flight = &*boarded.flight;
        let turn = timeout_at(deadline.instant(), flight.turn.lock()).await.map_err(|_| {
            let text = "the same read was being done for another until the deadline";
            ResourceError::harmless(Phase::Acquire, ResourceError::TIMED_OUT, text)
        })?;
        if let Some(reply) = self.find(&key, caching).await {
            return Ok(reply);
        }
        let _turn = (!flight.not_kept.load(Relaxed)).then_some(turn);
        self.misses.fetch_add(1, Relaxed);
        let begun = self.writes.lock().read_begins(&caching.reads);
        let reply = work(key.operation.clone()).await?;
        match begun.filter(|begun| (200..300).contains(&reply.status) && self.is_current(*begun, &caching.reads)) {
            Some(begun) => {
                let kept = Kept { reply: reply.clone(), reads: caching.reads.clone(), begun, at: Instant::now() };
                self.replies.insert(key.clone(), Arc::new(kept)).await;
            }
            None => flight.not_kept.store(true, Relaxed),
        }
        Ok(reply)
    }

    async fn find(&self, key: &Arc<Key>, caching: &Caching) -> Option<OperationReply> {
        let kept = self.replies.get(key).await?;
        let ttl = caching.ttl.map_or(self.settings.ttl, |ttl| ttl.min(self.settings.ttl));
        if kept.at.elapsed() >= ttl || !self.is_current(kept.begun, &kept.reads) {
            return None;
        }
        self.hits.fetch_add(1, Relaxed);
        Some(kept.reply.clone())
    }

    fn is_current(&self, begun: u64, reads: &[String]) -> bool {
        self.writes.lock().is_current(begun, reads)
    }

    fn board(&self, key: &Arc<Key>) -> Boarded<'_> {
        let mut flights = self.flights.lock();
        let (flight, count) = flights.entry(key.clone()).or_default();
        *count += 1;
        Boarded { cache: self, key: key.clone(), flight: flight.clone() }
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

/// One who waits for a read or does it.
struct Boarded<'a> {
    cache: &'a ReadCache,
    key: Arc<Key>,
    flight: Arc<Flight>,
}

impl Drop for Boarded<'_> {
    fn drop(&mut self) {
        let mut flights = self.cache.flights.lock();
        if let Some((_, count)) = flights.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                flights.remove(&self.key);
            }
        }
    }
}

impl Drop for WriteMark {
    fn drop(&mut self) {
        self.cache.writes.lock().end(&self.names);
    }
}

impl Key {
    fn bytes(&self) -> usize {
        let pairs =
            |pairs: &[(String, String)]| pairs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let Operation { action, target, headers, body } = &self.operation;
        let key = self.key.as_ref().map_or(0, String::len);
        ENTRY_BYTES + action.len() + target.len() + pairs(headers) + body.len() + pairs(&self.begin) + key
    }
}

impl Kept {
    fn bytes(&self) -> usize {
        let headers: usize = self.reply.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        headers + self.reply.body.len() + self.reads.iter().map(String::len).sum::<usize>()
    }
}

impl Caching {
    /// # Errors
    /// `BAD_OPERATION`: what cannot be asked of a cache.
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

/// What an operator sees of a cache.
#[derive(Debug, Serialize)]
pub struct CacheSnapshot {
    pub hits: u64,
    pub misses: u64,
    /// These two lag behind by up to some hundred milliseconds.
    pub entries: u64,
    pub bytes: u64,
}
