//! Several operations that all take effect or none, as far as the world outside allows. Each participant works in a task of
//! its own; here what they have come to is collected, and decided upon. Used by `host_api/transaction.rs`.

mod commit;
mod participant;
mod policy;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;
use tokio_util::task::TaskTracker;

use self::commit::Commitment;
pub use self::participant::{Done, ModuleStore, Participant};
pub use self::policy::Policy;
use self::policy::Verdict;
use self::worker::{Decision, Worker};
use crate::{Caller, Phase, ResourceError};
use wasmcage_core::request::Deadline;
use wasmcage_core::task::Tasks;

/// Of one transaction.
const PARTICIPANTS_MAX: usize = 64;
/// Of the operations, steps and arguments of one transaction.
const BYTES_MAX: usize = 64 << 20;

/// Longer than the deadline, so that participants whose time is up can say what they were waiting for.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// What a participant has come to.
pub type ParticipantResult = Result<Done, ResourceError>;
/// Of all of them: none for those that had come to nothing when it was decided.
pub type Results = Vec<Option<ParticipantResult>>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionOptions {
    /// Wait until every participant has committed.
    pub sync_commit: bool,
    /// At most this long, and never longer than the request's deadline.
    pub timeout: Option<Duration>,
}

/// Where a transaction takes place.
#[derive(Clone)]
pub struct Surroundings {
    pub caller: Caller,
    pub store: ModuleStore,
    /// What goes on when nobody waits for it any more: commits, rollbacks.
    pub background: TaskTracker,
    pub tasks: Tasks,
}

/// Dropped before it was committed, it is rolled back.
pub struct Transaction {
    options: TransactionOptions,
    surroundings: Surroundings,
    bytes: usize,
    stage: Stage,
}

enum Stage {
    Building(Vec<Participant>),
    Running(Running),
    Ended,
}

/// Participants at work.
struct Running {
    deadline: Deadline,
    workers: Vec<Working>,
    arriving: mpsc::Receiver<(usize, ParticipantResult)>,
    results: Results,
    names: Vec<String>,
    /// Whether a rollback takes back what the participant does.
    undoes: Vec<bool>,
}

/// A worker's task, from outside. Dropped, it rolls back.
struct Working {
    /// Numbers of the participants that it does the work of.
    participants: Vec<usize>,
    is_store: bool,
    decision: oneshot::Sender<Decision>,
}

impl Transaction {
    pub fn new(options: TransactionOptions, surroundings: Surroundings) -> Self {
        Self { options, surroundings, bytes: 0, stage: Stage::Building(Vec::new()) }
    }

    /// Adds a participant, which takes so many bytes, and returns its number. With too many of either, and when it has begun
    /// to work already, the transaction is at its end, which whatever is done with it next tells.
    pub fn add(&mut self, participant: Participant, bytes: usize) -> usize {
        self.bytes = self.bytes.saturating_add(bytes);
        match &mut self.stage {
            Stage::Building(participants) if participants.len() < PARTICIPANTS_MAX && self.bytes <= BYTES_MAX => {
                participants.push(participant);
                participants.len() - 1
            }
            Stage::Building(_) | Stage::Running(_) | Stage::Ended => {
                self.stage = Stage::Ended;
                0
            }
        }
    }

    /// Does everything, and commits or rolls back as the policy says.
    ///
    /// # Errors
    /// The one that decided; after it, nothing was committed, unless its phase is `Commit`.
    pub async fn execute(&mut self, policy: Policy) -> Result<Results, ResourceError> {
        if let Stage::Building(participants) = &self.stage {
            policy.check(participants.len())?;
        }
        self.start();
        let Stage::Running(running) = &mut self.stage else { return Err(ended()) };
        match running.until(policy).await {
            Ok(()) => self.decide(false).await,
            Err(error) => {
                self.rollback();
                Err(error)
            }
        }
    }

    /// The next participant that has come to a result; none when all have.
    ///
    /// # Errors
    /// `TIMED_OUT`; of its use after its end.
    pub async fn next_result(&mut self) -> Result<Option<(usize, ParticipantResult)>, ResourceError> {
        self.start();
        let Stage::Running(running) = &mut self.stage else { return Err(ended()) };
        let Some(index) = running.next().await? else { return Ok(None) };
        Ok(running.results[index].clone().map(|result| (index, result)))
    }

    /// Commits those whose success `next_result` has returned, and rolls the others back.
    ///
    /// # Errors
    /// In phase `Commit`: others may have committed.
    pub async fn commit(&mut self) -> Result<(), ResourceError> {
        self.decide(true).await.map(|_| ())
    }

