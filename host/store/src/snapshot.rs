//! What was committed at one moment. Any number of threads read it without a lock while the next commit is made.

use std::sync::OnceLock;

use redb::{AccessGuard, Database, ReadOnlyTable, ReadTransaction};

use super::error::failed;
use super::{Space, StoreError};

type Bytes = &'static [u8];
pub(super) type Guards = (AccessGuard<'static, Bytes>, AccessGuard<'static, Bytes>);

pub(super) struct Snapshot {
    transaction: ReadTransaction,
    /// Size of the file when this was committed.
    pub(super) file_bytes: u64,
    /// A table is opened when it is first read.
    tables: [OnceLock<ReadOnlyTable<Bytes, Bytes>>; Space::COUNT],
}

impl Snapshot {
    pub(super) fn take(database: &Database, file_bytes: u64) -> Result<Self, StoreError> {
        use redb::ReadableDatabase;
        let transaction = database.begin_read().map_err(failed)?;
        Ok(Self { transaction, file_bytes, tables: Default::default() })
    }

    fn table(&self, space: Space) -> Result<&ReadOnlyTable<Bytes, Bytes>, StoreError> {
        let cell = &self.tables[space as usize];
        if let Some(table) = cell.get() {
            return Ok(table);
        }
        let table = self.transaction.open_table(space.table()).map_err(failed)?;
        Ok(cell.get_or_init(|| table))
    }

    pub(super) fn get(&self, space: Space, key: &[u8]) -> Result<Option<AccessGuard<'static, Bytes>>, StoreError> {
        self.table(space)?.get(key).map_err(failed)
    }

    /// Entries from `from`, included, to `to`, not included, which must be greater; the last ones first when `descending`.
    pub(super) fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        descending: bool,
    ) -> Result<impl Iterator<Item = Result<Guards, StoreError>> + use<>, StoreError> {
        let mut range = self.table(space)?.range::<&[u8]>(from..to).map_err(failed)?;
        let next = move || if descending { range.next_back() } else { range.next() };
        Ok(std::iter::from_fn(next).map(|entry| entry.map_err(failed)))
    }
}
