//! One step of a connection, kept within its deadline; a panic of a protocol's is that step's failure.

use tokio::time::timeout_at;

use super::{Phase, ResourceError};
use wasmcage_core::request::Deadline;
use wasmcage_core::task;

/// Runs a step until the deadline. After a time-out or a panic the connection is to be discarded; up to its transaction's
/// beginning, nothing irreversible has happened.
///
/// # Errors
/// The step's, `TIMED_OUT`, `HOST_ERROR`.
pub(crate) async fn guarded<T>(
    phase: Phase,
    deadline: Deadline,
    step: impl Future<Output = Result<T, ResourceError>>,
) -> Result<T, ResourceError> {
    let recoverable = matches!(phase, Phase::Check | Phase::Acquire | Phase::Connect | Phase::Begin);
    let broken = |code: &str, text: &str| ResourceError { recoverable, ..ResourceError::fatal(phase, code, text) };
    match timeout_at(deadline.instant(), task::catch_panic_async(step)).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => {
            tracing::error!(error = %panic, ?phase, "a resource's step panicked");
            Err(broken(ResourceError::HOST_ERROR, "the host's own code panicked; its log tells where"))
        }
        Err(_) => Err(broken(ResourceError::TIMED_OUT, "the deadline came first")),
    }
}
