//! The table of errors: why a request got no reply from its module. The dispatcher and the modules make these errors, and each
//! interface translates them into its protocol.

use crate::admission::AdmissionError;

/// Why a request got no reply from its module. The kinds differ by who must act; each interface matches all of them.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The caller's fault: the request or its arguments are invalid, by the host's check or the guest's.
    #[error("bad request: {0}")]
    BadRequest(String),
    #[error("no such cage: {0}")]
    NoSuchCage(String),
    /// Copies of the cage are known, but none can be reached now: the function did not run.
    #[error("unreachable: {0}")]
    Unreachable(String),
    #[error("no such module: {0}")]
    NoSuchModule(String),
    #[error("no such function: {0}")]
    NoSuchFunction(String),
    #[error("not permitted: {0}")]
    NotPermitted(String),
    /// The guest refuses the request for good.
    #[error("refused: {0}")]
    Refused(String),
    /// The guest failed; a retry may succeed.
    #[error("failed: {0}")]
    Failed(String),
    /// The guest trapped, or was killed for exceeding a limit.
    #[error("trapped: {0}")]
    Trap(String),
    #[error("deadline exceeded: {0}")]
    DeadlineExceeded(String),
    /// The connection to a cage elsewhere broke after the call was handed over: the function may have run.
    #[error("lost: {0}")]
    Lost(String),
    /// The host's fault: a limit is reached now.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// The host is shutting down.
    #[error("draining")]
    Draining,
    /// The host's fault: a bug, or a missing feature or resource.
    #[error("host error: {0}")]
    Host(String),
}

impl DispatchError {
    /// The error's code for programs, which never changes.
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

    /// A text for strangers, which reveals no internals.
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

impl From<AdmissionError> for DispatchError {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::Full(waiting) => Self::Overloaded(format!("{waiting} requests are waiting already")),
            AdmissionError::Expired => Self::DeadlineExceeded("it waited in the queue".into()),
            AdmissionError::ModuleBusy => Self::DeadlineExceeded("all instances of the module were in use".into()),
            AdmissionError::Closed => Self::Overloaded("the module is being replaced".into()),
        }
    }
}
