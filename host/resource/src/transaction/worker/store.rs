//! The worker of the participants that write to the cage's store: steps on a module's data, and retried calls. They are
//! rehearsed when the transaction begins, and done in one write when it is committed.

use super::{ResultSender, send_result};
use crate::transaction::{ModuleStore, Participant, ParticipantOutput, ParticipantResult};
use crate::{Phase, ResourceError};
use wasmcage_core::request::Deadline;
use wasmcage_store::{NewCall, Step, StepResult, StoreError};

pub(in crate::transaction) struct StoreWorker {
    store: ModuleStore,
    parts: Vec<StorePart>,
}

/// The steps of one participant.
struct StorePart {
    index: usize,
    is_call: bool,
    steps: Vec<Step>,
    /// The results of the steps in the rehearsal.
    outcomes: Vec<StepResult>,
}

impl StoreWorker {
    pub(super) fn new(store: ModuleStore) -> Self {
        Self { store, parts: Vec::new() }
    }

    pub(super) fn add_state(&mut self, index: usize, steps: Vec<Step>) {
        self.parts.push(StorePart { index, is_call: false, steps, outcomes: Vec::new() });
    }

    pub(super) fn add_call(&mut self, index: usize, call: Box<NewCall>) {
        self.parts.push(StorePart { index, is_call: true, steps: vec![Step::Retry(call)], outcomes: Vec::new() });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn participants(&self) -> Vec<usize> {
        self.parts.iter().map(|part| part.index).collect()
    }

    /// Rehearses the parts. Each sees the effects of those before it that have not failed.
    pub(super) async fn work(&mut self, results_tx: &ResultSender) {
        let ModuleStore { store, module, quota } = &self.store;
        let mut steps: Vec<Step> = Vec::new();
        for part in &mut self.parts {
            let before = steps.len();
            steps.extend(part.steps.iter().cloned());
            let (name, quota, rehearsed) = (module.clone(), *quota, steps.clone());
            let rehearsing = store.read_without_blocking(move |store| store.rehearse(&name, quota, &rehearsed));
            let result = match rehearsing.await {
                Ok(mut outcomes) => {
                    part.outcomes = outcomes.split_off(before);
                    part.done(part.outcomes.clone(), Phase::Execute)
                }
                Err(error) => {
                    steps.truncate(before);
                    Err(part.failed(Phase::Execute, error, before))
                }
            };
            send_result(results_tx, part.index, result).await;
        }
    }

    pub(super) async fn commit(
        self,
        participants: &[usize],
        shown: bool,
        deadline: Deadline,
    ) -> Result<Vec<(usize, ParticipantOutput)>, ResourceError> {
        let ModuleStore { store, module, quota } = self.store;
        let mut parts: Vec<_> = self.parts.into_iter().filter(|part| participants.contains(&part.index)).collect();
        let steps = parts.iter().flat_map(|part| part.steps.iter().cloned()).collect();
        // Results that the module has seen must come true; others are returned as they are.
        let expected = shown.then(|| parts.iter().flat_map(|part| part.outcomes.iter().cloned()).collect());
        let mut outcomes = match store.transact(&module, quota, steps, expected, deadline).await {
            Ok(outcomes) => outcomes.into_iter(),
            Err(error) => {
                let (part, before) = to_blame(&parts, &error);
                let index = part.index;
                return Err(ResourceError {
                    index,
                    participant: part.name().to_owned(),
                    ..part.failed(Phase::Commit, error, before)
                });
            }
        };
        let done = parts.iter_mut().map(|part| {
            let outcomes = outcomes.by_ref().take(part.steps.len()).collect();
            Ok((part.index, part.done(outcomes, Phase::Commit)?))
        });
        done.collect()
    }
}

/// Returns the part with the step that failed, and the number of steps before it; the first part if the error names no step.
fn to_blame<'a>(parts: &'a [StorePart], error: &StoreError) -> (&'a StorePart, usize) {
    let mut before = 0;
    if let StoreError::Conflict(step) = error {
        for part in parts {
            if *step < before + part.steps.len() {
                return (part, before);
            }
            before += part.steps.len();
        }
    }
    (&parts[0], 0)
}

impl StorePart {
    fn name(&self) -> &'static str {
        if self.is_call { Participant::RETRIED_CALL } else { Participant::STATE }
    }

    fn done(&self, mut outcomes: Vec<StepResult>, phase: Phase) -> ParticipantResult {
        match outcomes.pop() {
            Some(StepResult::Id(id)) if self.is_call => Ok(ParticipantOutput::Id(id)),
            last if !self.is_call => {
                outcomes.extend(last);
                Ok(ParticipantOutput::State(outcomes))
            }
            _ => Err(ResourceError::fatal(
                phase,
                ResourceError::HOST_ERROR,
                "the store returned no id for a retried call",
            )),
        }
    }

    /// Converts an error. `before` is the number of steps of other parts before its own.
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
