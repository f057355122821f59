//! The participants that the cage's store keeps: steps on a module's data, retried calls. They are rehearsed when the
//! transaction begins, and done in one write when it is committed.

use super::{Arrived, arrive};
use crate::transaction::{Done, ModuleStore, Participant, ParticipantResult};
use crate::{Phase, ResourceError};
use wasmcage_core::request::Deadline;
use wasmcage_store::{NewCall, Step, StepResult, StoreError};

pub(in crate::transaction) struct StoreWorker {
    store: ModuleStore,
    shares: Vec<Share>,
}

/// Of one participant.
struct Share {
    index: usize,
    is_call: bool,
    steps: Vec<Step>,
    /// What the steps gave in the rehearsal.
    outcomes: Vec<StepResult>,
}

impl StoreWorker {
    pub(super) fn new(store: ModuleStore) -> Self {
        Self { store, shares: Vec::new() }
    }

    pub(super) fn add_state(&mut self, index: usize, steps: Vec<Step>) {
        self.shares.push(Share { index, is_call: false, steps, outcomes: Vec::new() });
    }

    pub(super) fn add_call(&mut self, index: usize, call: Box<NewCall>) {
        self.shares.push(Share { index, is_call: true, steps: vec![Step::Retry(call)], outcomes: Vec::new() });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    pub(super) fn participants(&self) -> Vec<usize> {
        self.shares.iter().map(|share| share.index).collect()
    }

    /// Each share sees what those before it would do, unless they failed.
    pub(super) async fn work(&mut self, arrived: &Arrived) {
        let ModuleStore { store, module, quota } = &self.store;
        let mut steps: Vec<Step> = Vec::new();
        for share in &mut self.shares {
            let before = steps.len();
            steps.extend(share.steps.iter().cloned());
            let (name, quota, rehearsed) = (module.clone(), *quota, steps.clone());
            let rehearsing = store.read_without_blocking(move |store| store.rehearse(&name, quota, &rehearsed));
            let result = match rehearsing.await {
                Ok(mut outcomes) => {
                    share.outcomes = outcomes.split_off(before);
                    share.done(share.outcomes.clone(), Phase::Execute)
                }
                Err(error) => {
                    steps.truncate(before);
                    Err(share.failed(Phase::Execute, error, before))
                }
            };
            arrive(arrived, share.index, result).await;
        }
    }

    pub(super) async fn commit(
        self,
        participants: &[usize],
        shown: bool,
        deadline: Deadline,
    ) -> Result<Vec<(usize, Done)>, ResourceError> {
        let ModuleStore { store, module, quota } = self.store;
        let mut shares: Vec<_> = self.shares.into_iter().filter(|share| participants.contains(&share.index)).collect();
        let steps = shares.iter().flat_map(|share| share.steps.iter().cloned()).collect();
        // What the module has seen must be so; otherwise it is shown what came of it.
        let expected = shown.then(|| shares.iter().flat_map(|share| share.outcomes.iter().cloned()).collect());
        let mut outcomes = match store.transact(&module, quota, steps, expected, deadline).await {
            Ok(outcomes) => outcomes.into_iter(),
            Err(error) => {
                let (share, before) = to_blame(&shares, &error);
                let index = share.index;
                return Err(ResourceError {
                    index,
                    participant: share.name().to_owned(),
                    ..share.failed(Phase::Commit, error, before)
                });
            }
        };
        let done = shares.iter_mut().map(|share| {
            let outcomes = outcomes.by_ref().take(share.steps.len()).collect();
            Ok((share.index, share.done(outcomes, Phase::Commit)?))
        });
        done.collect()
    }
}

/// The share with the step that did not hold, and the number of steps before it; the first one where the error tells none.
fn to_blame<'a>(shares: &'a [Share], error: &StoreError) -> (&'a Share, usize) {
    let mut before = 0;
    if let StoreError::Conflict(step) = error {
        for share in shares {
            if *step < before + share.steps.len() {
                return (share, before);
            }
            before += share.steps.len();
        }
    }
    (&shares[0], 0)
}

impl Share {
    fn name(&self) -> &'static str {
        if self.is_call { Participant::RETRIED_CALL } else { Participant::STATE }
    }

    fn done(&self, mut outcomes: Vec<StepResult>, phase: Phase) -> ParticipantResult {
        match outcomes.pop() {
            Some(StepResult::Id(id)) if self.is_call => Ok(Done::Id(id)),
            last if !self.is_call => {
                outcomes.extend(last);
                Ok(Done::State(outcomes))
            }
            _ => Err(ResourceError::fatal(phase, ResourceError::HOST_ERROR, "the store gave no id for a retried call")),
        }
    }

    /// `before` is the number of steps of other shares before its own.
    fn failed(&self, phase: Phase, error: StoreError, before: usize) -> ResourceError {
        let code = match &error {
            StoreError::Invalid(_) => "invalid",
            StoreError::QuotaExceeded(_) => "quota-exceeded",
            StoreError::Conflict(_) => "conflict",
            StoreError::Unavailable(_) => "unavailable",
            StoreError::TimedOut => ResourceError::TIMED_OUT,
        };
        let recoverable = error != StoreError::TimedOut;
        let error = match error {
            StoreError::Conflict(step) => StoreError::Conflict(step.saturating_sub(before)),
            other => other,
        };
        ResourceError { recoverable, ..ResourceError::harmless(phase, code, error.to_string()) }
    }
}
