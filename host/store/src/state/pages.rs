//! Keys, or entries of a queue, in pages. A cursor names the last key of a page; the next page begins after it.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::{Page, Range, StateValue, keys};
use crate::access::Reader;
use crate::{Space, StoreError};

/// A page has at most so many bytes, counted as in memory, unless its first entry alone has more.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// Memory that an entry takes besides its bytes.
const ENTRY_BYTES: usize = 64;

/// First byte of a cursor: the direction of the scan that it belongs to.
const ASCENDING: u8 = b'a';
const DESCENDING: u8 = b'd';

pub(super) fn scan(
    reader: &Reader<'_>,
    module: &str,
    range: &Range,
    limit: usize,
    cursor: Option<&str>,
) -> Result<Page, StoreError> {
    let module_prefix = keys::module(module);
    let prefix = keys::key(module, &range.prefix);
    let mut from = prefix.clone();
    let mut to = keys::after(&prefix);
    if let Some(key) = &range.from {
        from = from.max(keys::key(module, key));
    }
    if let Some(key) = &range.to {
        to = to.min(keys::key(module, key));
    }
    if let Some(cursor) = cursor {
        let last = last(cursor, range.descending, &module_prefix)?;
        match range.descending {
            true => to = to.min(last),
            false => from = from.max([last.as_slice(), &[0]].concat()),
        }
    }
    let name = |key: &[u8]| {
        let key = key.get(module_prefix.len()..).and_then(|key| std::str::from_utf8(key).ok());
        key.map(str::to_owned).ok_or_else(|| StoreError::damaged("a key"))
    };
    page(reader, Space::Keys, (&from, &to, range.descending), module_prefix.len(), limit, name)
}

pub(super) fn queue(
    reader: &Reader<'_>,
    module: &str,
    queue: &str,
    limit: usize,
    cursor: Option<&str>,
) -> Result<Page, StoreError> {
    let prefix = keys::queue(module, queue);
    let from = match cursor {
        Some(cursor) => [last(cursor, false, &prefix)?.as_slice(), &[0]].concat(),
        None => keys::entry(&prefix, 0),
    };
    page(reader, Space::Queues, (&from, &keys::after(&prefix), false), prefix.len(), limit, |_| Ok(String::new()))
}

/// Returns a page of the entries between two keys. Cursors contain the part of a key after its `prefix_length` bytes.
fn page(
    reader: &Reader<'_>,
    space: Space,
    (from, to, descending): (&[u8], &[u8], bool),
    prefix_length: usize,
    limit: usize,
    name: impl Fn(&[u8]) -> Result<String, StoreError>,
) -> Result<Page, StoreError> {
    let mut page = Page::default();
    let (mut bytes, mut end) = (0, Vec::new());
    reader.visit(space, from, to, descending, |key, record| {
        let size = ENTRY_BYTES + key.len() + record.len();
        if page.entries.len() >= limit || (!page.entries.is_empty() && bytes + size > PAGE_BYTES_MAX) {
            let kind = if descending { DESCENDING } else { ASCENDING };
            page.next = Some(BASE64_URL_SAFE_NO_PAD.encode([&[kind], end.as_slice()].concat()));
            return Ok(false);
        }
        bytes += size;
        end = key[prefix_length..].to_vec();
        page.entries.push((name(key)?, StateValue::decode(record)?));
        Ok(true)
    })?;
    Ok(page)
}

/// Returns the last key of the page that the cursor came with.
fn last(cursor: &str, descending: bool, prefix: &[u8]) -> Result<Vec<u8>, StoreError> {
    let kind = if descending { DESCENDING } else { ASCENDING };
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok();
    let key = decoded.as_deref().and_then(|decoded| decoded.strip_prefix(&[kind]));
    let key = key.ok_or_else(|| StoreError::Invalid(format!("no page of this scan has the cursor {cursor:.40}")))?;
    Ok([prefix, key].concat())
}

/// Returns names and lengths of a module's queues.
pub(super) fn queues(reader: &Reader<'_>, module: &str) -> Result<Vec<(String, u64)>, StoreError> {
    let prefix = keys::module(module);
    let (mut from, to) = (prefix.clone(), keys::after(&prefix));
    let mut queues = Vec::new();
    // Each round skips the entries of a queue, to the ends of the next one.
    while let Some((key, record)) = reader.range(Space::Queues, &from, &to, 1, false)?.pop() {
        let name = key.get(prefix.len()..key.len() - 1).map(String::from_utf8_lossy);
        let name = name.ok_or_else(|| StoreError::damaged("a queue"))?.into_owned();
        queues.push((name, keys::Ends::decode(&record)?.length()));
        from = keys::after(&key);
    }
    Ok(queues)
}
