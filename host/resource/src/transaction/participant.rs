//! The participants of a transaction, and their outputs.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::{LiveResource, Operation, OperationReply, ResourceError};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_store::{NewCall, Quota, Step, StepResult, Store};

/// A participant of a transaction.
pub enum Participant {
    /// One operation on a resource.
    Operation {
        resource: Arc<LiveResource>,
        operation: Operation,
        begin: Vec<(String, String)>,
        /// Names of what it changes, for the resource's cache of reads.
        writes: Vec<String>,
    },
    /// Steps on the module's own durable data.
    State(Vec<Step>),
    RetriedCall(Box<NewCall>),
    /// A call of a function, which cannot be undone.
    Call(BoxFuture<'static, Result<Payload, DispatchError>>),
    /// The participant was invalid when it was added, for this reason.
    Refused(ResourceError),
}

/// The output of a participant that has succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParticipantOutput {
    Reply(OperationReply),
    State(Vec<StepResult>),
    /// The id of a retried call.
    Id(String),
    /// The result of a call.
    Value(Payload),
}

/// Access to a module's data in the cage's store.
#[derive(Clone)]
pub struct ModuleStore {
    pub store: Arc<Store>,
    pub module: Arc<str>,
    pub quota: Quota,
}

impl Participant {
    /// The name of `State` in errors.
    pub const STATE: &'static str = "state";
    pub const RETRIED_CALL: &'static str = "retried-call";
    pub const CALL: &'static str = "call";

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Operation { resource, .. } => resource.name(),
            Self::State(_) => Self::STATE,
            Self::RetriedCall(_) => Self::RETRIED_CALL,
            Self::Call(_) => Self::CALL,
            Self::Refused(error) => &error.participant,
        }
    }

    /// Returns whether a rollback undoes its effects.
    pub(super) fn can_roll_back(&self) -> bool {
        match self {
            Self::Operation { resource, operation, .. } => resource.can_roll_back(operation),
            Self::Call(_) => false,
            Self::State(_) | Self::RetriedCall(_) | Self::Refused(_) => true,
        }
    }
}
