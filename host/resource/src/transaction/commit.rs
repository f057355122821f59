//! How a decision to commit is carried out: the store first, then the others at the same time. The store's write is the one
//! that fails in ordinary life, when another request changed a key meanwhile; then nothing else is committed either.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::worker::Decision;
use super::{Done, Working};
use crate::{Caller, Phase, ResourceError};
use wasmcage_core::request::Deadline;

/// What was decided is carried out even when the deadline comes meanwhile, within this.
const COMMIT_TIME_MIN: Duration = Duration::from_secs(10);

pub(super) struct Commitment {
    names: Vec<String>,
    /// Participants that are to commit and have not yet.
    pending: Mutex<BTreeSet<usize>>,
    /// Something was done that no rollback takes back.
    for_good: bool,
}

type Committed = Result<Vec<(usize, Done)>, ResourceError>;

/// A worker that is to commit when it is let go; dropped, it rolls back.
struct Ready {
    participants: Vec<usize>,
    is_store: bool,
    go: oneshot::Sender<()>,
    committed: oneshot::Receiver<Committed>,
}

impl Commitment {
    /// Of the participants with these numbers.
    pub(super) fn new(names: Vec<String>, participants: impl Iterator<Item = usize>, for_good: bool) -> Self {
        Self { names, pending: Mutex::new(participants.collect()), for_good }
    }

    /// Commits who is to commit, and lets the others roll back. What those gave whose results are not `shown` yet.
    ///
    /// # Errors
    /// The first of those in the order of the participants.
    pub(super) async fn carry_out(
        self: Arc<Self>,
        workers: Vec<Working>,
        shown: bool,
        deadline: Deadline,
        caller: Caller,
    ) -> Committed {
        let deadline = deadline.max(Deadline::after(COMMIT_TIME_MIN));
        let ready = workers.into_iter().filter_map(|worker| self.ready(worker, shown, deadline));
        let (stored, others): (Vec<_>, Vec<_>) = ready.partition(|ready| ready.is_store);
        // Who commits alone may say that nothing has happened.
        let alone = usize::from(!stored.is_empty()) + others.len() == 1;
        let mut done = Vec::new();
        for (stage, harmless) in [(stored, true), (others, alone)] {
            let commits = join_all(stage.into_iter().map(|ready| self.commit(ready))).await;
            let (good, bad): (Vec<_>, Vec<_>) = commits.into_iter().partition(Result::is_ok);
            done.extend(good.into_iter().flatten().flatten());
            if let Some(error) = bad.into_iter().filter_map(Result::err).min_by_key(|error| error.index) {
                let recoverable = error.recoverable && harmless && !self.for_good;
                let error = ResourceError { recoverable, ..error };
                let (module, request) = (&*caller.module, tracing::field::display(caller.request.tail()));
                tracing::warn!(cage = %caller.cage, module, %error, request, "transaction was not committed, or not whole");
                return Err(error);
            }
        }
        Ok(done)
    }

    /// Tells a worker to commit when it is let go. None: nothing of it is to be committed, and it rolls back.
    fn ready(&self, worker: Working, shown: bool, deadline: Deadline) -> Option<Ready> {
        let Working { participants, is_store, decision } = worker;
        let pending = self.pending.lock();
        let participants: Vec<_> = participants.into_iter().filter(|index| pending.contains(index)).collect();
        if participants.is_empty() {
            return None;
        }
        let ((go, gone_for), (done, committed)) = (oneshot::channel(), oneshot::channel());
        // A worker that is not there any more does not answer either.
        let _ = decision.send(Decision { participants: participants.clone(), shown, go: gone_for, deadline, done });
        Some(Ready { participants, is_store, go, committed })
    }

    async fn commit(&self, ready: Ready) -> Committed {
        let Ready { participants, go, committed, .. } = ready;
        let _ = go.send(());
        let result = committed.await.unwrap_or_else(|_| {
            let text = "its deadline had come before it was to commit, and it was rolled back";
            Err(ResourceError::harmless(Phase::Commit, ResourceError::TIMED_OUT, text))
        });
        match result {
            Ok(done) => {
                self.pending.lock().retain(|index| !participants.contains(index));
                Ok(done)
            }
            Err(error) => {
                let blamed = participants.contains(&error.index);
                let index = if blamed { error.index } else { participants[0] };
                Err(ResourceError { participant: self.names[index].clone(), index, ..error })
            }
        }
    }

    /// Of the first that has not committed yet, which may still do so.
    pub(super) fn unfinished(&self, code: &str, text: &str) -> ResourceError {
        let index = self.pending.lock().first().copied().unwrap_or_default();
        let participant = self.names.get(index).cloned().unwrap_or_default();
        ResourceError { participant, index, ..ResourceError::fatal(Phase::Commit, code, text) }
    }
}
