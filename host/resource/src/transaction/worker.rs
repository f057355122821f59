//! The task of one participant: begins and works at once, tells its result, then waits for the decision. Participants that
//! the store keeps have one worker together, so that they are written in one go.

mod call;
mod operation;
mod store;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use self::call::CallWorker;
use self::operation::OperationWorker;
use self::store::StoreWorker;
use super::{Done, ModuleStore, Participant, ParticipantResult};
use crate::{Caller, ResourceError};
use wasmcage_core::request::Deadline;

/// To commit. A decision that never comes is to roll back.
pub(super) struct Decision {
    /// Which of the worker's participants.
    pub(super) participants: Vec<usize>,
    /// Their results are known already, and must not change.
    pub(super) shown: bool,
    /// When; never, if the others' turn was first and they failed.
    pub(super) go: oneshot::Receiver<()>,
    /// By when.
    pub(super) deadline: Deadline,
    pub(super) done: oneshot::Sender<Result<Vec<(usize, Done)>, ResourceError>>,
}

/// Where results go.
pub(super) type Arrived = mpsc::Sender<(usize, ParticipantResult)>;

pub(super) enum Worker {
    Operation(Box<OperationWorker>),
    Store(StoreWorker),
    Call(CallWorker),
    Refused(usize, Option<ResourceError>),
}

impl Worker {
    /// The workers of these participants.
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

    /// Numbers of the participants that it does the work of.
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

    pub(super) async fn run(mut self, arrived: Arrived, mut decided: oneshot::Receiver<Decision>, deadline: Deadline) {
        // A decision may come before all of it is done: to roll back, or to commit what is.
        let early = tokio::select! {
            biased;
            () = self.work(&arrived) => None,
            early = &mut decided => Some(early),
        };
        let decision = match early {
            Some(decision) => decision.ok(),
            None => timeout_at(deadline.instant(), decided).await.ok().and_then(Result::ok),
        };
        let Some(Decision { participants, shown, go, deadline, done }) = decision else { return self.rollback().await };
        match go.await {
            // Nobody to be told is nothing to be undone.
            Ok(()) => drop(done.send(self.commit(&participants, shown, deadline).await)),
            Err(_) => self.rollback().await,
        }
    }

    async fn work(&mut self, arrived: &Arrived) {
        match self {
            Self::Operation(worker) => worker.work(arrived).await,
            Self::Store(worker) => worker.work(arrived).await,
            Self::Call(worker) => worker.work(arrived).await,
            Self::Refused(index, error) => {
                if let Some(error) = error.take() {
                    arrive(arrived, *index, Err(error)).await;
                }
            }
        }
    }

    async fn commit(
        self,
        participants: &[usize],
        shown: bool,
        deadline: Deadline,
    ) -> Result<Vec<(usize, Done)>, ResourceError> {
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

/// Whoever does not listen any more has decided without it.
async fn arrive(arrived: &Arrived, index: usize, result: ParticipantResult) {
    let _ = arrived.send((index, result)).await;
}
