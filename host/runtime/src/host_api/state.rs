//! Implements `wasmcage:cage/state`: a module's durable keys and queues.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::bindings::state::{
    Host, Outcome as WitOutcome, Page as WitPage, Range as WitRange, StateError, Step as WitStep,
};
use super::bindings::types::Payload;
use super::{GuestState, Home};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Deadline;
use wasmcage_store::{Page, Range, StateValue, Step, StepResult, Store, StoreError};

impl Host for GuestState {
    async fn get(&mut self, key: String) -> Result<Option<Payload>, StateError> {
        let value = self.store().await?.get(&key).await?;
        Ok(value.map(Payload::from))
    }

    async fn set(&mut self, key: String, value: Payload) -> Result<(), StateError> {
        self.store().await?.write(Step::Set(key, value.try_into()?)).await?;
        Ok(())
    }

    async fn delete(&mut self, key: String) -> Result<bool, StateError> {
        match self.store().await?.write(Step::Delete(key)).await? {
            StepResult::Deleted(deleted) => Ok(deleted),
            other => Err(unexpected(&other)),
        }
    }

    async fn compare_and_set(
        &mut self,
        key: String,
        expected: Option<Payload>,
        value: Option<Payload>,
    ) -> Result<bool, StateError> {
        let expected = expected.map(StateValue::try_from).transpose()?;
        let change = match value {
            Some(value) => Step::Set(key.clone(), value.try_into()?),
            None => Step::Delete(key.clone()),
        };
        match self.store().await?.transact(vec![Step::Check(key, expected), change]).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn increment(&mut self, key: String, by: i64) -> Result<i64, StateError> {
        number(&self.store().await?.write(Step::Increment(key, by)).await?)
    }

    async fn scan(&mut self, range: WitRange, limit: u32, cursor: Option<String>) -> Result<WitPage, StateError> {
        let WitRange { prefix, from, to, descending } = range;
        let range = Range { prefix, from, to, descending };
        let page = self.store().await?.scan(range, limit as usize, cursor).await?;
        let entries = page.entries.into_iter().map(|(key, value)| (key, value.into())).collect();
        Ok(WitPage { entries, next: page.next })
    }

    async fn queue_push(&mut self, queue: String, entry: Payload) -> Result<u64, StateError> {
        let length = number(&self.store().await?.write(Step::Push(queue, entry.try_into()?)).await?)?;
        Ok(length.unsigned_abs())
    }

    async fn queue_pop(&mut self, queue: String) -> Result<Option<Payload>, StateError> {
        match self.store().await?.write(Step::Pop(queue)).await? {
            StepResult::Value(entry) => Ok(entry.map(Payload::from)),
            other => Err(unexpected(&other)),
        }
    }

    async fn queue_peek(&mut self, queue: String, limit: u32) -> Result<Vec<Payload>, StateError> {
        let store = self.store().await?;
        let entries = store.read(move |store, module| store.peek(module, &queue, limit as usize)).await?;
        Ok(entries.into_iter().map(Payload::from).collect())
    }

    async fn queue_length(&mut self, queue: String) -> Result<u64, StateError> {
        let store = self.store().await?;
        Ok(store.read(move |store, module| store.length(module, &queue)).await?)
    }

    async fn transact(&mut self, steps: Vec<WitStep>) -> Result<Vec<WitOutcome>, StateError> {
        let steps = self.state_steps(steps)?;
        let outcomes = self.store().await?.transact(steps).await?;
        Ok(outcomes.into_iter().map(WitOutcome::from).collect())
    }
}

/// The module's part of the cage's store, for one request.
pub(super) struct ModuleStore {
    store: Arc<Store>,
    home: Arc<Home>,
    deadline: Deadline,
}

impl ModuleStore {
    /// Reads without blocking the lane.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let home = self.home.clone();
        self.store.read_without_blocking(move |store| work(store, &home.module)).await
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<StateValue>, StoreError> {
        if self.store.fits_in_memory() {
            return self.store.get(&self.home.module, key);
        }
        let key = key.to_owned();
        self.read(move |store, module| store.get(module, &key)).await
    }

    pub(super) async fn scan(&self, range: Range, limit: usize, cursor: Option<String>) -> Result<Page, StoreError> {
        self.read(move |store, module| store.scan(module, &range, limit, cursor.as_deref())).await
    }

    /// Makes all steps or none, by the request's deadline.
    pub(super) async fn transact(&self, steps: Vec<Step>) -> Result<Vec<StepResult>, StoreError> {
        self.store.transact(&self.home.module, self.home.settings.state, steps, None, self.deadline).await
    }

    pub(super) async fn write(&self, step: Step) -> Result<StepResult, StoreError> {
        let outcome = self.transact(vec![step]).await?.pop();
        outcome.ok_or_else(|| StoreError::Unavailable("a step came to nothing".into()))
    }
}

impl GuestState {
    /// Returns the module's store as soon as it can be read without waiting, or at the deadline.
    ///
    /// # Errors
    /// `Unavailable` while the module is being loaded.
    pub(super) async fn store(&mut self) -> Result<ModuleStore, StoreError> {
        if self.request.is_none() {
            return Err(StoreError::Unavailable("no request is worked on while the module is being loaded".into()));
        }
        let store = self.home.services.store.clone();
        // The operation that follows returns the error, if there is one.
        let _ = tokio::time::timeout_at(self.deadline().instant(), store.ready()).await;
        Ok(ModuleStore { store, home: self.home.clone(), deadline: self.deadline() })
    }

