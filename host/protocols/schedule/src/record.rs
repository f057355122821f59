//! Stores a schedule's progress in the cage's store, for schedules that catch up.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::NAME;
use super::planner::{Progress, TimeRange};
use wasmcage_core::request::Deadline;
use wasmcage_store::{Space, Store, StoreError};

/// How long a tick waits for the store.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct ProgressRecord {
    store: Arc<Store>,
    key: Vec<u8>,
    /// The schedule's cron expression or interval, and time zone. If it changes, the progress is ignored.
    schedule: String,
}

/// The stored JSON. Times are seconds since 1970.
#[derive(Serialize, Deserialize)]
struct StoredProgress {
    schedule: String,
    /// Times up to this one are settled.
    settled: i64,
    /// The time from which the clock has advanced without a jump; records of earlier versions do not have it.
    since: Option<i64>,
    /// Settled ranges from before a jump of the clock.
    #[serde(default)]
    past: Vec<(i64, i64)>,
}

impl StoredProgress {
    fn progress(&self) -> Option<Progress> {
        let time = |seconds| Timestamp::from_second(seconds).ok();
        let past = self.past.iter().map(|(after, to)| Some(TimeRange { after: time(*after)?, to: time(*to)? }));
        let decided_to = time(self.settled)?;
        Some(Progress {
            since: self.since.map_or(Some(decided_to), time)?.min(decided_to),
            decided_to,
            past: past.collect::<Option<_>>()?,
        })
    }
}

impl ProgressRecord {
    pub(super) fn new(store: Arc<Store>, interface: &str, schedule: &str) -> Self {
        Self { store, key: format!("{NAME}/{interface}").into_bytes(), schedule: schedule.to_owned() }
    }

    /// Loads the progress; none if there is none of this schedule.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) async fn load(&self) -> Result<Option<Progress>, StoreError> {
        self.store.ready().await;
        let key = self.key.clone();
        let read =
            self.store.read_without_blocking(move |store| store.read(|reader| reader.get(Space::Interfaces, &key)));
        let Some(bytes) = read.await? else { return Ok(None) };
        let stored =
            serde_json::from_slice::<StoredProgress>(&bytes).ok().filter(|stored| stored.schedule == self.schedule);
        Ok(stored.and_then(|stored| stored.progress()))
    }

    /// # Errors
    /// The store cannot be written.
    pub(super) async fn save(&self, settled: &Progress) -> Result<(), StoreError> {
        let stored = StoredProgress {
            schedule: self.schedule.clone(),
            settled: settled.decided_to.as_second(),
            since: Some(settled.since.as_second()),
            past: settled.past.iter().map(|past| (past.after.as_second(), past.to.as_second())).collect(),
        };
        let value = serde_json::to_vec(&stored).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let key = self.key.clone();
        let write = self.store.write(Deadline::after(WRITE_TIMEOUT), move |writer| {
            writer.put(Space::Interfaces, key, value);
            Ok(())
        });
        write.await
    }
}
