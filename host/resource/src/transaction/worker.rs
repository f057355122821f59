//! The task of a participant: it works at once, sends its result, then waits for the decision. Participants that write to the
//! store share one worker, so that they are written together.

mod call;
mod operation;
mod store;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use self::call::CallWorker;
use self::operation::OperationWorker;
use self::store::StoreWorker;
use super::{ModuleStore, Participant, ParticipantOutput, ParticipantResult};
use crate::{Caller, ResourceError};
use wasmcage_core::request::Deadline;

/// The decision to commit. If it never comes, the worker rolls back.
pub(super) struct Decision {
    /// The participants of the worker that are to commit.
    pub(super) participants: Vec<usize>,
    /// The module knows their results, which must not change.
    pub(super) shown: bool,
    /// Sent when the worker is to commit; dropped if an earlier commit failed.
    pub(super) go: oneshot::Receiver<()>,
    /// Deadline of the commit.
    pub(super) deadline: Deadline,
    pub(super) done: oneshot::Sender<Result<Vec<(usize, ParticipantOutput)>, ResourceError>>,
}

/// Sends the results of participants, by number.
pub(super) type ResultSender = mpsc::Sender<(usize, ParticipantResult)>;

/// The worker of one participant, or of those that write to the store.
pub(super) enum ParticipantWorker {
    Operation(Box<OperationWorker>),
    Store(StoreWorker),
    Call(CallWorker),
    Refused(usize, Option<ResourceError>),
}

impl ParticipantWorker {
    /// Makes the workers of these participants.
    pub(super) fn of(
        participants: Vec<Participant>,
        store: &ModuleStore,
        caller: &Caller,
        deadline: Deadline,
    ) -> Vec<Self> {
        let mut workers = Vec::with_capacity(participants.len());
        let mut stored = StoreWorker::new(store.clone());
        for (index, participant) in participants.into_iter().enumerate() {
            match participant {
                Participant::Operation { resource, operation, begin, writes } => {
                    let worker =
                        OperationWorker::new(index, resource, operation, begin, writes, caller.clone(), deadline);
                    workers.push(Self::Operation(Box::new(worker)));
                }
                Participant::State(steps) => stored.add_state(index, steps),
                Participant::RetriedCall(call) => stored.add_call(index, call),
                Participant::Call(call) => workers.push(Self::Call(CallWorker::new(index, call, deadline))),
                Participant::Refused(error) => workers.push(Self::Refused(index, Some(error))),
            }
        }
        if !stored.is_empty() {
            workers.push(Self::Store(stored));
        }
        workers
    }

    /// Numbers of the participants that it handles.
    pub(super) fn participants(&self) -> Vec<usize> {
        match self {
            Self::Operation(worker) => vec![worker.index()],
            Self::Store(worker) => worker.participants(),
            Self::Call(worker) => vec![worker.index()],
            Self::Refused(index, _) => vec![*index],
        }
    }

    pub(super) fn is_store(&self) -> bool {
        matches!(self, Self::Store(_))
    }

    pub(super) async fn run(
        mut self,
        results_tx: ResultSender,
        mut decided: oneshot::Receiver<Decision>,
        deadline: Deadline,
    ) {
        // A decision may come before all work is done: to roll back, or to commit what is done.
        let early = tokio::select! {
            biased;
            () = self.work(&results_tx) => None,
            early = &mut decided => Some(early),
        };
        let decision = match early {
            Some(decision) => decision.ok(),
            None => timeout_at(deadline.instant(), decided).await.ok().and_then(Result::ok),
        };
        let Some(Decision { participants, shown, go, deadline, done }) = decision else { return self.rollback().await };
        match go.await {
            // If nobody receives the result, the commit stands all the same.
            Ok(()) => drop(done.send(self.commit(&participants, shown, deadline).await)),
            Err(_) => self.rollback().await,
        }
    }

    async fn work(&mut self, results_tx: &ResultSender) {
        match self {
            Self::Operation(worker) => worker.work(results_tx).await,
            Self::Store(worker) => worker.work(results_tx).await,
            Self::Call(worker) => worker.work(results_tx).await,
            Self::Refused(index, error) => {
                if let Some(error) = error.take() {
                    send_result(results_tx, *index, Err(error)).await;
                }
            }
        }
    }

    async fn commit(
        self,
        participants: &[usize],
        shown: bool,
        deadline: Deadline,
    ) -> Result<Vec<(usize, ParticipantOutput)>, ResourceError> {
        match self {
            Self::Operation(worker) => worker.commit(deadline).await.map(|()| Vec::new()),
            Self::Store(worker) => worker.commit(participants, shown, deadline).await,
            Self::Call(_) | Self::Refused(..) => Ok(Vec::new()),
        }
    }

    async fn rollback(self) {
        match self {
            Self::Operation(worker) => worker.rollback().await,
            Self::Store(_) | Self::Call(_) | Self::Refused(..) => {}
        }
    }
}

/// Sends a result. If the receiver is gone, the transaction was decided without it.
async fn send_result(results_tx: &ResultSender, index: usize, result: ParticipantResult) {
    let _ = results_tx.send((index, result)).await;
}
