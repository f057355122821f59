//! What applications exchange: one or more frames that travel together.

use std::ops::Index;

use bytes::Bytes;
use smallvec::SmallVec;

/// What a frame costs besides its bytes when queues are bounded, so that a flood of empty frames has a bound too.
const FRAME_OVERHEAD: usize = 64;

/// A message: one or more frames that are sent and received together or not at all (RFC 37, "Messages").
///
/// Frames are [`Bytes`]: a clone of a message copies no data. A received frame is a view of the buffer into which it was
/// read; see [`Message::compact`] for messages that are kept for long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Message {
    frames: SmallVec<[Bytes; 3]>,
}

impl Message {
    /// A message without frames. It cannot be sent before it has one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The frames in their order.
    #[must_use]
    pub fn frames(&self) -> &[Bytes] {
        &self.frames
    }

    /// How many frames there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is no frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The sum of the frames' lengths.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.frames.iter().map(Bytes::len).sum()
    }

    /// What the message counts where bytes of queues are bounded: its frames and 64 bytes for each of them.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.byte_len() + FRAME_OVERHEAD * self.frames.len()
    }

    /// The first frame.
    #[must_use]
    pub fn first(&self) -> Option<&Bytes> {
        self.frames.first()
    }

    /// Adds a frame behind the others.
    pub fn push(&mut self, frame: impl Into<Bytes>) {
        self.frames.push(frame.into());
    }

    /// Adds a frame before the others.
    pub fn push_front(&mut self, frame: impl Into<Bytes>) {
        self.frames.insert(0, frame.into());
    }

    /// Takes the first frame.
    pub fn pop_front(&mut self) -> Option<Bytes> {
        (!self.frames.is_empty()).then(|| self.frames.remove(0))
    }

    /// Takes everything up to and including the first empty frame: the envelope of a request (RFC 28, "The REP Socket
    /// Type"). `None`, and no change, if there is no empty frame.
    pub fn take_envelope(&mut self) -> Option<Self> {
        let delimiter = self.frames.iter().position(Bytes::is_empty)?;
        Some(Self { frames: self.frames.drain(..=delimiter).collect() })
    }

    /// Copies the frames into memory of their own.
    ///
    /// A received frame shares memory with what was read along with it, up to 64 KiB. A message that is kept while the
    /// others are dropped would hold all of it.
    pub fn compact(&mut self) {
        for frame in &mut self.frames {
            *frame = Bytes::copy_from_slice(frame);
        }
    }

    /// The frames in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, Bytes> {
        self.frames.iter()
    }
}

impl Index<usize> for Message {
    type Output = Bytes;

    fn index(&self, index: usize) -> &Bytes {
        &self.frames[index]
    }
}

impl<F: Into<Bytes>> FromIterator<F> for Message {
    fn from_iter<I: IntoIterator<Item = F>>(frames: I) -> Self {
        Self { frames: frames.into_iter().map(Into::into).collect() }
    }
}

impl<F: Into<Bytes>> Extend<F> for Message {
    fn extend<I: IntoIterator<Item = F>>(&mut self, frames: I) {
        self.frames.extend(frames.into_iter().map(Into::into));
    }
}

impl IntoIterator for Message {
    type Item = Bytes;
    type IntoIter = smallvec::IntoIter<[Bytes; 3]>;

    fn into_iter(self) -> Self::IntoIter {
        self.frames.into_iter()
    }
}

impl<'a> IntoIterator for &'a Message {
    type Item = &'a Bytes;
    type IntoIter = std::slice::Iter<'a, Bytes>;

    fn into_iter(self) -> Self::IntoIter {
        self.frames.iter()
    }
}

impl<F: Into<Bytes>, const N: usize> From<[F; N]> for Message {
    fn from(frames: [F; N]) -> Self {
        frames.into_iter().collect()
    }
}

impl From<Vec<Bytes>> for Message {
    fn from(frames: Vec<Bytes>) -> Self {
        Self { frames: frames.into() }
    }
}

impl From<Bytes> for Message {
    fn from(frame: Bytes) -> Self {
        Self { frames: SmallVec::from_iter([frame]) }
    }
}

impl From<&'static str> for Message {
    fn from(frame: &'static str) -> Self {
        Bytes::from(frame).into()
    }
}

impl From<&'static [u8]> for Message {
    fn from(frame: &'static [u8]) -> Self {
        Bytes::from(frame).into()
    }
}

impl From<String> for Message {
    fn from(frame: String) -> Self {
        Bytes::from(frame).into()
    }
}

impl From<Vec<u8>> for Message {
    fn from(frame: Vec<u8>) -> Self {
        Bytes::from(frame).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_ends_with_the_first_empty_frame() {
        let mut message = Message::from(["a", "", "b", ""]);
        assert_eq!(message.take_envelope(), Some(Message::from(["a", ""])));
        assert_eq!(message, Message::from(["b", ""]));
        assert_eq!(message.take_envelope(), Some(Message::from(["b", ""])));
        assert_eq!(message.take_envelope(), None);
        let mut bare = Message::from("x");
        assert_eq!(bare.take_envelope(), None);
        assert_eq!(bare, Message::from("x"));
    }

    #[test]
    fn empty_frames_have_weight() {
        assert_eq!(Message::from(["", "", "abc"]).weight(), 3 * FRAME_OVERHEAD + 3);
        assert_eq!(Message::new().weight(), 0);
    }

    #[test]
    fn frames_are_added_and_taken_at_the_front() {
        let mut message = Message::from("body");
        message.push_front("id");
        message.push("tail");
        assert_eq!(message.len(), 3);
        assert_eq!(message.pop_front().unwrap(), "id");
        assert_eq!(message.frames(), ["body", "tail"]);
    }
}
