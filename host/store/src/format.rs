//! The version of the file's format, and the way from older ones: see `FORMAT.md`.

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction};

use super::error::failed;
use super::{Space, StoreError, state};

/// What this program writes.
pub(super) const VERSION: u32 = 1;

pub(super) const META: TableDefinition<'static, &str, u32> = TableDefinition::new("meta");
const FORMAT: &str = "format";

type Migration = fn(&WriteTransaction) -> Result<(), StoreError>;

/// From the version of its place to the next.
const MIGRATIONS: [Migration; VERSION as usize] = [from_0];

/// Makes the file one of this version: an empty file, and what an older program wrote. In one commit, so that a crash leaves
/// the old version or the new one.
///
/// # Errors
/// It cannot be read or written, or is of a newer version, in which case it is left alone.
pub(super) fn bring_up_to_date(database: &Database) -> Result<(), StoreError> {
    let version = version(database)?;
    if version == VERSION {
        return Ok(());
    }
    let migrations = MIGRATIONS.get(version as usize..).ok_or_else(|| {
        StoreError::Unavailable(format!(
            "the file has format {version}, and this program knows formats up to {VERSION}: run the program that wrote it, \
             or a newer one"
        ))
    })?;
    let transaction = database.begin_write().map_err(failed)?;
    for migration in migrations {
        migration(&transaction)?;
    }
    transaction.open_table(META).map_err(failed)?.insert(FORMAT, VERSION).map_err(failed)?;
    transaction.commit().map_err(failed)
}

fn version(database: &Database) -> Result<u32, StoreError> {
    match database.begin_read().map_err(failed)?.open_table(META) {
        Ok(meta) => Ok(meta.get(FORMAT).map_err(failed)?.map_or(0, |version| version.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(failed(error)),
    }
}

/// Version 0 had keys and queues, or nothing, as an empty file has; what modules use was not counted.
fn from_0(transaction: &WriteTransaction) -> Result<(), StoreError> {
    for space in Space::ALL {
        transaction.open_table(space.table()).map_err(failed)?;
    }
    let mut count = state::UsageCount::default();
    for space in [Space::Keys, Space::Queues] {
        let table = transaction.open_table(space.table()).map_err(failed)?;
        for entry in table.iter().map_err(failed)? {
            let (key, value) = entry.map_err(failed)?;
            count.add(space, key.value(), value.value())?;
        }
    }
    let mut usage = transaction.open_table(Space::Usage.table()).map_err(failed)?;
    for (module, bytes) in count.records() {
        usage.insert(module.as_slice(), bytes.as_slice()).map_err(failed)?;
    }
    Ok(())
}
