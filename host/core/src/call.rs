//! Calls of functions in other cages, and the trait that carries calls out of this process. The dispatcher uses it for cages
//! that do not run here; an interface installs the implementation.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;

use crate::error::DispatchError;
use crate::request::{Payload, RequestContext};

/// The caller of a call that an operator makes from the command line. No cage can have this name, and every cage permits it
/// what it permits itself.
pub const COMMAND_LINE: &str = "(command line)";

/// A call of a function of another cage's module.
#[derive(Clone, Debug)]
pub struct Call {
    /// Made by `RequestContext::for_call`: the last of its callers makes this call.
    pub context: Arc<RequestContext>,
    pub cage: String,
    pub action: CallAction,
    pub arguments: Payload,
    /// It may run twice without harm, so that a call that may have been lost can be retried on another copy.
    pub idempotent: bool,
}

/// What a call asks the other cage to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallAction {
    Run {
        module: String,
        function: String,
    },
    /// Accept the retried call in the arguments: keep it durably, and make it from then on.
    AcceptRetried,
}

/// As errors name it.
impl fmt::Display for CallAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run { module, function } => write!(f, "{module}.{function}"),
            Self::AcceptRetried => f.write_str("acceptance of a retried call"),
        }
    }
}

/// Carries a cage's calls to cages elsewhere.
#[async_trait]
pub trait Remote: Send + Sync {
    /// Calls the function on one copy of the cage: the named one, or one that the implementation chooses.
    ///
    /// # Errors
    /// What the callee answered; `NoSuchCage` when no copy is known, `Unreachable` when none could be reached, so that the
    /// function surely did not run; `Lost` when that is not sure; `DeadlineExceeded`; `Overloaded` when too many calls wait for that cage.
    async fn call(&self, call: Call, copy: Option<&str>) -> Result<Payload, DispatchError>;

    /// Returns the names of the copies of a cage that are known now, for `call`.
    fn copies(&self, cage: &str) -> Vec<String>;

    /// Returns all copies that are known now, except the cage's own.
    fn members(&self) -> Vec<Member>;
}

/// A running copy of a cage, as `wasmcage ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    pub cage: String,
    /// Tells copies of a cage apart: random for each start.
    pub copy: String,
    /// The machine it runs on; empty while unknown.
    pub node: String,
    /// Version of its wasmcage; empty while unknown.
    pub version: String,
    pub addresses: Vec<String>,
    /// How it was found, such as `multicast`.
    pub found: String,
    /// `connected`, `idle`, or why it is avoided now.
    pub health: String,
    /// Number of calls to it that have no answer yet.
    pub in_flight: u32,
    /// Moving average of its latency; none before the first answer.
    pub latency_us: Option<u64>,
}
