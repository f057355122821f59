//! Implements `wasmcage:cage/transaction`: several operations of which either all take effect or none.

use std::time::Duration;

use wasmtime::component::Resource;

use super::GuestState;
use super::bindings::call::RetriedCall;
use super::bindings::resources::{Operation, ResourceError as WitError};
use super::bindings::state::{StateError, Step};
use super::bindings::transaction::{
    Host, HostTransaction, Options, ParticipantResult as WitResult, Policy as WitPolicy,
};
use super::bindings::types::Payload as WitPayload;
use super::call::call_target;
use super::per_request::Handle;
use super::text::TooLong;
use crate::dispatcher::CallOptions;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_resource::transaction::{
    ModuleStore, Participant, ParticipantOutput, ParticipantResult, Policy, Transaction, TransactionContext,
    TransactionOptions,
};
use wasmcage_resource::{Phase, ResourceError};

/// A transaction that a guest has begun.
pub type TransactionHandle = Handle<Transaction>;

type Results = Vec<Option<Result<WitResult, WitError>>>;
type NextResult = Option<(u32, Result<WitResult, WitError>)>;

impl Host for GuestState {}

impl HostTransaction for GuestState {
    async fn new(&mut self, options: Options) -> wasmtime::Result<Resource<TransactionHandle>> {
        let options = TransactionOptions {
            sync_commit: options.sync_commit,
            timeout: options.timeout_ms.map(|timeout| Duration::from_millis(timeout.into())),
        };
        let transaction =
            self.transaction_context().map(|transaction_context| Transaction::new(options, transaction_context));
        // A transaction that is begun while the module is being loaded counts as ended.
        let handle = match transaction {
            Some(transaction) => self.transactions.add(transaction),
            None => Handle::of_nothing(),
        };
        Ok(self.table.push(handle)?)
    }

    async fn add_operation(
        &mut self,
        transaction: Resource<TransactionHandle>,
        resource_name: String,
        operation: Operation,
        begin: Vec<(String, String)>,
        writes: Vec<String>,
    ) -> wasmtime::Result<u32> {
        let headers = operation.headers.iter().map(|(name, value)| name.len() + value.len());
        let bytes = operation.target.len() + headers.sum::<usize>() + operation.body.len();
        let participant = match self.resource(&resource_name) {
            Ok((resource, _)) => Participant::Operation { resource, operation: operation.into(), begin, writes },
            Err(error) => Participant::Refused(error),
        };
        self.add(&transaction, participant, bytes)
    }

    async fn add_state(&mut self, transaction: Resource<TransactionHandle>, steps: Vec<Step>) -> wasmtime::Result<u32> {
        let bytes = steps.iter().map(step_bytes).sum();
        let participant = match self.state_steps(steps) {
            Ok(steps) => Participant::State(steps),
            Err(error) => Participant::Refused(refused(Participant::STATE, "invalid", text_of(error))),
        };
        self.add(&transaction, participant, bytes)
    }

    async fn add_retried_call(
        &mut self,
        transaction: Resource<TransactionHandle>,
        call: RetriedCall,
    ) -> wasmtime::Result<u32> {
        let bytes = payload_bytes(&call.arguments);
        let accepted = self.calling().map_err(|_| DispatchError::Draining);
        let accepted =
            accepted.and_then(|(dispatcher, request)| dispatcher.new_retried_call(&self.home, &request, call.into()));
        let participant = match accepted {
            Ok(call) => Participant::RetriedCall(Box::new(call)),
            Err(error) => Participant::Refused(refused(Participant::RETRIED_CALL, error.code(), error.to_string())),
        };
        self.add(&transaction, participant, bytes)
    }

    async fn add_call(
        &mut self,
        transaction: Resource<TransactionHandle>,
        cage: Option<String>,
        module: String,
        function: String,
        arguments: WitPayload,
    ) -> wasmtime::Result<u32> {
        let bytes = payload_bytes(&arguments);
        let target = match call_target(cage, module, function) {
            Ok(target) => target,
            Err(error) => {
                let error = refused(Participant::CALL, error.code(), error.to_string());
                return self.add(&transaction, Participant::Refused(error), 0);
            }
        };
        let participant = match self.calling() {
            Ok((dispatcher, request)) => {
                let (home, arguments) = (self.home.clone(), Payload::from(arguments));
                Participant::Call(Box::pin(async move {
                    dispatcher.call_from(&home, &request, target, arguments, CallOptions::default()).await
                }))
            }
            Err(_) => Participant::Refused(refused(Participant::CALL, "draining", "the cage is stopping".into())),
        };
        self.add(&transaction, participant, bytes)
    }

