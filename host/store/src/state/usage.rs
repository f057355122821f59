//! How many bytes and entries each module has stored. The record is changed in the same commit as the data.

use std::collections::BTreeMap;

use super::keys::entry_number;
use super::{Quota, StateValue};
use crate::access::{Reader, Writer};
use crate::{Space, StoreError};

/// Usage of one module, before the steps of a transaction and now.
pub(super) struct Usage {
    before: Quota,
    now: Quota,
}

const EMPTY: Quota = Quota { bytes: 0, entries: 0 };

impl Usage {
    pub(super) fn of(writer: &Writer<'_>, module: &str) -> Result<Self, StoreError> {
        let record = writer.get(Space::Usage, module.as_bytes())?;
        let now = record.map_or(Ok(EMPTY), |record| decode(&record))?;
        Ok(Self { before: now, now })
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.now.bytes = self.now.bytes.saturating_add(bytes);
        self.now.entries = self.now.entries.saturating_add(1);
    }

    pub(super) fn subtract(&mut self, bytes: u64) {
        self.now.bytes = self.now.bytes.saturating_sub(bytes);
        self.now.entries = self.now.entries.saturating_sub(1);
    }

    /// Writes the new usage. Fails if the steps have raised it above the quota; a module above its quota may still reduce it.
    pub(super) fn finish(&self, writer: &mut Writer<'_>, module: &str, quota: Quota) -> Result<(), StoreError> {
        let over = |now: u64, before: u64, allowed: u64| now > allowed && now > before;
        if over(self.now.bytes, self.before.bytes, quota.bytes) {
            let text = format!(
                "module {module} would keep {} bytes, and may keep {}: see state.max_mb in [modules.{module}]",
                self.now.bytes, quota.bytes
            );
            return Err(StoreError::QuotaExceeded(text));
        }
        if over(self.now.entries, self.before.entries, quota.entries) {
            let (now, allowed) = (self.now.entries, quota.entries);
            let text = format!(
                "module {module} would keep {now} keys and entries of queues, and may keep {allowed}: see \
                 state.max_entries in [modules.{module}]"
            );
            return Err(StoreError::QuotaExceeded(text));
        }
        match self.now {
            now if now == self.before => {}
            EMPTY => writer.remove(Space::Usage, module.as_bytes().to_vec()),
            now => writer.put(Space::Usage, module.as_bytes().to_vec(), encode(now)),
        }
        Ok(())
    }
}

fn encode(usage: Quota) -> Vec<u8> {
    [usage.bytes.to_be_bytes(), usage.entries.to_be_bytes()].concat()
}

fn decode(record: &[u8]) -> Result<Quota, StoreError> {
    let damaged = || StoreError::damaged("a module's usage");
    let (bytes, entries) = record.split_first_chunk().ok_or_else(damaged)?;
    let entries = entries.try_into().map_err(|_| damaged())?;
    Ok(Quota { bytes: u64::from_be_bytes(*bytes), entries: u64::from_be_bytes(entries) })
}

/// Returns all modules that have stored something, and how much.
pub(super) fn all(reader: &Reader<'_>) -> Result<Vec<(String, Quota)>, StoreError> {
    let mut modules = Vec::new();
    reader.visit(Space::Usage, &[], &[0xff], false, |module, record| {
        modules.push((String::from_utf8_lossy(module).into_owned(), decode(record)?));
        Ok(true)
    })?;
    Ok(modules)
}

/// Counts the usage of all modules from their data.
#[derive(Default)]
pub(crate) struct UsageCount(BTreeMap<Vec<u8>, Quota>);

impl UsageCount {
    /// Counts an entry of the table `keys` or `queues`.
    pub(crate) fn add(&mut self, space: Space, key: &[u8], record: &[u8]) -> Result<(), StoreError> {
        let end = key.iter().position(|byte| *byte == 0).ok_or_else(|| StoreError::damaged("a key"))?;
        let (module, rest) = (&key[..end], &key[end + 1..]);
        let bytes = match space {
            Space::Keys => rest.len() as u64,
            // The record of a queue's ends is not counted.
            _ if rest
                .iter()
                .position(|byte| *byte == 0)
                .is_none_or(|end| entry_number(&rest[..=end], rest).is_none()) =>
            {
                return Ok(());
            }
            _ => 0,
        };
        let usage = self.0.entry(module.to_vec()).or_insert(EMPTY);
        usage.bytes += bytes + StateValue::content_bytes(record);
        usage.entries += 1;
        Ok(())
    }

    /// Keys and values of the table `usage`.
    pub(crate) fn records(self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        self.0.into_iter().map(|(module, usage)| (module, encode(usage)))
    }
}
