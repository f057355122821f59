//! Reading what is committed, and one write in the group that is about to be.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::calls::RetriedQueues;
use super::overlay::Overlay;
use super::snapshot::Snapshot;
use super::{Space, StoreError};

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// What was committed when the read began. Empty while there is no file.
pub struct Reader<'a> {
    pub(super) snapshot: Option<&'a Snapshot>,
}

impl Reader<'_> {
    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(space, key, <[u8]>::to_vec)
    }

    /// Hands the value to `view` where it lies, if there is one.
    pub(super) fn with<T>(
        &self,
        space: Space,
        key: &[u8],
        view: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, StoreError> {
        let Some(snapshot) = self.snapshot else { return Ok(None) };
        Ok(snapshot.get(space, key)?.map(|value| view(value.value())))
    }

    /// Up to `limit` entries from `from` (included) to `to` (not included), from the last on when `descending`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        limit: usize,
        descending: bool,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        self.visit(space, from, to, descending, |key, value| {
            let wanted = entries.len() < limit;
            if wanted {
                entries.push((key.to_vec(), value.to_vec()));
            }
            Ok(wanted)
        })?;
        Ok(entries)
    }

    /// The same entries where they lie, one after the other, while `visitor` wants more.
    pub(super) fn visit(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        descending: bool,
        mut visitor: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let Some(snapshot) = self.snapshot.filter(|_| from < to) else { return Ok(()) };
        for entry in snapshot.range(space, from, to, descending)? {
            let (key, value) = entry?;
            if !visitor(key.value(), value.value())? {
                break;
            }
        }
        Ok(())
    }
}

/// One write in the group that is being committed. Sees what it has done itself; all of it is dropped when it fails, and
/// none of it is visible to others before it is on the disk.
pub struct Writer<'a> {
    base: Reader<'a>,
    /// Of the writes before this one in the group.
    group: &'a Overlay,
    own: Overlay,
    afterwards: Vec<Afterwards>,
    queues: &'a Arc<RetriedQueues>,
}

/// To be done once the write is on the disk.
pub(super) type Afterwards = Box<dyn FnOnce() + Send>;

impl<'a> Writer<'a> {
    pub(super) fn new(snapshot: Option<&'a Snapshot>, group: &'a Overlay, queues: &'a Arc<RetriedQueues>) -> Self {
        Self { base: Reader { snapshot }, group, own: Overlay::default(), afterwards: Vec::new(), queues }
    }

    /// What was written, and what is to follow.
    pub(super) fn into_parts(self) -> (Overlay, Vec<Afterwards>) {
        (self.own, self.afterwards)
    }

    /// Of what was written, overwritten values included.
    pub(super) fn bytes(&self) -> usize {
        self.own.bytes()
    }

    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.own.get(space, key).or_else(|| self.group.get(space, key)) {
            Some(written) => Ok(written.cloned()),
            None => self.base.get(space, key),
        }
    }

    /// As of a `Reader`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn range(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        limit: usize,
        descending: bool,
    ) -> Result<Vec<Entry>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let committed = self.base.snapshot.map(|snapshot| snapshot.range(space, from, to, descending)).transpose()?;
        let committed = committed.into_iter().flatten().map(|entry| {
            entry.map(|(key, value)| (Cow::from(key.value().to_vec()), Some(Cow::from(value.value().to_vec()))))
        });
        let layers: [Layer<'_>; 3] = [
            written(&self.own, space, from, to, descending),
            written(self.group, space, from, to, descending),
            Box::new(committed),
        ];
        merged(layers, limit, descending)
    }

    pub fn put(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) {
        self.own.set(space, key, Some(value));
    }

    pub fn remove(&mut self, space: Space, key: Vec<u8>) {
        self.own.set(space, key, None);
    }

    /// Has something done once this write is on the disk, on the writing thread: it must be short. Nothing is done for a
    /// write that fails.
    pub fn after_commit(&mut self, work: impl FnOnce() + Send + 'static) {
        self.afterwards.push(Box::new(work));
    }

    /// Wakes whoever works off that queue of retried calls, once this is on the disk.
    pub(super) fn wake_queue(&mut self, name: &str) {
        let (queues, name) = (self.queues.clone(), name.to_owned());
        self.after_commit(move || queues.wake(&name));
    }
}

/// Keys in order, with what they hold; none where they are removed.
type Layer<'l> = Box<dyn Iterator<Item = Result<(Cow<'l, [u8]>, Option<Cow<'l, [u8]>>), StoreError>> + 'l>;

fn written<'l>(overlay: &'l Overlay, space: Space, from: &'l [u8], to: &'l [u8], descending: bool) -> Layer<'l> {
    let mut range = overlay.range(space, from, to);
    let next = move || if descending { range.next_back() } else { range.next() };
    Box::new(std::iter::from_fn(next).map(|(key, value)| {
        let value = value.map(|value| Cow::from(value.as_slice()));
        Ok((Cow::from(key.as_slice()), value))
    }))
}

/// Entries of layers that lie above each other, the uppermost first.
fn merged(layers: [Layer<'_>; 3], limit: usize, descending: bool) -> Result<Vec<Entry>, StoreError> {
    let mut layers = layers.map(Iterator::peekable);
    let mut entries = Vec::new();
    while entries.len() < limit {
        let mut heads = Vec::with_capacity(layers.len());
        for layer in &mut layers {
            heads.push(match layer.peek() {
                Some(Ok((key, _))) => Some(key.clone().into_owned()),
                Some(Err(error)) => return Err(error.clone()),
                None => None,
            });
        }
        let order = |a: &&Vec<u8>, b: &&Vec<u8>| if descending { b.cmp(a) } else { a.cmp(b) };
        let Some(key) = heads.iter().flatten().min_by(order).cloned() else { break };
        let mut uppermost = None;
        for (layer, head) in layers.iter_mut().zip(heads) {
            if head.is_some_and(|head| head.cmp(&key) == Ordering::Equal) {
                let (_, value) = layer.next().expect("it has a head")?;
                uppermost.get_or_insert(value);
            }
        }
        if let Some(Some(value)) = uppermost {
            entries.push((key, value.into_owned()));
        }
    }
    Ok(entries)
}
