//! Both ends of a body that is sent in parts, as far as the receiver grants it. Used for calls and answers; does no I/O.

use bytes::{Bytes, BytesMut};

use super::packet::{OVERHEAD_BYTES, WINDOW_BYTES};

/// A body that is being sent.
pub(super) struct OutgoingBody {
    body: Bytes,
    sent: usize,
    granted: usize,
}

impl OutgoingBody {
    /// `sent` bytes of the body were sent with the head.
    pub(super) fn new(body: Bytes, sent: usize, granted: usize) -> Self {
        Self { body, sent, granted }
    }

    /// Takes a grant. It never lowers an earlier one.
    pub(super) fn grant(&mut self, upto: u32) {
        self.granted = self.granted.max(upto as usize);
    }

    /// Returns the next part that may be sent now, with its offset.
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

/// A body that is being received.
pub(super) struct IncomingBody {
    bytes: BytesMut,
    body_bytes: usize,
    granted: usize,
}

/// A part does not continue the body: an earlier one is missing, or it was not granted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("part of {bytes} bytes at {offset}, where {expected} of {granted} granted bytes have come")]
pub(super) struct OutOfOrder {
    offset: u32,
    bytes: usize,
    expected: usize,
    granted: usize,
}

impl IncomingBody {
    /// The caller must have checked the announced size. Memory is used only for what has been received.
    pub(super) fn new(body_bytes: u32) -> Self {
        let body_bytes = body_bytes as usize;
        Self { bytes: BytesMut::new(), body_bytes, granted: body_bytes.min(WINDOW_BYTES) }
    }

    /// Returns the bytes granted so far.
    pub(super) fn granted(&self) -> u32 {
        self.granted as u32
    }

    /// Takes a part. Returns a new grant when one has to be sent.
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

    /// Returns the body once it is complete.
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
            let (mut out, mut to) = (OutgoingBody::new(body.clone(), 0, 0), IncomingBody::new(bytes as u32));
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
        let mut to = IncomingBody::new(10);
        assert_eq!(to.take(0, b"abc"), Ok(None));
        assert!(to.take(4, b"e").is_err() && to.take(0, b"a").is_err() && to.take(3, b"12345678").is_err());
        assert!(to.whole().is_none());
        let mut large = IncomingBody::new(u32::MAX);
        assert!(large.take(0, &vec![0; WINDOW_BYTES + 1]).is_err());
    }
}
