//! Prefixes that somebody subscribed to, and whether a message is among them.

use bytes::Bytes;

/// What a subscription counts besides its bytes.
const OVERHEAD: usize = 64;

/// There would be more subscriptions than are allowed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

/// Prefixes in ascending order, each with how often it was subscribed to (RFC 37, "The Publish-Subscribe Pattern":
/// subscriptions are additive and not idempotent).
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    sorted: Vec<(Bytes, u32)>,
    bytes: usize,
}

impl Subscriptions {
    /// Whether the prefix is new.
    pub(crate) fn add(&mut self, prefix: &[u8], count_max: usize, bytes_max: usize) -> Result<bool, TooMany> {
        match self.sorted.binary_search_by(|(known, _)| (**known).cmp(prefix)) {
            Ok(at) => {
                self.sorted[at].1 = self.sorted[at].1.saturating_add(1);
                Ok(false)
            }
            Err(at) => {
                let bytes = self.bytes + prefix.len() + OVERHEAD;
                if self.sorted.len() >= count_max || bytes > bytes_max {
                    return Err(TooMany);
                }
                self.bytes = bytes;
                // A copy, so that a small prefix does not hold the buffer that it came in.
                self.sorted.insert(at, (Bytes::copy_from_slice(prefix), 1));
                Ok(true)
            }
        }
    }

    /// Whether the prefix is not subscribed to any more; `None` if it was not before.
    pub(crate) fn remove(&mut self, prefix: &[u8]) -> Option<bool> {
        let at = self.sorted.binary_search_by(|(known, _)| (**known).cmp(prefix)).ok()?;
        self.sorted[at].1 -= 1;
        if self.sorted[at].1 > 0 {
            return Some(false);
        }
        self.sorted.remove(at);
        self.bytes -= prefix.len() + OVERHEAD;
        Some(true)
    }

    /// Whether one of the prefixes is one of `topic` (RFC 29, "The PUB Socket Type": binary comparison with the start of the
    /// first frame).
    ///
    /// Those that agree with the first bytes of `topic` are neighbours, and the shortest of them comes first. So each byte
    /// narrows the range, and the work is bounded by the topic's length, whatever prefixes a peer chooses.
    pub(crate) fn matches(&self, topic: &[u8]) -> bool {
        let mut range = &self.sorted[..];
        for (at, byte) in topic.iter().enumerate() {
            match range.first() {
                None => return false,
                Some((shortest, _)) if shortest.len() == at => return true,
                Some(_) => {}
            }
            let start = range.partition_point(|(prefix, _)| prefix[at] < *byte);
            let end = range.partition_point(|(prefix, _)| prefix[at] <= *byte);
            range = &range[start..end];
        }
        range.first().is_some_and(|(shortest, _)| shortest.len() == topic.len())
    }

    pub(crate) fn prefixes(&self) -> impl Iterator<Item = &Bytes> {
        self.sorted.iter().map(|(prefix, _)| prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_matches_what_a_plain_search_finds() {
        arbtest::arbtest(|u| {
            let mut subscriptions = Subscriptions::default();
            let mut plain: Vec<Vec<u8>> = Vec::new();
            let short = |u: &mut arbtest::arbitrary::Unstructured<'_>| {
                let len = u.int_in_range(0..=4)?;
                (0..len).map(|_| u.int_in_range(0..=2)).collect::<arbtest::arbitrary::Result<Vec<u8>>>()
            };
            for _ in 0..u.int_in_range(0..=20)? {
                let prefix = short(u)?;
                if u.ratio(1, 3)? {
                    let known = plain.iter().position(|known| *known == prefix);
                    assert_eq!(subscriptions.remove(&prefix).is_some(), known.is_some());
                    known.map(|at| plain.remove(at));
                } else {
                    assert_eq!(subscriptions.add(&prefix, 1000, 1 << 20), Ok(!plain.contains(&prefix)));
                    plain.push(prefix);
                }
                let topic = short(u)?;
                assert_eq!(subscriptions.matches(&topic), plain.iter().any(|prefix| topic.starts_with(prefix)));
            }
            Ok(())
        });
    }

    #[test]
    fn there_are_bounds_on_number_and_bytes() {
        let mut subscriptions = Subscriptions::default();
        assert_eq!(subscriptions.add(b"a", 1, 1000), Ok(true));
        assert_eq!(subscriptions.add(b"a", 1, 1000), Ok(false));
        assert_eq!(subscriptions.add(b"b", 1, 1000), Err(TooMany));
        assert_eq!(subscriptions.add(&[7; 900], 2, 1000), Err(TooMany));
        assert_eq!(subscriptions.remove(b"a"), Some(false));
        assert_eq!(subscriptions.remove(b"a"), Some(true));
        assert_eq!(subscriptions.remove(b"a"), None);
        assert_eq!(subscriptions.add(&[7; 900], 2, 1000), Ok(true));
    }
}
