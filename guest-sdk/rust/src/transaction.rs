//! Transactions of several operations that all take effect or none, as far as the other sides allow: operations on databases and
//! other resources, steps on the module's own data, retried calls. All work at the same time; then a policy decides whether
//! they are committed.
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
//! Committing is best effort, not a two-phase commit: after an error in phase `Commit`, others may have committed. Writes to the
//! store (the module's data, retried calls) are done together and first, so that nothing else is committed if another request
//! has changed a key meanwhile. Calls of functions are not undone.

use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::bindings::imports::wasmcage::cage::call::RetriedCall;
use crate::bindings::imports::wasmcage::cage::state::Step;
use crate::bindings::imports::wasmcage::cage::transaction as wit;
use crate::bindings::imports::wasmcage::cage::types::Payload;
use crate::call::{Arguments, CallError, Retried};
use crate::resource::{Operation, Phase, Reply, ResourceError, milliseconds};
use crate::state::{self, StateError};

/// Makes a transaction without participants.
pub fn transaction() -> Transaction {
    Transaction { options: wit::Options { sync_commit: true, timeout_ms: None }, participants: Vec::new() }
}

/// Collects up to 64 participants, which begin to work with [`execute`](Self::execute), [`first`](Self::first),
/// [`quorum`](Self::quorum) or [`begin`](Self::begin). Made by [`transaction`].
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

/// The future result of a participant, which [`Results::take`] exchanges for the result.
#[derive(Debug)]
pub struct Pending<T> {
    index: usize,
    /// Converts the result; none if it is of another kind.
    make: fn(wit::ParticipantResult) -> Option<Result<T, String>>,
}

/// The results of participants.
#[derive(Debug)]
pub struct Results(Vec<Option<Result<wit::ParticipantResult, ResourceError>>>);

impl Transaction {
    /// Sets the timeout; the request's deadline holds anyway.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout_ms = Some(milliseconds(timeout));
        self
    }

    /// Returns the result as soon as the decision is made. Commits that fail after that are only logged.
    pub fn without_waiting_for_commits(mut self) -> Self {
        self.options.sync_commit = false;
        self
    }

    /// Adds an operation on a resource.
    pub fn operation(&mut self, resource: &str, operation: Operation) -> Pending<Reply> {
        self.operation_with(resource, operation, &[], &[])
    }

    /// Adds an operation with options for its beginning, such as `("isolation", "serializable")`, and the names of what it
    /// changes, for the resource's cache of reads.
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

    /// Adds steps on this module's durable data, collected by [`state::transaction`]. A condition that does not hold is an error
    /// with the code `conflict`.
    ///
    /// # Errors
    /// [`StateError::BadValue`] when a value cannot be converted to JSON.
    pub fn state(&mut self, steps: state::Transaction) -> Result<Pending<state::Outcomes>, StateError> {
        Ok(self.add(Participant::State(steps.into_steps()?), |result| match result {
            wit::ParticipantResult::State(outcomes) => Some(Ok(state::Outcomes::of(outcomes))),
            _ => None,
        }))
    }

    /// Adds a call that is retried in the background until it succeeds, by `module("mail").retried()` or the like. The result is
    /// its id.
    ///
    /// # Errors
    /// [`CallError::BadArguments`] when the arguments cannot be converted to JSON.
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

    /// Adds a call of a function, of this cage if `cage` is none. A rollback does not undo it.
    ///
    /// # Errors
    /// [`CallError::BadArguments`] when the arguments cannot be converted to JSON.
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

    /// Runs all participants: all take effect, or none. The first failure rolls the others back.
    ///
    /// # Errors
    /// The error that decided.
    pub fn execute(self) -> Result<Results, ResourceError> {
        self.decided_by(wit::Policy::All)
    }

    /// Commits the first participant that succeeds, and rolls the others back.
    ///
    /// # Errors
    /// The error of the last participant, when all have failed.
    pub fn first(self) -> Result<Results, ResourceError> {
        self.decided_by(wit::Policy::First)
    }

    /// Commits when so many participants have succeeded, and rolls the others back.
    ///
    /// # Errors
    /// The error that made it impossible.
    pub fn quorum(self, needed: u32) -> Result<Results, ResourceError> {
        self.decided_by(wit::Policy::Quorum(needed))
    }

    /// Starts all participants, for a policy of the module's own.
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

    /// Takes the result of a participant.
    ///
    /// # Errors
    /// The participant's; `not-done` when it had no result yet when the transaction was decided; `bad-result` when its result does
    /// not fit the type.
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

/// A transaction whose participants work. Dropping it rolls it back.
#[derive(Debug)]
pub struct Running {
    transaction: wit::Transaction,
    results: Results,
}

/// A participant that has a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Number of the participant in the order of addition, from 0.
    pub index: usize,
    pub succeeded: bool,
}

impl Running {
    /// Waits for the next participant with a result; none when all have one.
    ///
    /// # Errors
    /// Those of the transaction as a whole, such as `timed-out`.
    #[expect(clippy::should_implement_trait, reason = "an iterator would hide that an error is the transaction's")]
    pub fn next(&mut self) -> Result<Option<Arrived>, ResourceError> {
        let Some((index, result)) = self.transaction.next_result()? else { return Ok(None) };
        let arrived = Arrived { index: index as usize, succeeded: result.is_ok() };
        if let Some(known) = self.results.0.get_mut(arrived.index) {
            *known = Some(result.map_err(ResourceError::from));
        }
        Ok(Some(arrived))
    }

    /// Commits the participants that have succeeded so far, and rolls the others back.
    ///
    /// # Errors
    /// In phase `Commit`: other participants may have committed.
    pub fn commit(self) -> Result<Results, ResourceError> {
        self.transaction.commit()?;
        Ok(self.results)
    }

    /// Rolls everything back, without waiting for that.
    pub fn rollback(self) -> Results {
        self.transaction.rollback();
        self.results
    }
}
