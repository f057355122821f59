//! Transactions of several steps on keys and queues, of which all are done or none.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{StateError, from_payload, state, to_payload};
use crate::bindings::imports::wasmcage::cage::types::Payload;
use crate::call::{Arguments, Retried};

/// Makes a transaction without steps. [`Transaction::commit`] does all steps in order, or none. The [`Pending`] that a step
/// returns is exchanged for its result by [`Outcomes::take`].
///
/// ```no_run
/// # use wasmcage_guest::{Result, state};
/// # fn f() -> Result<()> {
/// let mut order = state::transaction();
/// order.check("open", Some(&true));
/// let number = order.increment("orders", 1);
/// let first = order.pop::<String>("waiting");
/// order.set("last", "Alice");
/// let mut done = order.commit()?;
/// let (number, first) = (done.take(number)?, done.take(first)?);
/// # Ok(()) }
/// ```
pub fn transaction() -> Transaction {
    Transaction { steps: Vec::new(), error: None }
}

/// Collects steps, made by [`transaction`].
#[derive(Debug)]
pub struct Transaction {
    steps: Vec<state::Step>,
    /// The error of the first value that cannot be converted to JSON.
    error: Option<StateError>,
}

/// The future result of a step, which [`Outcomes::take`] exchanges for the result. It may be dropped.
#[derive(Debug)]
pub struct Pending<T> {
    step: usize,
    /// Converts the result; none if it is of another kind.
    make: fn(state::Outcome) -> Option<Result<T, StateError>>,
}

/// The results of a transaction's steps, made by [`Transaction::commit`].
#[derive(Debug)]
pub struct Outcomes(Vec<Option<state::Outcome>>);

impl Transaction {
    /// Adds a step whose result is the value of a key, after the earlier steps.
    pub fn get<T: DeserializeOwned>(&mut self, key: &str) -> Pending<Option<T>> {
        self.pending(state::Step::Get(key.to_owned()), value)
    }

    pub fn set<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) {
        let value = self.payload(value);
        self.set_raw(key, value);
    }

    pub fn set_bytes(&mut self, key: &str, value: impl Into<Vec<u8>>) {
        self.set_raw(key, Payload::Bytes(value.into()));
    }

    pub fn set_raw(&mut self, key: &str, value: Payload) {
        self.steps.push(state::Step::Set((key.to_owned(), value)));
    }

    /// Adds a step that removes a key. The result is whether the key existed.
    pub fn delete(&mut self, key: &str) -> Pending<bool> {
        self.pending(state::Step::Delete(key.to_owned()), |outcome| match outcome {
            state::Outcome::Deleted(deleted) => Some(Ok(deleted)),
            _ => None,
        })
    }

    /// Adds a condition: unless the key has this value or, with `None`, does not exist, no step is done, and
    /// [`StateError::Conflict`] has the index of this step.
    pub fn check<T: Serialize + ?Sized>(&mut self, key: &str, expected: Option<&T>) {
        let expected = expected.map(|value| self.payload(value));
        self.check_raw(key, expected);
    }

    pub fn check_raw(&mut self, key: &str, expected: Option<Payload>) {
        self.steps.push(state::Step::Check((key.to_owned(), expected)));
    }

    /// Adds a step that adds to a number. The result is the sum.
    pub fn increment(&mut self, key: &str, by: i64) -> Pending<i64> {
        self.pending(state::Step::Increment((key.to_owned(), by)), |outcome| match outcome {
            state::Outcome::Number(sum) => Some(Ok(sum)),
            _ => None,
        })
    }

    /// Adds a step that adds an entry to a queue. The result is the queue's new length.
    pub fn push<T: Serialize + ?Sized>(&mut self, queue: &str, entry: &T) -> Pending<u64> {
        let entry = self.payload(entry);
        self.push_raw(queue, entry)
    }

    /// As [`push`](Self::push), with an unconverted entry.
    pub fn push_raw(&mut self, queue: &str, entry: Payload) -> Pending<u64> {
        self.pending(state::Step::QueuePush((queue.to_owned(), entry)), length)
    }

    /// Adds a step that takes the first entry of a queue. The result is none when the queue is empty.
    pub fn pop<T: DeserializeOwned>(&mut self, queue: &str) -> Pending<Option<T>> {
        self.pending(state::Step::QueuePop(queue.to_owned()), value)
    }

    /// Adds a step whose result is the number of entries of a queue, after the earlier steps.
    pub fn queue_len(&mut self, queue: &str) -> Pending<u64> {
        self.pending(state::Step::QueueLength(queue.to_owned()), length)
    }

    /// Adds a call that is retried in the background until it succeeds. The result is its id.
    ///
    /// ```no_run
    /// # use wasmcage_guest::{Result, module, state};
    /// # fn f() -> Result<()> {
    /// let mut order = state::transaction();
    /// order.check("open", Some(&true));
    /// order.retried(module("mail").retried(), "send", ("alice@example.org", "Thank you"));
    /// order.commit()?;
    /// # Ok(()) }
    /// ```
    pub fn retried(&mut self, callee: Retried<'_>, function: &str, arguments: impl Arguments) -> Pending<String> {
        let call = match callee.record(function, arguments) {
            Ok(call) => call,
            Err(error) => {
                self.fail(StateError::BadValue(error.to_string()));
                callee.record_raw(function, Payload::Json("{}".into()))
            }
        };
        self.pending(state::Step::RetriedCall(call), |outcome| match outcome {
            state::Outcome::Id(id) => Some(Ok(id)),
            _ => None,
        })
    }

    /// Does all steps, in order, or none. They are durable when this returns.
    ///
    /// # Errors
    /// [`StateError::Conflict`] when a `check` did not hold; [`StateError::BadValue`] when a value cannot be converted to JSON.
    /// See the other kinds.
    pub fn commit(self) -> Result<Outcomes, StateError> {
        Ok(Outcomes::of(state::transact(&self.into_steps()?)?))
    }

    pub(crate) fn into_steps(self) -> Result<Vec<state::Step>, StateError> {
        self.error.map_or(Ok(self.steps), Err)
    }

    fn pending<T>(
        &mut self,
        step: state::Step,
        make: fn(state::Outcome) -> Option<Result<T, StateError>>,
    ) -> Pending<T> {
        self.steps.push(step);
        Pending { step: self.steps.len() - 1, make }
    }

    fn payload<T: Serialize + ?Sized>(&mut self, value: &T) -> Payload {
        to_payload(value).unwrap_or_else(|error| {
            self.fail(error);
            Payload::Json("null".into())
        })
    }

    fn fail(&mut self, error: StateError) {
        self.error.get_or_insert(error);
    }
}

