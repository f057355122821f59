//! An operation on a resource: its connection, from its place in the pool to its commit or rollback.

use std::sync::Arc;
use std::time::Duration;

use super::{Arrived, arrive};
use crate::transaction::Done;
use crate::{
    Caching, Caller, Lease, LiveResource, Observed, Operation, OperationReply, Phase, ResourceError, WriteMark, guarded,
};
use wasmcage_core::request::Deadline;

/// A rollback that takes longer is left to the other side: the connection is closed.
const ROLLBACK_TIME_MAX: Duration = Duration::from_secs(5);

pub(in crate::transaction) struct OperationWorker {
    index: usize,
    resource: Arc<LiveResource>,
    work: Option<(Operation, Vec<(String, String)>)>,
    writes: Vec<String>,
    caller: Caller,
    deadline: Deadline,
    observed: Observed,
    /// Once it has executed well.
    executed: Option<Lease>,
    /// While cached replies that it makes out of date are not kept.
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
        let observed = resource.observe(&caller, &operation);
        let deadline = resource.deadline(&caller, None).min(deadline);
        let work = Some((operation, begin));
        Self { index, resource, work, writes, caller, deadline, observed, executed: None, _mark: None }
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) async fn work(&mut self, arrived: &Arrived) {
        let Some((operation, begin)) = self.work.take() else { return };
        match self.begin(operation.clone(), &begin).await {
            Ok(mut lease) => {
                let deadline = lease.deadline;
                let execute = lease.connection().execute(operation, deadline);
                match guarded(Phase::Execute, deadline, execute).await {
                    Ok(reply) => {
                        self.executed = Some(lease);
                        arrive(arrived, self.index, Ok(Done::Reply(reply))).await;
                    }
                    Err(error) => {
                        let terminal = error.terminal;
                        self.fail(arrived, error).await;
                        if !terminal {
                            roll_back(lease).await;
                        }
                    }
                }
            }
            Err(error) => self.fail(arrived, error).await,
        }
    }

    /// A connection whose transaction has begun.
    async fn begin(&mut self, operation: Operation, begin: &[(String, String)]) -> Result<Lease, ResourceError> {
        let writes = std::mem::take(&mut self.writes);
        let caching = Caching { writes, ..Caching::default() };
        caching.check()?;
        self.resource.check(&operation)?;
        let mut lease = self.resource.acquire(&self.caller, self.deadline).await?;
        self.observed.acquired();
        self._mark = self.resource.mark_writes(caching.writes);
        let deadline = lease.deadline;
        match guarded(Phase::Begin, deadline, lease.connection().begin(begin, deadline)).await {
            Ok(()) => Ok(lease),
            Err(error) => {
                if !error.terminal {
                    lease.keep();
                }
                Err(error)
            }
        }
    }

    async fn fail(&mut self, arrived: &Arrived, error: ResourceError) {
        if let Err(error) = self.observed.end::<OperationReply>(&self.caller, Err(error)) {
            arrive(arrived, self.index, Err(error)).await;
        }
    }

    pub(super) async fn commit(mut self: Box<Self>, deadline: Deadline) -> Result<(), ResourceError> {
        let Some(mut lease) = self.executed.take() else { return Ok(()) };
        let result = guarded(Phase::Commit, deadline, lease.connection().commit(deadline)).await;
        if result.as_ref().err().is_none_or(|error| !error.terminal) {
            lease.keep();
        }
        self.observed.end(&self.caller, result)
    }

    pub(super) async fn rollback(mut self: Box<Self>) {
        let Some(lease) = self.executed.take() else { return };
        // It has done what was asked of it.
        let _ = self.observed.end(&self.caller, Ok(()));
        roll_back(lease).await;
    }
}

/// Its failure costs the connection, and is nobody's business else.
async fn roll_back(mut lease: Lease) {
    let deadline = Deadline::after(ROLLBACK_TIME_MAX);
    if guarded(Phase::Rollback, deadline, lease.connection().rollback(deadline)).await.is_ok() {
        lease.keep();
    }
}