    /// Rolls back what is not committed. Nobody waits for it.
    pub fn rollback(&mut self) {
        self.stage = Stage::Ended;
    }

    fn start(&mut self) {
        if let Stage::Building(participants) = &mut self.stage {
            let participants = std::mem::take(participants);
            self.stage = Stage::Running(self.run(participants));
        }
    }

    fn run(&self, participants: Vec<Participant>) -> Running {
        let Surroundings { caller, store, background, tasks } = &self.surroundings;
        let deadline = caller.request.deadline_now();
        let deadline = self.options.timeout.map_or(deadline, |timeout| deadline.within(timeout));
        let count = participants.len();
        let names = participants.iter().map(|participant| participant.name().to_owned()).collect();
        let undoes = participants.iter().map(Participant::undoes).collect();
        // Room for all: who has come to a result waits for nobody.
        let (arrived, arriving) = mpsc::channel(count.max(1));
        let workers = Worker::of(participants, store, caller, deadline).into_iter().map(|worker| {
            let (decision, decided) = oneshot::channel();
            let (participants, is_store) = (worker.participants(), worker.is_store());
            let working = worker.run(arrived.clone(), decided, deadline);
            background.spawn(tasks.run_once("a participant of a transaction", working));
            Working { participants, is_store, decision }
        });
        Running { deadline, workers: workers.collect(), arriving, results: vec![None; count], names, undoes }
    }

    /// Commits what has arrived well. `shown`: the module knows the results, and they must not change any more.
    async fn decide(&mut self, shown: bool) -> Result<Results, ResourceError> {
        let running = match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Running(running) => running,
            Stage::Building(_) | Stage::Ended => return Err(ended()),
        };
        let sync = self.options.sync_commit;
        let for_good = running.did_for_good(None);
        let Running { deadline, workers, mut results, names, .. } = running;
        let good = (0..results.len()).filter(|index| matches!(results[*index], Some(Ok(_))));
        let commitment = Arc::new(Commitment::new(names, good, for_good));
        let carried_out =
            commitment.clone().carry_out(workers, shown || !sync, deadline, self.surroundings.caller.clone());
        // From here on it is carried out whatever becomes of the module.
        let carried_out = self.surroundings.tasks.run_once("the commit of a transaction", carried_out);
        let carried_out = self.surroundings.background.spawn(carried_out);
        if !sync {
            return Ok(results);
        }
        let committed = match timeout_at(deadline.instant(), carried_out).await {
            Ok(Ok(Some(committed))) => committed?,
            Ok(Ok(None) | Err(_)) => {
                return Err(commitment.unfinished(ResourceError::HOST_ERROR, "the host's own code panicked"));
            }
            Err(_) => {
                return Err(commitment.unfinished(ResourceError::TIMED_OUT, "it had not committed at the deadline"));
            }
        };
        for (index, done) in committed {
            results[index] = Some(Ok(done));
        }
        Ok(results)
    }
}

impl Running {
    /// Waits until the policy says to commit.
    async fn until(&mut self, policy: Policy) -> Result<(), ResourceError> {
        let mut latest = None;
        loop {
            match policy.verdict(&self.results, latest) {
                Verdict::Wait => latest = self.next().await?,
                Verdict::Commit => return Ok(()),
                Verdict::Fail(index) => return Err(self.failure(index)),
            }
        }
    }

    /// Waits for the next result and returns its number; none when all have come.
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
        match timeout_at(self.deadline.instant() + LAST_WORDS, self.arriving.recv()).await {
            Ok(Some((index, result))) => {
                let name = &self.names[index];
                let named = |error| ResourceError { participant: name.clone(), index, ..error };
                self.results[index] = Some(result.map_err(named));
                Ok(Some(index))
            }
            Ok(None) => missing(ResourceError::HOST_ERROR, "the host's own code panicked; its log tells where"),
            Err(_) => missing(ResourceError::TIMED_OUT, "the transaction's deadline came first"),
        }
    }

    /// Whether a participant, other than this one, did or may have done what no rollback takes back.
    fn did_for_good(&self, but: Option<usize>) -> bool {
        let harmless = |result: &Option<ParticipantResult>| matches!(result, Some(Err(error)) if error.recoverable);
        (0..self.results.len())
            .any(|index| Some(index) != but && !self.undoes[index] && !harmless(&self.results[index]))
    }

    /// The error of a participant, as that of the whole: what others did for good makes it so.
    fn failure(&self, index: usize) -> ResourceError {
        let for_good = self.did_for_good(Some(index));
        match &self.results[index] {
            Some(Err(error)) => ResourceError { recoverable: error.recoverable && !for_good, ..error.clone() },
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
