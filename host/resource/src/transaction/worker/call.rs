//! A call of a function: made when the transaction begins, and not undone by its rollback. One that is still under way then
//! is given up.

use futures_util::future::BoxFuture;

use super::{Arrived, arrive};
use crate::transaction::Done;
use crate::{Phase, ResourceError, guarded};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Deadline, Payload};

pub(in crate::transaction) struct CallWorker {
    index: usize,
    call: Option<BoxFuture<'static, Result<Payload, DispatchError>>>,
    deadline: Deadline,
}

impl CallWorker {
    pub(super) fn new(
        index: usize,
        call: BoxFuture<'static, Result<Payload, DispatchError>>,
        deadline: Deadline,
    ) -> Self {
        Self { index, call: Some(call), deadline }
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) async fn work(&mut self, arrived: &Arrived) {
        let Some(call) = self.call.take() else { return };
        let result = guarded(Phase::Execute, self.deadline, async { call.await.map_err(failed) }).await;
        arrive(arrived, self.index, result.map(Done::Value)).await;
    }
}

fn failed(error: DispatchError) -> ResourceError {
    let code = match &error {
        DispatchError::DeadlineExceeded(_) => ResourceError::TIMED_OUT,
        other => other.code(),
    };
    let recoverable = match &error {
        DispatchError::BadRequest(_)
        | DispatchError::NoSuchCage(_)
        | DispatchError::Unreachable(_)
        | DispatchError::NoSuchModule(_)
        | DispatchError::NoSuchFunction(_)
        | DispatchError::NotPermitted(_)
        | DispatchError::Refused(_)
        | DispatchError::Overloaded(_)
        | DispatchError::Draining => true,
        // It may have run.
        DispatchError::Failed(_)
        | DispatchError::Trap(_)
        | DispatchError::DeadlineExceeded(_)
        | DispatchError::Lost(_)
        | DispatchError::Host(_) => false,
    };
    ResourceError { recoverable, ..ResourceError::harmless(Phase::Execute, code, error.to_string()) }
}
