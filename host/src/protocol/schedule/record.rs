//! How far a schedule has come, kept in the cage's store for schedules that catch up.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::NAME;
use crate::request::Deadline;
use crate::store::{Space, Store, StoreError};

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
    /// Times up to this one are settled. Seconds since 1970.
    settled: i64,
}

impl Record {
    pub(super) fn new(store: Arc<Store>, interface: &str, schedule: &str) -> Self {
        Self { store, key: format!("{NAME}/{interface}").into_bytes(), schedule: schedule.to_owned() }
    }

    /// None when nothing is known of this schedule.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn load(&self) -> Result<Option<Timestamp>, StoreError> {
        self.store.ready().await;
        let Some(bytes) = self.store.read(|reader| reader.get(Space::Interfaces, &self.key))? else { return Ok(None) };
        let stored = serde_json::from_slice::<Stored>(&bytes).ok().filter(|stored| stored.schedule == self.schedule);
        Ok(stored.and_then(|stored| Timestamp::from_second(stored.settled).ok()))
    }

    /// # Errors
    /// The store's.
    pub(super) async fn save(&self, settled: Timestamp) -> Result<(), StoreError> {
        let stored = Stored { schedule: self.schedule.clone(), settled: settled.as_second() };
        let value = serde_json::to_vec(&stored).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let key = self.key.clone();
        let write = self.store.write(Deadline::after(WRITE_TIMEOUT), move |writer| {
            writer.put(Space::Interfaces, key, value);
            Ok(())
        });
        write.await
    }
}
