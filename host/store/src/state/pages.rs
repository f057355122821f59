//! Many keys, or entries of a queue: in pages, with a cursor that says after which key the next page begins.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::{Page, Range, StateValue, keys};
use crate::access::Reader;
use crate::{Space, StoreError};

/// Of the entries of a page.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// What an entry takes in memory besides its bytes.
const ENTRY_BYTES: usize = 64;

/// The end of a page.
const ASCENDING: u8 = b'a';
const DESCENDING: u8 = b'd';

pub(super) fn scan(
    reader: &Reader<'_>,
    module: &str,
    range: &Range,
    limit: usize,
    cursor: Option<&str>,
) -> Result<Page, StoreError> {
    let home = keys::module(module);
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
        let last = last(cursor, range.descending, &home)?;
        match range.descending {
            true => to = to.min(last),
            false => from = from.max([last.as_slice(), &[0]].concat()),
        }
    }
    let name = |key: &[u8]| {
        let key = key.get(home.len()..).and_then(|key| std::str::from_utf8(key).ok());
        key.map(str::to_owned).ok_or_else(|| StoreError::damaged("a key"))
    };
    page(reader, Space::Keys, (&from, &to, range.descending), home.len(), limit, name)
}

pub(super) fn queue(
    reader: &Reader<'_>,
    module: &str,
    queue: &str,
    limit: usize,
    cursor: Option<&str>,
) -> Result<Page, StoreError> {
    let home = keys::queue(module, queue);
    let from = match cursor {
        Some(cursor) => [last(cursor, false, &home)?.as_slice(), &[0]].concat(),
        None => keys::entry(&home, 0),
    };
    page(reader, Space::Queues, (&from, &keys::after(&home), false), home.len(), limit, |_| Ok(String::new()))
}

/// Entries from a key to another, or back. Cursors name the part of a key after its `home` bytes.
fn page(
    reader: &Reader<'_>,
    space: Space,
    (from, to, descending): (&[u8], &[u8], bool),
    home: usize,
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
        end = key[home..].to_vec();
        page.entries.push((name(key)?, StateValue::decode(record)?));
        Ok(true)
    })?;
    Ok(page)
}

/// The last key of the page that gave the cursor.
fn last(cursor: &str, descending: bool, home: &[u8]) -> Result<Vec<u8>, StoreError> {
    let kind = if descending { DESCENDING } else { ASCENDING };
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok();
    let key = decoded.as_deref().and_then(|decoded| decoded.strip_prefix(&[kind]));
    let key = key.ok_or_else(|| StoreError::Invalid(format!("no page of this scan gave the cursor {cursor:.40}")))?;
    Ok([home, key].concat())
}

/// Names and lengths of a module's queues.
pub(super) fn queues(reader: &Reader<'_>, module: &str) -> Result<Vec<(String, u64)>, StoreError> {
    let home = keys::module(module);
    let (mut from, to) = (home.clone(), keys::after(&home));
    let mut queues = Vec::new();
    // From the ends of one queue to those of the next, over all its entries.
    while let Some((key, record)) = reader.range(Space::Queues, &from, &to, 1, false)?.pop() {
        let name = key.get(home.len()..key.len() - 1).map(String::from_utf8_lossy);
        let name = name.ok_or_else(|| StoreError::damaged("a queue"))?.into_owned();
        queues.push((name, keys::Ends::decode(&record)?.length()));
        from = keys::after(&key);
    }
    Ok(queues)
}
