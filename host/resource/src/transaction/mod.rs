//! Transactions: several operations that all take effect or none, as far as the other sides allow. Each participant works in a
//! task of its own; the transaction collects their results and decides whether to commit.

mod commit;
mod participant;
mod policy;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;
use tokio_util::task::TaskTracker;

use self::commit::CommitRun;
pub use self::participant::{ModuleStore, Participant, ParticipantOutput};
pub use self::policy::Policy;
use self::policy::PolicyDecision;
use self::worker::{Decision, ParticipantWorker};
use crate::{Caller, Phase, ResourceError};
use wasmcage_core::request::Deadline;
use wasmcage_core::task::Tasks;

/// Most participants of a transaction.
const PARTICIPANTS_MAX: usize = 64;
/// Most bytes of the operations, steps and arguments of a transaction.
const BYTES_MAX: usize = 64 << 20;

/// Extra time after the deadline in which participants can report what they were waiting for.
const REPORT_GRACE: Duration = Duration::from_millis(20);

/// The result of a participant.
pub type ParticipantResult = Result<ParticipantOutput, ResourceError>;
/// The results of all participants; none for those that had none yet when the transaction was decided.
pub type ParticipantResults = Vec<Option<ParticipantResult>>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionOptions {
    /// Wait until every participant has committed.
    pub sync_commit: bool,
    /// The transaction's timeout; the request's deadline holds anyway.
    pub timeout: Option<Duration>,
}

/// What a transaction needs from its cage and module.
#[derive(Clone)]
pub struct TransactionContext {
    pub caller: Caller,
    pub store: ModuleStore,
    /// Tracks commits and rollbacks, which go on when nobody waits for them any more.
    pub background: TaskTracker,
    pub tasks: Tasks,
}

/// A transaction. Dropping it before the commit rolls it back.
pub struct Transaction {
    options: TransactionOptions,
    context: TransactionContext,
    bytes: usize,
    stage: TransactionStage,
}

enum TransactionStage {
    Building(Vec<Participant>),
    Running(RunningTransaction),
    Ended,
}

/// A transaction whose participants work.
struct RunningTransaction {
    deadline: Deadline,
    workers: Vec<WorkerHandle>,
    results_rx: mpsc::Receiver<(usize, ParticipantResult)>,
    results: ParticipantResults,
    names: Vec<String>,
    /// For each participant, whether a rollback undoes its effects.
    can_roll_back: Vec<bool>,
}

/// Controls the task of a worker. Dropping it makes the worker roll back.
struct WorkerHandle {
    /// Numbers of the participants that the worker handles.
    participants: Vec<usize>,
    is_store: bool,
    decision: oneshot::Sender<Decision>,
}

impl Transaction {
    pub fn new(options: TransactionOptions, context: TransactionContext) -> Self {
        Self { options, context, bytes: 0, stage: TransactionStage::Building(Vec::new()) }
    }

    /// Adds a participant, which takes so many bytes, and returns its number. If a limit is exceeded or the transaction has
    /// started already, it fails; the next operation reports why.
    pub fn add(&mut self, participant: Participant, bytes: usize) -> usize {
        self.bytes = self.bytes.saturating_add(bytes);
        match &mut self.stage {
            TransactionStage::Building(participants)
                if participants.len() < PARTICIPANTS_MAX && self.bytes <= BYTES_MAX =>
            {
                participants.push(participant);
                participants.len() - 1
            }
            TransactionStage::Building(_) | TransactionStage::Running(_) | TransactionStage::Ended => {
                self.stage = TransactionStage::Ended;
                0
            }
        }
    }

    /// Runs all participants, and commits or rolls back by the policy.
    ///
    /// # Errors
    /// The error that decided. Nothing was committed, unless its phase is `Commit`.
    pub async fn execute(&mut self, policy: Policy) -> Result<ParticipantResults, ResourceError> {
        if let TransactionStage::Building(participants) = &self.stage {
            policy.check(participants.len())?;
        }
        self.start();
        let TransactionStage::Running(running) = &mut self.stage else { return Err(ended()) };
        match running.wait_for_commit(policy).await {
            Ok(()) => self.decide(false).await,
            Err(error) => {
                self.rollback();
                Err(error)
            }
        }
    }

    /// Waits for the next participant with a result; none when all have one.
    ///
    /// # Errors
    /// `TIMED_OUT`; `BAD_OPERATION` when the transaction has ended.
    pub async fn next_result(&mut self) -> Result<Option<(usize, ParticipantResult)>, ResourceError> {
        self.start();
        let TransactionStage::Running(running) = &mut self.stage else { return Err(ended()) };
        let Some(index) = running.next().await? else { return Ok(None) };
        Ok(running.results[index].clone().map(|result| (index, result)))
    }

    /// Commits the participants whose success `next_result` has returned, and rolls the others back.
    ///
    /// # Errors
    /// In phase `Commit`: other participants may have committed.
    pub async fn commit(&mut self) -> Result<(), ResourceError> {
        self.decide(true).await.map(|_| ())
    }

    /// Rolls back what is not committed, without waiting for that.
    pub fn rollback(&mut self) {
        self.stage = TransactionStage::Ended;
    }

    fn start(&mut self) {
        if let TransactionStage::Building(participants) = &mut self.stage {
            let participants = std::mem::take(participants);
            self.stage = TransactionStage::Running(self.run(participants));
        }
    }

