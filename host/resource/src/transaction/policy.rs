//! Decides when a transaction is committed.

use super::{ParticipantResults, error};
use crate::{Phase, ResourceError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The transaction commits when all have succeeded. The first failure, whichever participant it is, rolls the others back.
    All,
    /// The transaction commits when one has succeeded; the others roll back.
    First,
    /// The transaction commits when so many have succeeded; the others roll back.
    Quorum(usize),
}

/// What to do after the results so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PolicyDecision {
    Wait,
    Commit,
    /// Roll back and fail with the error of this participant.
    Fail(usize),
}

impl Policy {
    /// Checks the policy for so many participants.
    ///
    /// # Errors
    /// The quorum is zero or more than the participants.
    pub(super) fn check(self, participants: usize) -> Result<(), ResourceError> {
        match self {
            Self::Quorum(needed) if !(1..=participants).contains(&needed) => {
                let text = format!("a quorum of {needed} among {participants} participants is impossible");
                Err(error(Phase::Check, ResourceError::BAD_OPERATION, text))
            }
            Self::All | Self::First | Self::Quorum(_) => Ok(()),
        }
    }

    /// Decides after these results. `latest` is the participant whose result came last.
    pub(super) fn decide(self, results: &ParticipantResults, latest: Option<usize>) -> PolicyDecision {
        let good = results.iter().flatten().filter(|result| result.is_ok()).count();
        let failed = results.iter().flatten().count() - good;
        let needed = match self {
            Self::All => results.len(),
            Self::First => results.len().min(1),
            Self::Quorum(needed) => needed,
        };
        match latest {
            _ if good >= needed => PolicyDecision::Commit,
            Some(latest) if failed > results.len() - needed => PolicyDecision::Fail(latest),
            _ => PolicyDecision::Wait,
        }
    }
}
