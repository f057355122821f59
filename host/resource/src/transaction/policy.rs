//! When a transaction is committed.

use super::{Results, error};
use crate::{Phase, ResourceError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// When all have succeeded. The first that fails rolls the others back, whatever its position.
    All,
    /// When the first has succeeded; the others roll back.
    First,
    /// When so many have succeeded; those that have not by then roll back.
    Quorum(usize),
}

/// What is to be done about the results so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Wait,
    Commit,
    /// With the error of this participant.
    Fail(usize),
}

impl Policy {
    /// # Errors
    /// A quorum that cannot be.
    pub(super) fn check(self, participants: usize) -> Result<(), ResourceError> {
        match self {
            Self::Quorum(needed) if !(1..=participants).contains(&needed) => {
                let text = format!("a quorum of {needed} among {participants} participants cannot be");
                Err(error(Phase::Check, ResourceError::BAD_OPERATION, text))
            }
            Self::All | Self::First | Self::Quorum(_) => Ok(()),
        }
    }

    /// `latest` is the one that has come to a result last.
    pub(super) fn verdict(self, results: &Results, latest: Option<usize>) -> Verdict {
        let good = results.iter().flatten().filter(|result| result.is_ok()).count();
        let failed = results.iter().flatten().count() - good;
        let needed = match self {
            Self::All => results.len(),
            Self::First => results.len().min(1),
            Self::Quorum(needed) => needed,
        };
        match latest {
            _ if good >= needed => Verdict::Commit,
            Some(latest) if failed > results.len() - needed => Verdict::Fail(latest),
            _ => Verdict::Wait,
        }
    }
}