    async fn execute(
        &mut self,
        transaction: Resource<TransactionHandle>,
        policy: WitPolicy,
    ) -> wasmtime::Result<Result<Results, WitError>> {
        let policy = match policy {
            WitPolicy::All => Policy::All,
            WitPolicy::First => Policy::First,
            WitPolicy::Quorum(needed) => Policy::Quorum(needed as usize),
        };
        let results = match self.transaction(&transaction)? {
            Some(transaction) => transaction.execute(policy).await,
            None => Err(over()),
        };
        Ok(match results {
            Ok(results) => Ok(results.into_iter().map(|result| result.map(to_wit)).collect()),
            Err(error) => Err(error.into()),
        })
    }

    async fn next_result(
        &mut self,
        transaction: Resource<TransactionHandle>,
    ) -> wasmtime::Result<Result<NextResult, WitError>> {
        let next = match self.transaction(&transaction)? {
            Some(transaction) => transaction.next_result().await,
            None => Err(over()),
        };
        let numbered = |(index, result)| (number(index), to_wit(result));
        Ok(next.map(|next| next.map(numbered)).map_err(WitError::from))
    }

    async fn commit(&mut self, transaction: Resource<TransactionHandle>) -> wasmtime::Result<Result<(), WitError>> {
        let committed = match self.transaction(&transaction)? {
            Some(transaction) => transaction.commit().await,
            None => Err(over()),
        };
        Ok(committed.map_err(WitError::from))
    }

    async fn rollback(&mut self, transaction: Resource<TransactionHandle>) -> wasmtime::Result<()> {
        if let Some(transaction) = self.transaction(&transaction)? {
            transaction.rollback();
        }
        Ok(())
    }

    async fn drop(&mut self, transaction: Resource<TransactionHandle>) -> wasmtime::Result<()> {
        let handle = self.table.delete(transaction)?;
        self.transactions.remove(&handle);
        Ok(())
    }
}

impl GuestState {
    fn transaction_context(&self) -> Option<TransactionContext> {
        let caller = self.caller()?;
        let services = self.home.services.clone();
        let (module, quota) = (self.home.module.clone(), self.home.settings.state);
        let store = ModuleStore { store: services.store, module, quota };
        Some(TransactionContext { caller, store, background: services.background, tasks: services.tasks })
    }

    /// Returns the transaction of the handle. None if its request has ended.
    fn transaction(&mut self, transaction: &Resource<TransactionHandle>) -> wasmtime::Result<Option<&mut Transaction>> {
        Ok(self.transactions.get(self.table.get(transaction)?))
    }

    /// Adds a refused participant in place of one whose operation is too long.
    pub(super) fn add_too_long(
        &mut self,
        transaction: &Resource<TransactionHandle>,
        participant: &str,
        code: &str,
        TooLong(text): TooLong,
    ) -> wasmtime::Result<u32> {
        self.add(transaction, Participant::Refused(refused(participant, code, text)), 0)
    }

    fn add(
        &mut self,
        transaction: &Resource<TransactionHandle>,
        participant: Participant,
        bytes: usize,
    ) -> wasmtime::Result<u32> {
        let Some(transaction) = self.transaction(transaction)? else { return Ok(0) };
        Ok(number(transaction.add(participant, bytes)))
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn payload_bytes(payload: &WitPayload) -> usize {
    match payload {
        WitPayload::Json(json) => json.len(),
        WitPayload::Bytes(bytes) => bytes.len(),
    }
}

fn step_bytes(step: &Step) -> usize {
    match step {
        Step::Set((key, value)) | Step::QueuePush((key, value)) => key.len() + payload_bytes(value),
        Step::Check((key, value)) => key.len() + value.as_ref().map_or(0, payload_bytes),
        Step::RetriedCall(call) => payload_bytes(&call.arguments),
        Step::Get(key) | Step::Delete(key) | Step::Increment((key, _)) => key.len(),
        Step::QueuePop(queue) | Step::QueueLength(queue) => queue.len(),
    }
}

fn refused(participant: &str, code: &str, text: String) -> ResourceError {
    ResourceError { participant: participant.to_owned(), ..ResourceError::harmless(Phase::Check, code, text) }
}

fn over() -> ResourceError {
    refused("transaction", ResourceError::BAD_OPERATION, "the request that began it is over".into())
}

fn text_of(error: StateError) -> String {
    match error {
        StateError::Invalid(text)
        | StateError::QuotaExceeded(text)
        | StateError::Unavailable(text)
        | StateError::TimedOut(text) => text,
        StateError::Conflict(step) => format!("the condition of step {step} does not hold"),
    }
}

fn to_wit(result: ParticipantResult) -> Result<WitResult, WitError> {
    match result? {
        ParticipantOutput::Reply(reply) => Ok(WitResult::Reply(reply.into())),
        ParticipantOutput::State(outcomes) => Ok(WitResult::State(outcomes.into_iter().map(Into::into).collect())),
        ParticipantOutput::Id(id) => Ok(WitResult::Id(id)),
        ParticipantOutput::Value(value) => match WitPayload::try_from(value) {
            Ok(value) => Ok(WitResult::Value(value)),
            Err(error) => Err(refused(Participant::CALL, error.code(), error.to_string()).into()),
        },
    }
}
