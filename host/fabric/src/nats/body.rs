//! A body that travels in parts, as far as its receiver grants it: both ends, for calls and answers alike. Pure.

use bytes::{Bytes, BytesMut};

use super::packet::{OVERHEAD_BYTES, WINDOW_BYTES};

/// A body on its way out.
pub(super) struct Outgoing {
    body: Bytes,
    sent: usize,
    granted: usize,
}

impl Outgoing {
    /// `sent` bytes of it have left with its head.
    pub(super) fn new(body: Bytes, sent: usize, granted: usize) -> Self {
        Self { body, sent, granted }
    }

    /// A grant is never taken back.
    pub(super) fn grant(&mut self, upto: u32) {
        self.granted = self.granted.max(upto as usize);
    }

    /// The next part that may be sent now, with its offset.
    pub(super) fn next_part(&mut self, message_bytes_max: usize) -> Option<(u32, Bytes)> {
        let part_bytes = message_bytes_max.saturating_sub(OVERHEAD_BYTES).max(1);
        let end = (self.sent + part_bytes).min(self.granted).min(self.body.len());
        if end <= self.sent {
            return None;
        }
        let part = (self.sent as u32, self.body.slice(self.sent..end));
        self.sent = end;
        Some(part)
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent == self.body.len()
    }
}

/// A body on its way in.
pub(super) struct Incoming {
    bytes: BytesMut,
    body_bytes: usize,
    granted: usize,
}

/// A part that does not continue the body: one before it is missing, or it was not granted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("part of {bytes} bytes at {offset}, where {expected} of {granted} granted bytes have come")]
pub(super) struct OutOfOrder {
    offset: u32,
    bytes: usize,
    expected: usize,
    granted: usize,
}

impl Incoming {
    /// Whoever makes one has checked the size that was announced. Memory is taken for what has come only.
    pub(super) fn new(body_bytes: u32) -> Self {
        let body_bytes = body_bytes as usize;
        Self { bytes: BytesMut::new(), body_bytes, granted: body_bytes.min(WINDOW_BYTES) }
    }

    /// What is granted from the start.
    pub(super) fn granted(&self) -> u32 {
        self.granted as u32
    }

    /// Takes a part; returns a new grant when it is time to tell it.
    pub(super) fn take(&mut self, offset: u32, part: &[u8]) -> Result<Option<u32>, OutOfOrder> {
        let there = self.bytes.len();
        if offset as usize != there || part.len() > self.granted - there {
            return Err(OutOfOrder { offset, bytes: part.len(), expected: there, granted: self.granted });
        }
        self.bytes.extend_from_slice(part);
        let left = self.granted - self.bytes.len();
        if self.granted == self.body_bytes || left > WINDOW_BYTES / 2 {
            return Ok(None);
        }
        self.granted = self.body_bytes.min(self.bytes.len() + WINDOW_BYTES);
        Ok(Some(self.granted as u32))
    }

    /// The body, once it is whole.
    pub(super) fn whole(&mut self) -> Option<Bytes> {
        (self.bytes.len() == self.body_bytes).then(|| self.bytes.split().freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_arrive_in_parts_within_the_window() {
        for bytes in [1, 1_000, WINDOW_BYTES, WINDOW_BYTES + 1, 5 * WINDOW_BYTES + 3] {
            let body: Bytes = (0..bytes).map(|at| at as u8).collect::<Vec<_>>().into();
            let (mut out, mut to) = (Outgoing::new(body.clone(), 0, 0), Incoming::new(bytes as u32));
            assert!(out.next_part(1_000).is_none());
            out.grant(to.granted());
            while let Some((offset, part)) = out.next_part(100_000 + OVERHEAD_BYTES) {
                assert!(part.len() <= 100_000);
                if let Some(upto) = to.take(offset, &part).unwrap() {
                    assert!(upto as usize - offset as usize - part.len() <= WINDOW_BYTES);
                    out.grant(upto);
                }
            }
            assert!(out.is_sent());
            assert_eq!(to.whole(), Some(body));
        }
    }

    #[test]
    fn a_missing_or_ungranted_part_is_found() {
        let mut to = Incoming::new(10);
        assert_eq!(to.take(0, b"abc"), Ok(None));
        assert!(to.take(4, b"e").is_err() && to.take(0, b"a").is_err() && to.take(3, b"12345678").is_err());
        assert!(to.whole().is_none());
        let mut large = Incoming::new(u32::MAX);
        assert!(large.take(0, &vec![0; WINDOW_BYTES + 1]).is_err());
    }
}
