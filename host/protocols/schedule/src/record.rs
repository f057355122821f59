//! How far a schedule has come, kept in the cage's store for schedules that catch up.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::NAME;
use super::planner::{Progress, Stretch};
use wasmcage_core::request::Deadline;
use wasmcage_store::{Space, Store, StoreError};

/// A tick waits no longer for the store.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Record {
    store: Arc<Store>,
    key: Vec<u8>,
    /// Another schedule of the same name has come no way yet.
    schedule: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    schedule: String,
    /// Times up to this one are settled. Seconds since 1970, like all here.
    settled: i64,
    /// Since when the clock had not leapt; records of earlier versions do not say it.
    since: Option<i64>,
    /// Settled stretches from before it did.
    #[serde(default)]
    past: Vec<(i64, i64)>,
}

impl Stored {
    fn progress(&self) -> Option<Progress> {
        let time = |seconds| Timestamp::from_second(seconds).ok();
        let past = self.past.iter().map(|(after, to)| Some(Stretch { after: time(*after)?, to: time(*to)? }));
        let seen = time(self.settled)?;
        Some(Progress {
            since: self.since.map_or(Some(seen), time)?.min(seen),
            seen,
            past: past.collect::<Option<_>>()?,
        })
    }
}

impl Record {
    pub(super) fn new(store: Arc<Store>, interface: &str, schedule: &str) -> Self {
        Self { store, key: format!("{NAME}/{interface}").into_bytes(), schedule: schedule.to_owned() }
    }

    /// None when nothing is known of this schedule.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn load(&self) -> Result<Option<Progress>, StoreError> {
        self.store.ready().await;
        let key = self.key.clone();
        let read =
            self.store.read_without_blocking(move |store| store.read(|reader| reader.get(Space::Interfaces, &key)));
        let Some(bytes) = read.await? else { return Ok(None) };
        let stored = serde_json::from_slice::<Stored>(&bytes).ok().filter(|stored| stored.schedule == self.schedule);
        Ok(stored.and_then(|stored| stored.progress()))
    }

    /// # Errors
    /// The store's.
    pub(super) async fn save(&self, settled: &Progress) -> Result<(), StoreError> {
        let stored = Stored {
            schedule: self.schedule.clone(),
            settled: settled.seen.as_second(),
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