    fn run(&self, participants: Vec<Participant>) -> RunningTransaction {
        let TransactionContext { caller, store, background, tasks } = &self.context;
        let deadline = caller.request.deadline_now();
        let deadline = self.options.timeout.map_or(deadline, |timeout| deadline.within(timeout));
        let count = participants.len();
        let names = participants.iter().map(|participant| participant.name().to_owned()).collect();
        let can_roll_back = participants.iter().map(Participant::can_roll_back).collect();
        // There is room for all results, so that no participant waits for the receiver.
        let (results_tx, results_rx) = mpsc::channel(count.max(1));
        let workers = ParticipantWorker::of(participants, store, caller, deadline).into_iter().map(|worker| {
            let (decision, decided) = oneshot::channel();
            let (participants, is_store) = (worker.participants(), worker.is_store());
            let working = worker.run(results_tx.clone(), decided, deadline);
            background.spawn(tasks.run_once("a participant of a transaction", working));
            WorkerHandle { participants, is_store, decision }
        });
        RunningTransaction {
            deadline,
            workers: workers.collect(),
            results_rx,
            results: vec![None; count],
            names,
            can_roll_back,
        }
    }

    /// Commits the participants that have succeeded. `shown`: the module knows the results, and they must not change any more.
    async fn decide(&mut self, shown: bool) -> Result<ParticipantResults, ResourceError> {
        let running = match std::mem::replace(&mut self.stage, TransactionStage::Ended) {
            TransactionStage::Running(running) => running,
            TransactionStage::Building(_) | TransactionStage::Ended => return Err(ended()),
        };
        let sync = self.options.sync_commit;
        let irreversible = running.has_irreversible_effects(None);
        let RunningTransaction { deadline, workers, mut results, names, .. } = running;
        let good = (0..results.len()).filter(|index| matches!(results[*index], Some(Ok(_))));
        let commit_run = Arc::new(CommitRun::new(names, good, irreversible));
        let run = commit_run.clone().run(workers, shown || !sync, deadline, self.context.caller.clone());
        // From here on the commit goes on whatever happens to the module.
        let run = self.context.tasks.run_once("the commit of a transaction", run);
        let run = self.context.background.spawn(run);
        if !sync {
            return Ok(results);
        }
        let committed = match timeout_at(deadline.instant(), run).await {
            Ok(Ok(Some(committed))) => committed?,
            Ok(Ok(None) | Err(_)) => {
                return Err(commit_run.unfinished(ResourceError::HOST_ERROR, "the host's own code panicked"));
            }
            Err(_) => {
                return Err(commit_run.unfinished(ResourceError::TIMED_OUT, "its commit was not done at the deadline"));
            }
        };
        for (index, done) in committed {
            results[index] = Some(Ok(done));
        }
        Ok(results)
    }
}

impl RunningTransaction {
    /// Waits until the policy decides to commit.
    async fn wait_for_commit(&mut self, policy: Policy) -> Result<(), ResourceError> {
        let mut latest = None;
        loop {
            match policy.decide(&self.results, latest) {
                PolicyDecision::Wait => latest = self.next().await?,
                PolicyDecision::Commit => return Ok(()),
                PolicyDecision::Fail(index) => return Err(self.failure(index)),
            }
        }
    }

    /// Waits for the next result. Returns the participant's number; none when all have a result.
    async fn next(&mut self) -> Result<Option<usize>, ResourceError> {
        let Some(silent) = self.results.iter().position(Option::is_none) else { return Ok(None) };
        let missing = |code: &str, text: &str| {
            let recoverable = false;
            Err(ResourceError {
                participant: self.names[silent].clone(),
                index: silent,
                recoverable,
                ..error(Phase::Execute, code, text)
            })
        };
        match timeout_at(self.deadline.instant() + REPORT_GRACE, self.results_rx.recv()).await {
            Ok(Some((index, result))) => {
                let name = &self.names[index];
                let named = |error| ResourceError { participant: name.clone(), index, ..error };
                self.results[index] = Some(result.map_err(named));
                Ok(Some(index))
            }
            Ok(None) => missing(ResourceError::HOST_ERROR, "the host's own code panicked; see the location in its log"),
            Err(_) => missing(ResourceError::TIMED_OUT, "the transaction's deadline has passed"),
        }
    }

    /// Returns whether a participant, other than `but`, has or may have had effects that no rollback undoes.
    fn has_irreversible_effects(&self, but: Option<usize>) -> bool {
        let harmless = |result: &Option<ParticipantResult>| matches!(result, Some(Err(error)) if error.recoverable);
        (0..self.results.len())
            .any(|index| Some(index) != but && !self.can_roll_back[index] && !harmless(&self.results[index]))
    }

    /// The error of a participant as that of the transaction. It is not recoverable if others have had irreversible effects.
    fn failure(&self, index: usize) -> ResourceError {
        let irreversible = self.has_irreversible_effects(Some(index));
        match &self.results[index] {
            Some(Err(error)) => ResourceError { recoverable: error.recoverable && !irreversible, ..error.clone() },
            Some(Ok(_)) | None => ended(),
        }
    }
}

/// An error of the transaction itself.
fn error(phase: Phase, code: &str, text: impl Into<String>) -> ResourceError {
    ResourceError { participant: "transaction".into(), ..ResourceError::harmless(phase, code, text) }
}

fn ended() -> ResourceError {
    let text = format!(
        "the transaction has ended, or was to: more was added after its beginning, more than {PARTICIPANTS_MAX} participants, \
         or more than {} MiB",
        BYTES_MAX >> 20
    );
    error(Phase::Check, ResourceError::BAD_OPERATION, text)
}

#[cfg(test)]
mod tests;
