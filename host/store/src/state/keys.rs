//! Keys of the tables `keys` and `queues`: see `FORMAT.md`.

use super::{KEY_BYTES_MAX, QUEUE_NAME_BYTES_MAX, StoreError};

const MODULE_NAME_BYTES_MAX: usize = 255;

/// Checks a module's name. A zero byte ends it in a key of the table.
pub(super) fn check_module(module: &str) -> Result<(), StoreError> {
    check("a module's name", module, MODULE_NAME_BYTES_MAX, false)
}

pub(super) fn check_key(key: &str) -> Result<(), StoreError> {
    check("a key", key, KEY_BYTES_MAX, true)
}

pub(super) fn check_queue(queue: &str) -> Result<(), StoreError> {
    check("a queue's name", queue, QUEUE_NAME_BYTES_MAX, false)
}

fn check(what: &str, name: &str, bytes_max: usize, zero_allowed: bool) -> Result<(), StoreError> {
    let wrong = match name.len() {
        0 => format!("{what} is empty"),
        bytes if bytes > bytes_max => format!("{what} has {bytes} bytes, {bytes_max} are allowed: {name:.40}.."),
        _ if !zero_allowed && name.contains('\0') => format!("{what} has a zero character in it: {name:?}"),
        _ => return Ok(()),
    };
    Err(StoreError::Invalid(wrong))
}

/// The prefix of all keys, or queues, of a module.
pub(super) fn module(module: &str) -> Vec<u8> {
    [module.as_bytes(), &[0]].concat()
}

pub(super) fn key(module: &str, key: &str) -> Vec<u8> {
    [module.as_bytes(), &[0], key.as_bytes()].concat()
}

/// The key under which the ends of a queue are stored. It is the prefix of the keys of its entries.
pub(super) fn queue(module: &str, queue: &str) -> Vec<u8> {
    [module.as_bytes(), &[0], queue.as_bytes(), &[0]].concat()
}

pub(super) fn entry(queue: &[u8], number: u64) -> Vec<u8> {
    [queue, &number.to_be_bytes()].concat()
}

/// The number of the entry with this key; none if it is the key of the queue's ends.
pub(super) fn entry_number(queue: &[u8], key: &[u8]) -> Option<u64> {
    key.strip_prefix(queue)?.try_into().ok().map(u64::from_be_bytes)
}

/// The smallest key that is greater than all keys with this prefix.
pub(super) fn after(prefix: &[u8]) -> Vec<u8> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff);
    let mut after = prefix[..last.map_or(0, |last| last + 1)].to_vec();
    if let Some(last) = after.last_mut() {
        *last += 1;
    }
    after
}

/// The number of a queue's first entry, and the number that the next entry to be pushed gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub first: u64,
    pub next: u64,
}

impl Ends {
    pub(super) fn length(self) -> u64 {
        self.next.saturating_sub(self.first)
    }

    pub(super) fn encode(self) -> Vec<u8> {
        [self.first.to_be_bytes(), self.next.to_be_bytes()].concat()
    }

    pub(super) fn decode(record: &[u8]) -> Result<Self, StoreError> {
        let (first, next) = record.split_first_chunk().ok_or_else(|| StoreError::damaged("a queue"))?;
        let next = next.try_into().map_err(|_| StoreError::damaged("a queue"))?;
        Ok(Self { first: u64::from_be_bytes(*first), next: u64::from_be_bytes(next) })
    }
}
