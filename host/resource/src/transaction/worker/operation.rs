//! The worker of an operation on a resource, from acquiring its connection to its commit or rollback.

use std::sync::Arc;
use std::time::Duration;

use super::{ResultSender, send_result};
use crate::transaction::ParticipantOutput;
use crate::{
    Caching, Caller, ConnectionLease, LiveResource, Operation, OperationRecord, OperationReply, Phase, ResourceError,
    WriteMark, run_step,
};
use wasmcage_core::request::Deadline;

/// A rollback that takes longer is cut short by closing the connection.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(5);

pub(in crate::transaction) struct OperationWorker {
    index: usize,
    resource: Arc<LiveResource>,
    work: Option<(Operation, Vec<(String, String)>)>,
    writes: Vec<String>,
    caller: Caller,
    deadline: Deadline,
    record: OperationRecord,
    /// The connection, once the operation has succeeded.
    executed: Option<ConnectionLease>,
    /// Keeps replies that depend on what it writes from being cached.
    _mark: Option<WriteMark>,
}

impl OperationWorker {
    pub(super) fn new(
        index: usize,
        resource: Arc<LiveResource>,
        operation: Operation,
        begin: Vec<(String, String)>,
        writes: Vec<String>,
        caller: Caller,
        deadline: Deadline,
    ) -> Self {
        let record = resource.start_record(&caller, &operation);
        let deadline = resource.deadline(&caller, None).min(deadline);
        let work = Some((operation, begin));
        Self { index, resource, work, writes, caller, deadline, record, executed: None, _mark: None }
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) async fn work(&mut self, results_tx: &ResultSender) {
        let Some((operation, begin)) = self.work.take() else { return };
        match self.begin(operation.clone(), &begin).await {
            Ok(mut lease) => {
                let deadline = lease.deadline;
                let execute = lease.connection().execute(operation, deadline);
                match run_step(Phase::Execute, deadline, execute).await {
                    Ok(reply) => {
                        self.executed = Some(lease);
                        send_result(results_tx, self.index, Ok(ParticipantOutput::Reply(reply))).await;
                    }
                    Err(error) => {
                        let terminal = error.terminal;
                        self.fail(results_tx, error).await;
                        if !terminal {
                            roll_back(lease).await;
                        }
                    }
                }
            }
            Err(error) => self.fail(results_tx, error).await,
        }
    }

    /// Acquires a connection and begins a transaction on it.
    async fn begin(
        &mut self,
        operation: Operation,
        begin: &[(String, String)],
    ) -> Result<ConnectionLease, ResourceError> {
        let writes = std::mem::take(&mut self.writes);
        let caching = Caching { writes, ..Caching::default() };
        caching.check()?;
        self.resource.check(&operation)?;
        let mut lease = self.resource.acquire(&self.caller, self.deadline).await?;
        self.record.acquired();
        self._mark = self.resource.mark_writes(caching.writes);
        let deadline = lease.deadline;
        match run_step(Phase::Begin, deadline, lease.connection().begin(begin, deadline)).await {
            Ok(()) => Ok(lease),
            Err(error) => {
                if !error.terminal {
                    lease.keep();
                }
                Err(error)
            }
        }
    }

    async fn fail(&mut self, results_tx: &ResultSender, error: ResourceError) {
        if let Err(error) = self.record.end::<OperationReply>(&self.caller, Err(error)) {
            send_result(results_tx, self.index, Err(error)).await;
        }
    }

    pub(super) async fn commit(mut self: Box<Self>, deadline: Deadline) -> Result<(), ResourceError> {
        let Some(mut lease) = self.executed.take() else { return Ok(()) };
        let result = run_step(Phase::Commit, deadline, lease.connection().commit(deadline)).await;
        if result.as_ref().err().is_none_or(|error| !error.terminal) {
            lease.keep();
        }
        self.record.end(&self.caller, result)
    }

    pub(super) async fn rollback(mut self: Box<Self>) {
        let Some(lease) = self.executed.take() else { return };
        // The operation itself has succeeded.
        let _ = self.record.end(&self.caller, Ok(()));
        roll_back(lease).await;
    }
}

/// Rolls back. If that fails, the connection is discarded.
async fn roll_back(mut lease: ConnectionLease) {
    let deadline = Deadline::after(ROLLBACK_TIMEOUT);
    if run_step(Phase::Rollback, deadline, lease.connection().rollback(deadline)).await.is_ok() {
        lease.keep();
    }
}
