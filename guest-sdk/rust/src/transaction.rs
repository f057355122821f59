//! Several operations at once, which all take effect or none, as far as the world outside allows: on databases and other
//! resources, on the module's own data, retried calls. Each begins and works at the same time as the others; then a policy
//! says whether what they did is kept.
//!
//! ```no_run
//! use wasmcage_guest::{Result, module, params, sql::Statements, state, transaction};
//!
//! fn order(item: &str) -> Result<i64> {
//!     let row = Statements::new().add("insert into orders (item) values ({item})", params! { item: item });
//!     let mut counts = state::transaction();
//!     let count = counts.increment("orders", 1);
//!
//!     let mut order = transaction();
//!     order.operation("db", row.operation()?);
//!     let counts = order.state(counts)?;
//!     order.retried(module("mail").retried(), "send", (item,))?;
//!     let mut done = order.execute()?;
//!     Ok(done.take(counts)?.take(count)?)
//! }
//! ```
//!
//! Keeping what was done is best effort, not two-phase commit: an error in phase `Commit` says that others may have committed.
//! What the store keeps (the module's data, retried calls) is written in one go and first, so that a key that another request
//! changed meanwhile keeps everything else from being committed. Calls of functions are not undone.

use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::bindings::imports::wasmcage::cage::call::RetriedCall;
use crate::bindings::imports::wasmcage::cage::state::Step;
use crate::bindings::imports::wasmcage::cage::transaction as wit;
use crate::bindings::imports::wasmcage::cage::types::Payload;
use crate::call::{Arguments, CallError, Retried};
use crate::resource::{Operation, Phase, Reply, ResourceError, milliseconds};
use crate::state::{self, StateError};

/// A transaction without participants yet.
pub fn transaction() -> Transaction {
    Transaction { options: wit::Options { sync_commit: true, timeout_ms: None }, participants: Vec::new() }
}

/// Collects participants, which begin to work with [`execute`](Self::execute), [`first`](Self::first),
/// [`quorum`](Self::quorum) or [`begin`](Self::begin). At most 64. Made by [`transaction`].
#[derive(Debug)]
pub struct Transaction {
    options: wit::Options,
    participants: Vec<Participant>,
}

#[derive(Debug)]
enum Participant {
    Operation { resource: String, operation: Operation, begin: Vec<(String, String)>, writes: Vec<String> },
    State(Vec<Step>),
    RetriedCall(RetriedCall),
    Call { cage: Option<String>, module: String, function: String, arguments: Payload },
}

/// What a participant is going to give: exchanged for it by [`Results::take`].
#[derive(Debug)]
pub struct Pending<T> {
    index: usize,
    /// None: a result of another kind.
    make: fn(wit::ParticipantResult) -> Option<Result<T, String>>,
}

/// What participants have come to.
#[derive(Debug)]
pub struct Results(Vec<Option<Result<wit::ParticipantResult, ResourceError>>>);