impl Outcomes {
    pub(crate) fn of(outcomes: Vec<state::Outcome>) -> Self {
        Self(outcomes.into_iter().map(Some).collect())
    }

    /// Takes the result of a step.
    ///
    /// # Errors
    /// [`StateError::BadValue`] when the value does not fit the type, or the step belongs to another transaction.
    pub fn take<T>(&mut self, pending: Pending<T>) -> Result<T, StateError> {
        let outcome = self.0.get_mut(pending.step).and_then(Option::take);
        outcome.and_then(pending.make).unwrap_or_else(|| {
            Err(StateError::BadValue(format!("step {} of this transaction is another one", pending.step)))
        })
    }
}

fn value<T: DeserializeOwned>(outcome: state::Outcome) -> Option<Result<Option<T>, StateError>> {
    match outcome {
        state::Outcome::Value(value) => Some(value.map(|value| from_payload("transaction", value)).transpose()),
        _ => None,
    }
}

fn length(outcome: state::Outcome) -> Option<Result<u64, StateError>> {
    match outcome {
        state::Outcome::Number(length) => Some(Ok(length.unsigned_abs())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_keep_their_order_and_outcomes_find_their_steps() {
        let mut steps = transaction();
        steps.check("a", None::<&()>);
        let sum = steps.increment("b", 2);
        let entry = steps.pop::<String>("q");
        let other = steps.get::<u8>("c");
        assert_eq!(steps.steps.len(), 4);
        assert_eq!(steps.steps[0], state::Step::Check(("a".into(), None)));
        let json = |text: &str| state::Outcome::Value(Some(Payload::Json(text.into())));
        let outcomes = [state::Outcome::Done, state::Outcome::Number(2), json("\"x\""), json("\"y\"")];
        let mut outcomes = Outcomes::of(outcomes.into());
        assert_eq!(outcomes.take(sum), Ok(2));
        assert_eq!(outcomes.take(entry), Ok(Some("x".into())));
        assert!(matches!(outcomes.take(other), Err(StateError::BadValue(_))));
        let foreign = transaction().increment("b", 1);
        assert!(matches!(outcomes.take(foreign), Err(StateError::BadValue(_))));
    }

    #[test]
    fn a_value_without_json_ends_the_transaction() {
        let mut steps = transaction();
        steps.set("a", &std::collections::BTreeMap::from([((1, 2), 3)]));
        assert!(matches!(steps.commit(), Err(StateError::BadValue(text)) if text.contains("key must be a string")));
        let mut steps = transaction();
        steps.retried(crate::module("m").retried(), "f", (std::collections::BTreeMap::from([((1, 2), 3)]),));
        assert!(matches!(steps.commit(), Err(StateError::BadValue(text)) if text.contains("key must be a string")));
    }
}
