//! Decides when a failed load is tried again although its file is the same. A full disk, a directory that is made later or a
//! busy machine are no fault of the file.

use std::time::Duration;

/// When to try a failed load again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The file is at fault, so it is not tried again.
    Never,
    /// The reason is outside the file and may pass at any moment.
    Soon,
    /// The file may be at fault, and an attempt costs much.
    Seldom,
}

impl Retry {
    /// Returns the pause before the next attempt, or `None` if there is none. It is twice the `last` pause, within bounds.
    pub fn pause(self, last: Option<Duration>) -> Option<Duration> {
        let (first, longest) = match self {
            Self::Never => return None,
            Self::Soon => (Duration::from_secs(1), Duration::from_secs(60)),
            Self::Seldom => (Duration::from_secs(60), Duration::from_secs(3600)),
        };
        Some(last.map_or(first, |last| last.saturating_mul(2).clamp(first, longest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut pauses = Vec::new();
        let mut last = None;
        for _ in 0..8 {
            last = Retry::Soon.pause(last);
            pauses.push(last.unwrap().as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(Retry::Seldom.pause(Some(Duration::from_secs(2))), Some(Duration::from_secs(60)));
        assert_eq!(Retry::Never.pause(last), None);
    }
}
