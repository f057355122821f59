//! `wasmcage:cage/state`: a module's durable keys and queues.

use super::GuestState;
use super::bindings::state::{Host, Outcome, Page, Range, StateError, Step};
use super::bindings::types::Payload;

fn unavailable() -> StateError {
    StateError::Unavailable("not in this version".into())
}

impl Host for GuestState {
    async fn get(&mut self, _key: String) -> Result<Option<Payload>, StateError> {
        Err(unavailable())
    }

    async fn set(&mut self, _key: String, _value: Payload) -> Result<(), StateError> {
        Err(unavailable())
    }

    async fn delete(&mut self, _key: String) -> Result<bool, StateError> {
        Err(unavailable())
    }

    async fn compare_and_set(
        &mut self,
        _key: String,
        _expected: Option<Payload>,
        _value: Option<Payload>,
    ) -> Result<bool, StateError> {
        Err(unavailable())
    }

    async fn increment(&mut self, _key: String, _by: i64) -> Result<i64, StateError> {
        Err(unavailable())
    }

    async fn scan(&mut self, _range: Range, _limit: u32, _cursor: Option<String>) -> Result<Page, StateError> {
        Err(unavailable())
    }

    async fn queue_push(&mut self, _queue: String, _entry: Payload) -> Result<u64, StateError> {
        Err(unavailable())
    }

    async fn queue_pop(&mut self, _queue: String) -> Result<Option<Payload>, StateError> {
        Err(unavailable())
    }

    async fn queue_peek(&mut self, _queue: String, _limit: u32) -> Result<Vec<Payload>, StateError> {
        Err(unavailable())
    }

    async fn queue_length(&mut self, _queue: String) -> Result<u64, StateError> {
        Err(unavailable())
    }

    async fn transact(&mut self, _steps: Vec<Step>) -> Result<Vec<Outcome>, StateError> {
        Err(unavailable())
    }
}
