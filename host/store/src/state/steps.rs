//! Does the steps of one transaction of a module.

use super::keys::{self, Ends};
use super::usage::Usage;
use super::{Quota, STEPS_MAX, StateValue, Step, StepResult, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};
use crate::access::Writer;
use crate::{Space, StoreError, calls};

/// Checks names and sizes before anything is done.
pub(super) fn check(steps: &[Step]) -> Result<(), StoreError> {
    if steps.len() > STEPS_MAX {
        let text = format!("a transaction has {} steps, {STEPS_MAX} are allowed", steps.len());
        return Err(StoreError::Invalid(text));
    }
    for step in steps {
        let (name, value) = match step {
            Step::Retry(_) => continue,
            Step::Push(name, value) | Step::Set(name, value) => (name, Some(value)),
            Step::Check(name, value) => (name, value.as_ref()),
            Step::Get(name) | Step::Delete(name) | Step::Increment(name, _) | Step::Pop(name) | Step::Length(name) => {
                (name, None)
            }
        };
        match step {
            Step::Push(..) | Step::Pop(_) | Step::Length(_) => keys::check_queue(name)?,
            _ => keys::check_key(name)?,
        }
        let value_bytes = value.map_or(0, |value| value.content().len());
        if value_bytes > VALUE_BYTES_MAX {
            let text = format!("a value has {value_bytes} bytes, {VALUE_BYTES_MAX} are allowed: {name}");
            return Err(StoreError::Invalid(text));
        }
    }
    Ok(())
}

fn check_bytes(bytes: usize, what: &str) -> Result<(), StoreError> {
    match bytes > TRANSACTION_BYTES_MAX {
        true => Err(StoreError::Invalid(format!("{what} {} MiB", TRANSACTION_BYTES_MAX >> 20))),
        false => Ok(()),
    }
}

pub(super) struct StepRunner<'w, 'a> {
    writer: &'w mut Writer<'a>,
    module: &'w str,
    usage: Usage,
    /// Bytes of values that the steps have returned.
    returned_bytes: usize,
}

impl<'w, 'a> StepRunner<'w, 'a> {
    pub(super) fn new(writer: &'w mut Writer<'a>, module: &'w str) -> Result<Self, StoreError> {
        let usage = Usage::of(writer, module)?;
        Ok(Self { writer, module, usage, returned_bytes: 0 })
    }

    pub(super) fn finish(self, quota: Quota) -> Result<(), StoreError> {
        self.usage.finish(self.writer, self.module, quota)
    }

    pub(super) fn perform(&mut self, number: usize, step: &Step) -> Result<StepResult, StoreError> {
        let outcome = self.outcome(number, step)?;
        check_bytes(self.writer.bytes(), "a transaction writes more than")?;
        Ok(outcome)
    }

    fn outcome(&mut self, number: usize, step: &Step) -> Result<StepResult, StoreError> {
        match step {
            Step::Get(key) => {
                let value = self.get(key)?;
                self.value_result(value)
            }
            Step::Set(key, value) => self.set(key, Some(value)).map(|_| StepResult::Done),
            Step::Delete(key) => self.set(key, None).map(StepResult::Deleted),
            Step::Check(key, expected) => match self.get(key)? == *expected {
                true => Ok(StepResult::Done),
                false => Err(StoreError::Conflict(number)),
            },
            Step::Increment(key, by) => self.increment(key, *by).map(StepResult::Number),
            Step::Push(queue, value) => self.push(queue, value),
            Step::Pop(queue) => {
                let value = self.pop(queue)?;
                self.value_result(value)
            }
            Step::Length(queue) => Ok(length(self.ends(&keys::queue(self.module, queue))?)),
            Step::Retry(call) => calls::accept(self.writer, call).map(StepResult::Id),
        }
    }

    fn value_result(&mut self, value: Option<StateValue>) -> Result<StepResult, StoreError> {
        self.returned_bytes += value.as_ref().map_or(0, |value| value.content().len());
        check_bytes(self.returned_bytes, "the steps of a transaction return more than")?;
        Ok(StepResult::Value(value))
    }

    fn get(&self, key: &str) -> Result<Option<StateValue>, StoreError> {
        let record = self.writer.get(Space::Keys, &keys::key(self.module, key))?;
        record.map(|record| StateValue::decode(&record)).transpose()
    }

    /// Returns whether the key existed.
    fn set(&mut self, key: &str, value: Option<&StateValue>) -> Result<bool, StoreError> {
        let stored_key = keys::key(self.module, key);
        let old = self.writer.get(Space::Keys, &stored_key)?;
        if let Some(old) = &old {
            self.usage.subtract(key.len() as u64 + StateValue::content_bytes(old));
        }
        match value {
            Some(value) => {
                self.usage.add((key.len() + value.content().len()) as u64);
                self.writer.put(Space::Keys, stored_key, value.encode());
            }
            None if old.is_some() => self.writer.remove(Space::Keys, stored_key),
            None => {}
        }
        Ok(old.is_some())
    }

    fn increment(&mut self, key: &str, by: i64) -> Result<i64, StoreError> {
        let number = match self.get(key)? {
            None => Some(0),
            Some(StateValue::Json(text)) => text.trim().parse::<i64>().ok(),
            Some(StateValue::Bytes(_)) => None,
        };
        let number =
            number.ok_or_else(|| StoreError::Invalid(format!("the value of {key} is not a 64-bit integer")))?;
        let sum = number.checked_add(by);
        let sum = sum.ok_or_else(|| {
            StoreError::Invalid(format!("{key}: the sum of {number} and {by} does not fit in 64 bits"))
        })?;
        self.set(key, Some(&StateValue::Json(sum.to_string())))?;
        Ok(sum)
    }

    fn ends(&self, queue: &[u8]) -> Result<Ends, StoreError> {
        self.writer.get(Space::Queues, queue)?.map_or(Ok(Ends::default()), |record| Ends::decode(&record))
    }

    fn push(&mut self, queue: &str, value: &StateValue) -> Result<StepResult, StoreError> {
        let queue = keys::queue(self.module, queue);
        let mut ends = self.ends(&queue)?;
        self.writer.put(Space::Queues, keys::entry(&queue, ends.next), value.encode());
        self.usage.add(value.content().len() as u64);
        ends.next += 1;
        self.writer.put(Space::Queues, queue, ends.encode());
        Ok(length(ends))
    }

    fn pop(&mut self, queue: &str) -> Result<Option<StateValue>, StoreError> {
        let queue = keys::queue(self.module, queue);
        let mut ends = self.ends(&queue)?;
        if ends.length() == 0 {
            return Ok(None);
        }
        let first = keys::entry(&queue, ends.first);
        let record = self.writer.get(Space::Queues, &first)?.ok_or_else(|| StoreError::damaged("a queue"))?;
        self.usage.subtract(StateValue::content_bytes(&record));
        self.writer.remove(Space::Queues, first);
        ends.first += 1;
        // An empty queue has no record.
        match ends.length() {
            0 => self.writer.remove(Space::Queues, queue),
            _ => self.writer.put(Space::Queues, queue, ends.encode()),
        }
        StateValue::decode(&record).map(Some)
    }
}

fn length(ends: Ends) -> StepResult {
    StepResult::Number(i64::try_from(ends.length()).unwrap_or(i64::MAX))
}
