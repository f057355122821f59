//! The version of the file's format, and migrations from older ones: see `FORMAT.md`.

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction};

use super::error::failed;
use super::{Space, StoreError, state};

/// The version that this program writes.
pub(super) const VERSION: u32 = 1;

pub(super) const META: TableDefinition<'static, &str, u32> = TableDefinition::new("meta");
const FORMAT: &str = "format";

type Migration = fn(&WriteTransaction) -> Result<(), StoreError>;

/// The migration at index `n` turns version `n` into `n + 1`.
const MIGRATIONS: [Migration; VERSION as usize] = [from_0];

/// Brings an empty file, or one that an older program wrote, to this version. It does so in one commit, so that a crash leaves
/// the old version or the new one.
///
/// # Errors
/// The file cannot be read or written, or has a newer version, in which case it is left as it is.
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

/// Version 0 is an empty file, or one with keys and queues but without the modules' usage.
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
