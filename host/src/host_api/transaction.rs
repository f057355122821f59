//! `wasmcage:cage/transaction`: several operations that all take effect or none.

use wasmtime::component::Resource;

use super::GuestState;
use super::bindings::call::RetriedCall;
use super::bindings::resources::{Operation, Phase, ResourceError};
use super::bindings::state::Step;
use super::bindings::transaction::{Host, HostTransaction, Options, ParticipantResult, Policy};
use super::bindings::types::Payload;

/// A transaction that a guest has begun.
pub struct Transaction {}

type Results = Vec<Option<Result<ParticipantResult, ResourceError>>>;
type NextResult = Option<(u32, Result<ParticipantResult, ResourceError>)>;

fn unavailable() -> ResourceError {
    let (code, text) = ("no-such-resource".into(), "not in this version".into());
    let participant = String::new();
    ResourceError { participant, index: 0, code, text, recoverable: true, terminal: false, phase: Phase::Check }
}

impl Host for GuestState {}

impl HostTransaction for GuestState {
    async fn new(&mut self, _options: Options) -> wasmtime::Result<Resource<Transaction>> {
        Ok(self.table.push(Transaction {})?)
    }

    async fn add_operation(
        &mut self,
        _transaction: Resource<Transaction>,
        _resource_name: String,
        _operation: Operation,
        _begin: Vec<(String, String)>,
    ) -> wasmtime::Result<u32> {
        Ok(0)
    }

    async fn add_state(&mut self, _transaction: Resource<Transaction>, _steps: Vec<Step>) -> wasmtime::Result<u32> {
        Ok(0)
    }

    async fn add_retried_call(
        &mut self,
        _transaction: Resource<Transaction>,
        _call: RetriedCall,
    ) -> wasmtime::Result<u32> {
        Ok(0)
    }

    async fn add_call(
        &mut self,
        _transaction: Resource<Transaction>,
        _cage: Option<String>,
        _module: String,
        _function: String,
        _arguments: Payload,
    ) -> wasmtime::Result<u32> {
        Ok(0)
    }

    async fn execute(
        &mut self,
        _transaction: Resource<Transaction>,
        _policy: Policy,
    ) -> wasmtime::Result<Result<Results, ResourceError>> {
        Ok(Err(unavailable()))
    }

    async fn next_result(
        &mut self,
        _transaction: Resource<Transaction>,
    ) -> wasmtime::Result<Result<NextResult, ResourceError>> {
        Ok(Err(unavailable()))
    }

    async fn commit(&mut self, _transaction: Resource<Transaction>) -> wasmtime::Result<Result<(), ResourceError>> {
        Ok(Err(unavailable()))
    }

    async fn rollback(&mut self, _transaction: Resource<Transaction>) -> wasmtime::Result<()> {
        Ok(())
    }

    async fn drop(&mut self, transaction: Resource<Transaction>) -> wasmtime::Result<()> {
        self.table.delete(transaction)?;
        Ok(())
    }
}