    /// Converts a guest's steps to those of the store. Checks retried calls and gives them their ids.
    pub(super) fn state_steps(&self, steps: Vec<WitStep>) -> Result<Vec<Step>, StateError> {
        let numbered = steps.into_iter().enumerate();
        let steps = numbered.map(|(number, step)| {
            self.state_step(step).map_err(|error| match error {
                StateError::Invalid(text) => StateError::Invalid(format!("step {number}: {text}")),
                StateError::Unavailable(text) => StateError::Unavailable(format!("step {number}: {text}")),
                other => other,
            })
        });
        steps.collect()
    }

    fn state_step(&self, step: WitStep) -> Result<Step, StateError> {
        Ok(match step {
            WitStep::Get(key) => Step::Get(key),
            WitStep::Set((key, value)) => Step::Set(key, value.try_into()?),
            WitStep::Delete(key) => Step::Delete(key),
            WitStep::Check((key, value)) => Step::Check(key, value.map(StateValue::try_from).transpose()?),
            WitStep::Increment((key, by)) => Step::Increment(key, by),
            WitStep::QueuePush((queue, entry)) => Step::Push(queue, entry.try_into()?),
            WitStep::QueuePop(queue) => Step::Pop(queue),
            WitStep::QueueLength(queue) => Step::Length(queue),
            WitStep::RetriedCall(call) => {
                let (dispatcher, request) =
                    self.calling().map_err(|error| StateError::Unavailable(format!("{error:?}")))?;
                let call = dispatcher.new_retried_call(&self.home, &request, call.into())?;
                Step::Retry(Box::new(call))
            }
        })
    }
}

fn number(outcome: &StepResult) -> Result<i64, StateError> {
    match outcome {
        StepResult::Number(number) => Ok(*number),
        other => Err(unexpected(other)),
    }
}

/// Returns the error for an unexpected result of the store. It is a bug of the host, so the guest is not ended with a trap.
fn unexpected(outcome: &StepResult) -> StateError {
    StateError::Unavailable(format!("the store answered something else: {outcome:?}"))
}

impl From<StateValue> for Payload {
    fn from(value: StateValue) -> Self {
        match value {
            StateValue::Json(json) => Self::Json(json),
            StateValue::Bytes(bytes) => Self::Bytes(bytes),
        }
    }
}

/// Checks that a value to be stored as JSON is valid JSON, so that later readers can rely on it.
impl TryFrom<Payload> for StateValue {
    type Error = StateError;

    fn try_from(payload: Payload) -> Result<Self, StateError> {
        match payload {
            Payload::Json(json) => match serde_json::from_str::<IgnoredAny>(&json) {
                Ok(_) => Ok(Self::Json(json)),
                Err(error) => Err(StateError::Invalid(format!("a value is no JSON: {error}"))),
            },
            Payload::Bytes(bytes) => Ok(Self::Bytes(bytes)),
        }
    }
}

impl From<StepResult> for WitOutcome {
    fn from(outcome: StepResult) -> Self {
        match outcome {
            StepResult::Done => Self::Done,
            StepResult::Value(value) => Self::Value(value.map(Payload::from)),
            StepResult::Deleted(deleted) => Self::Deleted(deleted),
            StepResult::Number(number) => Self::Number(number),
            StepResult::Id(id) => Self::Id(id),
        }
    }
}

impl From<StoreError> for StateError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid(text) => Self::Invalid(text),
            StoreError::QuotaExceeded(text) => Self::QuotaExceeded(text),
            StoreError::Conflict(step) => Self::Conflict(u32::try_from(step).unwrap_or(u32::MAX)),
            StoreError::Unavailable(text) => Self::Unavailable(text),
            StoreError::TimedOut => Self::TimedOut(error.to_string()),
        }
    }
}

/// Converts the error of a retried call that cannot be a step.
impl From<DispatchError> for StateError {
    fn from(error: DispatchError) -> Self {
        match error {
            DispatchError::DeadlineExceeded(_) => Self::TimedOut(error.to_string()),
            DispatchError::Unreachable(_)
            | DispatchError::Overloaded(_)
            | DispatchError::Draining
            | DispatchError::Failed(_)
            | DispatchError::Trap(_)
            | DispatchError::Lost(_)
            | DispatchError::Host(_) => Self::Unavailable(error.to_string()),
            DispatchError::BadRequest(_)
            | DispatchError::NoSuchCage(_)
            | DispatchError::NoSuchModule(_)
            | DispatchError::NoSuchFunction(_)
            | DispatchError::NotPermitted(_)
            | DispatchError::Refused(_) => Self::Invalid(error.to_string()),
        }
    }
}
