//! What takes part in a transaction, and what it gives.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::{LiveResource, Operation, OperationReply, ResourceError};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_store::{NewCall, Quota, Step, StepResult, Store};

pub enum Participant {
    /// One operation on a resource.
    Operation {
        resource: Arc<LiveResource>,
        operation: Operation,
        begin: Vec<(String, String)>,
        /// What it changes, for the resource's cache of reads.
        writes: Vec<String>,
    },
    /// Steps on the module's own durable data.
    State(Vec<Step>),
    RetriedCall(Box<NewCall>),
    /// A call of a function, which nothing takes back.
    Call(BoxFuture<'static, Result<Payload, DispatchError>>),
    /// What was wrong with it already when it was added.
    Refused(ResourceError),
}

/// What a participant did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    Reply(OperationReply),
    State(Vec<StepResult>),
    /// Of a retried call.
    Id(String),
    /// Of a call.
    Value(Payload),
}

/// A module's part of the cage's store.
#[derive(Clone)]
pub struct ModuleStore {
    pub store: Arc<Store>,
    pub module: Arc<str>,
    pub quota: Quota,
}

impl Participant {
    /// As errors call it.
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

    /// Whether a rollback takes back what it does.
    pub(super) fn undoes(&self) -> bool {
        match self {
            Self::Operation { resource, operation, .. } => resource.undoes(operation),
            Self::Call(_) => false,
            Self::State(_) | Self::RetriedCall(_) | Self::Refused(_) => true,
        }
    }
}
