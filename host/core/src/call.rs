//! A call of a function of another cage's module, and the way to cages that do not run in this process. The dispatcher uses that
//! way for calls that find no cage here; what carries them is installed by an interface, and unknown here.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;

use crate::error::DispatchError;
use crate::request::{Payload, RequestContext};

/// The caller of an operator's call that is not made as another cage's. No cage can be called so, and every cage
/// permits it what it permits itself.
pub const COMMAND_LINE: &str = "(command line)";

/// A call of a function of another cage's module.
#[derive(Clone, Debug)]
pub struct Call {
    /// Made by `RequestContext::for_call`: the last of its callers is who calls.
    pub context: Arc<RequestContext>,
    pub cage: String,
    pub action: CallAction,
    pub arguments: Payload,
    /// It may run twice without harm, so that a call that may have been lost can be tried on another copy.
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

/// Carries calls to cages elsewhere. One for a cage.
#[async_trait]
pub trait Remote: Send + Sync {
    /// Has one copy of the cage run the function: the named one, or one of its choice.
    ///
    /// # Errors
    /// What the callee answered; `NoSuchCage` when no copy is known, `Unreachable` when none could be reached, so that the
    /// function surely did not run; `Lost` when that is not sure; `DeadlineExceeded`; `Overloaded` when too many calls wait for that cage.
    async fn call(&self, call: Call, copy: Option<&str>) -> Result<Payload, DispatchError>;

    /// Names of the copies of a cage that are known now, for `call`.
    fn copies(&self, cage: &str) -> Vec<String>;

    /// Every copy known now, the cage's own one not included.
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
    /// Of its wasmcage; empty while unknown.
    pub version: String,
    pub addresses: Vec<String>,
    /// How it was found, such as `multicast`.
    pub found: String,
    /// Such as `connected`, `idle`, or why it is avoided now.
    pub health: String,
    /// Calls to it that have no answer yet.
    pub in_flight: u32,
    /// Moving average; none before the first answer.
    pub latency_us: Option<u64>,
}
