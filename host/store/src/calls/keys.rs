//! Keys of retried calls: see `FORMAT.md`. Numbers are big-endian, so that keys sort as their numbers do.

use super::record::{CallEntry, CallState};

/// Key in `Space::Calls` of the sequence number that the next call gets.
pub(super) const NEXT: &[u8] = b"s";

const MESSAGE: u8 = b'm';
const PENDING: u8 = b'p';
const DEAD: u8 = b'd';
const COUNTS: u8 = b'n';

/// Kinds of keys in `Space::CallsDue`, after the queue.
pub(super) const READY: u8 = b'r';
pub(super) const WAITING: u8 = b'w';
pub(super) const FAILED: u8 = b'f';

/// Kinds of keys in `Space::CallsSeen`.
const ID: u8 = b'i';
const FORGET: u8 = b'f';

/// A range of keys: from the first, included, to the second, not included.
pub(super) type KeyRange = (Vec<u8>, Vec<u8>);

fn key(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![kind];
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

/// Makes a key that begins with a queue, whose name contains no zero byte.
fn of_queue(kind: u8, queue: &str, rest: &[u8]) -> Vec<u8> {
    key(kind, &[queue.as_bytes(), &[0], rest])
}

pub(super) fn message(sequence: u64) -> Vec<u8> {
    key(MESSAGE, &[&sequence.to_be_bytes()])
}

pub(super) fn entry(queue: &str, sequence: u64, dead: bool) -> Vec<u8> {
    of_queue(if dead { DEAD } else { PENDING }, queue, &sequence.to_be_bytes())
}

/// Entries of a queue from this sequence number on.
pub(super) fn entries(queue: &str, dead: bool, from: u64) -> KeyRange {
    (entry(queue, from, dead), of_queue(if dead { DEAD } else { PENDING }, queue, &[0xff; 9]))
}

pub(super) fn counts(queue: &str) -> Vec<u8> {
    key(COUNTS, &[queue.as_bytes()])
}

pub(super) fn all_counts() -> KeyRange {
    (vec![COUNTS], vec![COUNTS + 1])
}

pub(super) fn queue_of_counts(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.get(1..)?).ok()
}

/// The sequence number at the end of a key.
pub(super) fn sequence(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*key.last_chunk()?))
}

/// The key in `Space::CallsDue` of a pending call; none for a dead one.
pub(super) fn due(queue: &str, sequence: u64, entry: &CallEntry) -> Option<Vec<u8>> {
    let number = sequence.to_be_bytes();
    // Higher priorities first.
    let priority = [(i16::from(i8::MAX) - i16::from(entry.priority)) as u8];
    let (kind, order): (u8, &[u8]) = match &entry.state {
        CallState::Ready => (READY, &priority),
        CallState::Waiting { due_ms } => (WAITING, &due_ms.to_be_bytes()),
        CallState::Failed { due_ms } => (FAILED, &due_ms.to_be_bytes()),
        CallState::Dead { .. } => return None,
    };
    let mut key = queue.as_bytes().to_vec();
    key.extend_from_slice(&[0, kind]);
    key.extend_from_slice(order);
    key.extend_from_slice(&number);
    Some(key)
}

pub(super) fn ready(queue: &str) -> KeyRange {
    let key = |kind| [queue.as_bytes(), &[0, kind]].concat();
    (key(READY), key(READY + 1))
}

/// Waiting or failed calls that are due from one time, included, to another, not included.
pub(super) fn timed(queue: &str, kind: u8, from_ms: u64, to_ms: u64) -> KeyRange {
    let key = |at: u64| [queue.as_bytes(), &[0, kind], &at.to_be_bytes()].concat();
    (key(from_ms), key(to_ms))
}

/// Returns the time in a key of `timed`.
pub(super) fn due_ms(key: &[u8]) -> Option<u64> {
    let (rest, _number) = key.split_last_chunk::<8>()?;
    Some(u64::from_be_bytes(*rest.last_chunk()?))
}

pub(super) fn id(id: &str) -> Vec<u8> {
    key(ID, &[id.as_bytes()])
}

pub(super) fn forget(queue: &str, forget_ms: u64, id: &str) -> Vec<u8> {
    of_queue(FORGET, queue, &[&forget_ms.to_be_bytes(), id.as_bytes()].concat())
}

/// Ids to be forgotten before that time.
pub(super) fn forgotten(queue: &str, before_ms: u64) -> KeyRange {
    (of_queue(FORGET, queue, &[]), of_queue(FORGET, queue, &before_ms.to_be_bytes()))
}

/// Returns time and id in a key of `forget`.
pub(super) fn forgotten_id<'a>(queue: &str, key: &'a [u8]) -> Option<(u64, &'a str)> {
    let (at, id) = key.get(queue.len() + 2..)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*at), std::str::from_utf8(id).ok()?))
}
