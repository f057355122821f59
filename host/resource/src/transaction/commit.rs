//! Commits a transaction: the store first, then all other participants at the same time. The store's write is the one most
//! likely to fail, when another request has changed a key meanwhile; then nothing else is committed either.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::worker::Decision;
use super::{ParticipantOutput, WorkerHandle};
use crate::{Caller, Phase, ResourceError};
use wasmcage_core::request::Deadline;

/// A commit has at least so much time, even if the deadline of the transaction is earlier.
const COMMIT_TIMEOUT_MIN: Duration = Duration::from_secs(10);

/// The commit of a transaction.
pub(super) struct CommitRun {
    names: Vec<String>,
    /// Participants that are to commit and have not committed yet.
    pending: Mutex<BTreeSet<usize>>,
    /// A participant has had effects that no rollback undoes.
    irreversible: bool,
}

type CommitResult = Result<Vec<(usize, ParticipantOutput)>, ResourceError>;

/// A worker that commits when `go` is sent. If this is dropped, it rolls back.
struct ReadyWorker {
    participants: Vec<usize>,
    is_store: bool,
    go: oneshot::Sender<()>,
    committed: oneshot::Receiver<CommitResult>,
}

impl CommitRun {
    /// A commit of the participants with these numbers.
    pub(super) fn new(names: Vec<String>, participants: impl Iterator<Item = usize>, irreversible: bool) -> Self {
        Self { names, pending: Mutex::new(participants.collect()), irreversible }
    }

    /// Commits the participants, and lets the others roll back. Returns the outputs of those whose results are not `shown` yet.
    ///
    /// # Errors
    /// The error of the first participant, in their order, that failed.
    pub(super) async fn run(
        self: Arc<Self>,
        workers: Vec<WorkerHandle>,
        shown: bool,
        deadline: Deadline,
        caller: Caller,
    ) -> CommitResult {
        let deadline = deadline.max(Deadline::after(COMMIT_TIMEOUT_MIN));
        let ready = workers.into_iter().filter_map(|worker| self.ready(worker, shown, deadline));
        let (stored, others): (Vec<_>, Vec<_>) = ready.partition(|ready| ready.is_store);
        // If there is only one commit, its own word on whether anything irreversible happened counts.
        let alone = usize::from(!stored.is_empty()) + others.len() == 1;
        let mut done = Vec::new();
        for (stage, harmless) in [(stored, true), (others, alone)] {
            let commits = join_all(stage.into_iter().map(|ready| self.commit(ready))).await;
            let (good, bad): (Vec<_>, Vec<_>) = commits.into_iter().partition(Result::is_ok);
            done.extend(good.into_iter().flatten().flatten());
            if let Some(error) = bad.into_iter().filter_map(Result::err).min_by_key(|error| error.index) {
                let recoverable = error.recoverable && harmless && !self.irreversible;
                let error = ResourceError { recoverable, ..error };
                let (module, request) = (&*caller.module, tracing::field::display(caller.request.tail()));
                tracing::warn!(cage = %caller.cage, module, %error, request, "transaction was not committed, or only in part");
                return Err(error);
            }
        }
        Ok(done)
    }

    /// Prepares a worker to commit. None if it has nothing to commit, and rolls back.
    fn ready(&self, worker: WorkerHandle, shown: bool, deadline: Deadline) -> Option<ReadyWorker> {
        let WorkerHandle { participants, is_store, decision } = worker;
        let pending = self.pending.lock();
        let participants: Vec<_> = participants.into_iter().filter(|index| pending.contains(index)).collect();
        if participants.is_empty() {
            return None;
        }
        let ((go, gone_for), (done, committed)) = (oneshot::channel(), oneshot::channel());
        // A worker that has ended does not answer, which `commit` handles.
        let _ = decision.send(Decision { participants: participants.clone(), shown, go: gone_for, deadline, done });
        Some(ReadyWorker { participants, is_store, go, committed })
    }

    async fn commit(&self, ready: ReadyWorker) -> CommitResult {
        let ReadyWorker { participants, go, committed, .. } = ready;
        let _ = go.send(());
        let result = committed.await.unwrap_or_else(|_| {
            let text = "its deadline passed before the commit, and it was rolled back";
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

    /// An error for the first participant that has not committed yet, and may still do so.
    pub(super) fn unfinished(&self, code: &str, text: &str) -> ResourceError {
        let index = self.pending.lock().first().copied().unwrap_or_default();
        let participant = self.names.get(index).cloned().unwrap_or_default();
        ResourceError { participant, index, ..ResourceError::fatal(Phase::Commit, code, text) }
    }
}
