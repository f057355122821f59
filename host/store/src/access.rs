//! Access to the store: `Reader` for what is committed, `Writer` for one write of the group that is being committed.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::calls::RetriedQueues;
use super::overlay::Overlay;
use super::snapshot::Snapshot;
use super::{Space, StoreError};

/// A key and its value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// Reads what was committed when the read began. Finds nothing while there is no file.
pub struct Reader<'a> {
    pub(super) snapshot: Option<&'a Snapshot>,
}

impl Reader<'_> {
    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(space, key, <[u8]>::to_vec)
    }

    /// Passes the value to `view` without copying it, if there is one.
    pub(super) fn with<T>(
        &self,
        space: Space,
        key: &[u8],
        view: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, StoreError> {
        let Some(snapshot) = self.snapshot else { return Ok(None) };
        Ok(snapshot.get(space, key)?.map(|value| view(value.value())))
    }

    /// Returns up to `limit` entries from `from` (included) to `to` (not included), the last ones first when `descending`.
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
    ) -> Result<Vec<KeyValue>, StoreError> {
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

    /// Passes the same entries to `visitor`, without copying them, until it returns false.
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

/// One write of the group that is being committed. It sees its own changes and those of earlier writes of the group. If it
/// fails, its changes are dropped. No reader sees them before they are on the disk.
pub struct Writer<'a> {
    base: Reader<'a>,
    /// Changes of the writes before this one in the group.
    group: &'a Overlay,
    own: Overlay,
    hooks: Vec<CommitHook>,
    queues: &'a Arc<RetriedQueues>,
}

/// Runs once the write is on the disk.
pub(super) type CommitHook = Box<dyn FnOnce() + Send>;

impl<'a> Writer<'a> {
    pub(super) fn new(snapshot: Option<&'a Snapshot>, group: &'a Overlay, queues: &'a Arc<RetriedQueues>) -> Self {
        Self { base: Reader { snapshot }, group, own: Overlay::default(), hooks: Vec::new(), queues }
    }

    /// Returns the changes, and the hooks to run after the commit.
    pub(super) fn into_parts(self) -> (Overlay, Vec<CommitHook>) {
        (self.own, self.hooks)
    }

    /// Bytes of keys and values that were written, overwritten values included.
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

    /// As `Reader::range`, with the changes of this write and of those before it in its group.
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
    ) -> Result<Vec<KeyValue>, StoreError> {
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

    /// Runs `work` once this write is on the disk, on the writing thread: it must be short. It does not run if the write fails.
    pub(crate) fn after_commit(&mut self, work: impl FnOnce() + Send + 'static) {
        self.hooks.push(Box::new(work));
    }

    /// Wakes the interface that works off this queue of retried calls, once this write is on the disk.
    pub(super) fn wake_queue(&mut self, name: &str) {
        let (queues, name) = (self.queues.clone(), name.to_owned());
        self.after_commit(move || queues.wake(&name));
    }
}

/// Keys in order, with their values; none for keys that this layer removes.
type Layer<'l> = Box<dyn Iterator<Item = Result<(Cow<'l, [u8]>, Option<Cow<'l, [u8]>>), StoreError>> + 'l>;

fn written<'l>(overlay: &'l Overlay, space: Space, from: &'l [u8], to: &'l [u8], descending: bool) -> Layer<'l> {
    let mut range = overlay.range(space, from, to);
    let next = move || if descending { range.next_back() } else { range.next() };
    Box::new(std::iter::from_fn(next).map(|(key, value)| {
        let value = value.map(|value| Cow::from(value.as_slice()));
        Ok((Cow::from(key.as_slice()), value))
    }))
}

/// Merges layers of which the first overrides the second, and so on.
fn merged(layers: [Layer<'_>; 3], limit: usize, descending: bool) -> Result<Vec<KeyValue>, StoreError> {
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