impl Transaction {
    /// At most this long, and never longer than until the request's deadline.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout_ms = Some(milliseconds(timeout));
        self
    }

    /// The result is there as soon as the decision is made; what fails after that is in the log only.
    pub fn without_waiting_for_commits(mut self) -> Self {
        self.options.sync_commit = false;
        self
    }

    /// An operation on a resource.
    pub fn operation(&mut self, resource: &str, operation: Operation) -> Pending<Reply> {
        self.operation_with(resource, operation, &[], &[])
    }

    /// The same with options for its beginning, such as `("isolation", "serializable")`, and with what it changes, for the
    /// resource's cache of reads.
    pub fn operation_with(
        &mut self,
        resource: &str,
        operation: Operation,
        begin: &[(&str, &str)],
        writes: &[&str],
    ) -> Pending<Reply> {
        let begin = begin.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let writes = writes.iter().map(|&name| name.to_owned()).collect();
        self.add(Participant::Operation { resource: resource.to_owned(), operation, begin, writes }, |result| {
            match result {
                wit::ParticipantResult::Reply(reply) => Some(Ok(reply)),
                _ => None,
            }
        })
    }

    /// Steps on this module's own durable data, collected by [`state::transaction`]. A condition that does not hold is the
    /// code `conflict`.
    ///
    /// # Errors
    /// [`StateError::BadValue`] when a value has no JSON.
    pub fn state(&mut self, steps: state::Transaction) -> Result<Pending<state::Outcomes>, StateError> {
        Ok(self.add(Participant::State(steps.into_steps()?), |result| match result {
            wit::ParticipantResult::State(outcomes) => Some(Ok(state::Outcomes::of(outcomes))),
            _ => None,
        }))
    }

    /// A call that is made in the background, again and again until it succeeds; of `module("mail").retried()` or the like.
    /// Its id.
    ///
    /// # Errors
    /// [`CallError::BadArguments`] when they have no JSON.
    pub fn retried(
        &mut self,
        callee: Retried<'_>,
        function: &str,
        arguments: impl Arguments,
    ) -> Result<Pending<String>, CallError> {
        Ok(self.add(Participant::RetriedCall(callee.record(function, arguments)?), |result| match result {
            wit::ParticipantResult::Id(id) => Some(Ok(id)),
            _ => None,
        }))
    }

    /// A call of a function, in this cage if none is named. It is not undone by a rollback.
    ///
    /// # Errors
    /// [`CallError::BadArguments`] when they have no JSON.
    pub fn call<T: DeserializeOwned>(
        &mut self,
        cage: Option<&str>,
        module: &str,
        function: &str,
        arguments: impl Arguments,
    ) -> Result<Pending<T>, CallError> {
        let arguments = arguments.into_json().map_err(|error| CallError::BadArguments(error.to_string()))?;
        let arguments = Payload::Json(arguments);
        let (module, function) = (module.to_owned(), function.to_owned());
        let participant = Participant::Call { cage: cage.map(str::to_owned), module, function, arguments };
        Ok(self.add(participant, |result| match result {
            wit::ParticipantResult::Value(Payload::Json(json)) => {
                Some(serde_json::from_str(&json).map_err(|error| error.to_string()))
            }
            _ => None,
        }))
    }

    /// Does everything: all take effect, or none. The first participant that fails rolls the others back.
    ///
    /// # Errors
    /// The one that decided.
    pub fn execute(self) -> Result<Results, ResourceError> {
        self.decided_by(wit::Policy::All)
    }

    /// Keeps what the first that succeeds does, and nothing of the others.
    ///
    /// # Errors
    /// The last one, when all have failed.
    pub fn first(self) -> Result<Results, ResourceError> {
        self.decided_by(wit::Policy::First)
    }

    /// Keeps what was done when so many have succeeded; nothing of those that have not by then.
    ///
    /// # Errors
    /// The one that made it impossible.
    pub fn quorum(self, needed: u32) -> Result<Results, ResourceError> {
        self.decided_by(wit::Policy::Quorum(needed))
    }

    /// Has all participants begin to work, for a policy of one's own.
    ///
    /// ```no_run
    /// # use wasmcage_guest::{Result, resource::Operation, transaction};
    /// # fn f() -> Result<()> {
    /// let mut asked = transaction();
    /// let near = asked.operation("near", Operation::of("GET", "/"));
    /// let far = asked.operation("far", Operation::of("GET", "/"));
    /// let mut running = asked.begin();
    /// while let Some(arrived) = running.next()? {
    ///     if arrived.succeeded {
    ///         running.commit()?;
    ///         break;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn begin(self) -> Running {
        let results = Results(self.participants.iter().map(|_| None).collect());
        Running { transaction: self.made(), results }
    }

    fn decided_by(self, policy: wit::Policy) -> Result<Results, ResourceError> {
        Ok(Results::of(self.made().execute(policy)?))
    }

    fn made(self) -> wit::Transaction {
        let transaction = wit::Transaction::new(self.options);
        for participant in self.participants {
            match participant {
                Participant::Operation { resource, operation, begin, writes } => {
                    transaction.add_operation(&resource, &operation, &begin, &writes)
                }
                Participant::State(steps) => transaction.add_state(&steps),
                Participant::RetriedCall(call) => transaction.add_retried_call(&call),
                Participant::Call { cage, module, function, arguments } => {
                    transaction.add_call(cage.as_deref(), &module, &function, &arguments)
                }
            };
        }
        transaction
    }

    fn add<T>(
        &mut self,
        participant: Participant,
        make: fn(wit::ParticipantResult) -> Option<Result<T, String>>,
    ) -> Pending<T> {
        self.participants.push(participant);
        Pending { index: self.participants.len() - 1, make }
    }
}

impl Results {
    fn of(results: wit::Results) -> Self {
        let results = results.into_iter();
        Self(results.map(|result| result.map(|result| result.map_err(ResourceError::from))).collect())
    }

    /// What a participant gave.
    ///
    /// # Errors
    /// The participant's, also when it had come to nothing when it was decided (`not-done`), and when its result is of another
    /// type (`bad-result`).
    pub fn take<T>(&mut self, pending: Pending<T>) -> Result<T, ResourceError> {
        let index = pending.index;
        let none = |code: &str, text: String| {
            let (participant, code) = ("transaction".to_owned(), code.to_owned());
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            ResourceError { participant, index, code, text, recoverable: false, terminal: false, phase: Phase::Execute }
        };
        let result = self.0.get_mut(index).and_then(Option::take);
        let result = result.ok_or_else(|| none("not-done", format!("participant {index} had come to nothing")))?;
        let made = (pending.make)(result?).unwrap_or_else(|| Err("a result of another kind".into()));
        made.map_err(|text| none("bad-result", text))
    }
}

/// A transaction whose participants work. Dropped, it is rolled back.
#[derive(Debug)]
pub struct Running {
    transaction: wit::Transaction,
    results: Results,
}

/// A participant that has come to a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// In the order in which participants were added, from 0.
    pub index: usize,
    pub succeeded: bool,
}

impl Running {
    /// Waits for the next participant that comes to a result; none when all have.
    ///
    /// # Errors
    /// Of the transaction as a whole, such as `timed-out`.
    #[expect(clippy::should_implement_trait, reason = "an iterator would hide that an error is the transaction's")]
    pub fn next(&mut self) -> Result<Option<Arrived>, ResourceError> {
        let Some((index, result)) = self.transaction.next_result()? else { return Ok(None) };
        let arrived = Arrived { index: index as usize, succeeded: result.is_ok() };
        if let Some(known) = self.results.0.get_mut(arrived.index) {
            *known = Some(result.map_err(ResourceError::from));
        }
        Ok(Some(arrived))
    }

    /// Commits those that have succeeded so far, and rolls the others back.
    ///
    /// # Errors
    /// In phase `Commit`: others may have committed.
    pub fn commit(self) -> Result<Results, ResourceError> {
        self.transaction.commit()?;
        Ok(self.results)
    }

    /// Rolls back what was done. Nobody waits for it.
    pub fn rollback(self) -> Results {
        self.transaction.rollback();
        self.results
    }
}
