//! What is to be written, as few large pieces: small frames are copied together, large ones are kept as they are.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{Flags, FrameHeader};

/// A body up to this size is copied behind its header; a larger one is a piece of its own.
const COPIED_BYTES_MAX: usize = 2048;
/// How much the buffer of copied bytes holds before another is begun.
const TAIL_BYTES: usize = 32 * 1024;

/// Bytes in the order in which they are to be written.
#[derive(Debug, Default)]
pub struct WriteBuffer {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl WriteBuffer {
    /// How many bytes there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends what `append` writes.
    pub fn put_with(&mut self, append: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        append(&mut self.tail);
        self.len += self.tail.len() - before;
    }

    /// Appends a frame.
    pub fn put_frame(&mut self, flags: Flags, body: &Bytes) {
        self.make_room();
        self.put_with(|out| FrameHeader { flags, body: body.len() as u64 }.put(out));
        if body.len() <= COPIED_BYTES_MAX {
            self.put_with(|out| out.extend_from_slice(body));
        } else {
            self.end_tail();
            self.len += body.len();
            self.pieces.push_back(body.clone());
        }
    }

    /// Appends a piece of `len` bytes, which `put` writes.
    pub fn put_sized(&mut self, len: usize, put: impl FnOnce(&mut BytesMut)) {
        if len > COPIED_BYTES_MAX {
            self.end_tail();
            let mut piece = BytesMut::with_capacity(len);
            put(&mut piece);
            self.len += piece.len();
            return self.pieces.push_back(piece.freeze());
        }
        self.make_room();
        self.put_with(put);
    }

    fn make_room(&mut self) {
        if self.tail.capacity() - self.tail.len() < COPIED_BYTES_MAX + 9 {
            self.end_tail();
            self.tail.reserve(TAIL_BYTES);
        }
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    /// Fills `slices` with what comes first, and returns how many it filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = self.pieces.iter().map(|piece| &piece[..]).chain([&self.tail[..]]);
        let mut filled = 0;
        for (slice, part) in slices.iter_mut().zip(parts.filter(|part| !part.is_empty())) {
            *slice = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    /// Removes the first `written` bytes.
    ///
    /// # Panics
    /// There are fewer.
    pub fn advance(&mut self, mut written: usize) {
        self.len = self.len.checked_sub(written).expect("no more is written than there is");
        while let Some(first) = self.pieces.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.pieces.pop_front();
        }
        self.tail.advance(written);
        if self.tail.is_empty() {
            // The memory is used again from its start, unless a piece is still held by a reader in this process.
            self.tail.clear();
        }
    }

    /// Takes everything as one.
    #[must_use]
    pub fn take(&mut self) -> Bytes {
        let mut all = BytesMut::with_capacity(self.len);
        for piece in self.pieces.drain(..) {
            all.extend_from_slice(&piece);
        }
        all.extend_from_slice(&self.tail.split());
        self.len = 0;
        all.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_taken_in_whatever_steps_is_what_was_put() {
        arbtest::arbtest(|u| {
            let mut buffer = WriteBuffer::default();
            let mut expected = BytesMut::new();
            let mut written = BytesMut::new();
            for _ in 0..u.int_in_range(1..=12)? {
                let body = Bytes::from(vec![u.arbitrary()?; u.int_in_range(0..=6000)?]);
                buffer.put_frame(Flags::More, &body);
                FrameHeader { flags: Flags::More, body: body.len() as u64 }.put(&mut expected);
                expected.extend_from_slice(&body);
                let count = u.int_in_range(0..=buffer.len())?;
                let mut slices = [IoSlice::new(&[]); 64];
                let filled = buffer.slices(&mut slices);
                let flat: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
                assert_eq!(flat.len(), buffer.len());
                written.extend_from_slice(&flat[..count]);
                buffer.advance(count);
            }
            written.extend_from_slice(&buffer.take());
            assert_eq!(written, expected);
            assert!(buffer.is_empty());
            Ok(())
        });
    }

    #[test]
    fn a_large_body_is_not_copied() {
        let body = Bytes::from(vec![7; COPIED_BYTES_MAX + 1]);
        let mut buffer = WriteBuffer::default();
        buffer.put_frame(Flags::Last, &body);
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(buffer.slices(&mut slices), 2);
        assert_eq!(slices[1].as_ptr(), body.as_ptr());
    }
}
