//! The one error table: why a request got no reply of its module's. Made by the dispatcher and the modules; every interface
//! turns each kind into its protocol's words.

use crate::admission::Refusal;

/// Why a request got no reply of its module's. Who must act decides the kind; each interface matches all of them.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The caller's fault: the request or its arguments do not fit, as the host finds or the guest says.
    #[error("bad request: {0}")]
    BadRequest(String),
    #[error("no such cage: {0}")]
    NoSuchCage(String),
    /// Copies of the cage are known, and none can be reached now: the function did not run.
    #[error("unreachable: {0}")]
    Unreachable(String),
    #[error("no such module: {0}")]
    NoSuchModule(String),
    #[error("no such function: {0}")]
    NoSuchFunction(String),
    #[error("not permitted: {0}")]
    NotPermitted(String),
    /// The guest says never.
    #[error("refused: {0}")]
    Refused(String),
    /// The guest says later.
    #[error("failed: {0}")]
    Failed(String),
    /// The guest was killed by its own doing.
    #[error("trapped: {0}")]
    Trap(String),
    #[error("deadline exceeded: {0}")]
    DeadlineExceeded(String),
    /// The connection to a cage elsewhere broke after the call was handed over: the function may have run.
    #[error("lost: {0}")]
    Lost(String),
    /// Ours: no room now.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// Ours: shutting down.
    #[error("draining")]
    Draining,
    /// Ours: a bug or a lack in the host.
    #[error("host error: {0}")]
    Host(String),
}

impl DispatchError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad-request",
            Self::NoSuchCage(_) => "no-such-cage",
            Self::Unreachable(_) => "unreachable",
            Self::NoSuchModule(_) => "no-such-module",
            Self::NoSuchFunction(_) => "no-such-function",
            Self::NotPermitted(_) => "not-permitted",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
            Self::Trap(_) => "trapped",
            Self::DeadlineExceeded(_) => "deadline-exceeded",
            Self::Lost(_) => "lost",
            Self::Overloaded(_) => "overloaded",
            Self::Draining => "draining",
            Self::Host(_) => "host-error",
        }
    }

    /// Fit for strangers: says nothing of the inside.
    pub fn public_text(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "the request cannot be understood",
            Self::NoSuchCage(_) | Self::NoSuchModule(_) | Self::NoSuchFunction(_) => {
                "nothing is here to answer this request"
            }
            Self::NotPermitted(_) => "this request is not permitted",
            Self::Refused(_) => "the request was refused",
            Self::Failed(_) | Self::Trap(_) | Self::Lost(_) => "the request failed",
            Self::DeadlineExceeded(_) => "the request was not answered in time",
            Self::Unreachable(_) => "what is needed to answer this request cannot be reached at the moment",
            Self::Overloaded(_) => "too many requests at the moment",
            Self::Draining => "the server is shutting down",
            Self::Host(_) => "the server failed",
        }
    }
}

impl From<Refusal> for DispatchError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full(waiting) => Self::Overloaded(format!("{waiting} requests are waiting already")),
            Refusal::Expired => Self::DeadlineExceeded("it waited for its turn".into()),
            Refusal::ModuleBusy => Self::DeadlineExceeded("all instances of the module were in use".into()),
            Refusal::Closed => Self::Overloaded("the module is being replaced".into()),
        }
    }
}
