//! The worker of a call. The call is made when the transaction begins, and a rollback does not undo it, but drops it if it is
//! still in flight.

use futures_util::future::BoxFuture;

use super::{ResultSender, send_result};
use crate::transaction::ParticipantOutput;
use crate::{Phase, ResourceError, run_step};
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

    pub(super) async fn work(&mut self, results_tx: &ResultSender) {
        let Some(call) = self.call.take() else { return };
        let result = run_step(Phase::Execute, self.deadline, async { call.await.map_err(failed) }).await;
        send_result(results_tx, self.index, result.map(ParticipantOutput::Value)).await;
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
        // The function may have run.
        DispatchError::Failed(_)
        | DispatchError::Trap(_)
        | DispatchError::DeadlineExceeded(_)
        | DispatchError::Lost(_)
        | DispatchError::Host(_) => false,
    };
    ResourceError { recoverable, ..ResourceError::harmless(Phase::Execute, code, error.to_string()) }
}
