//! Runs one step of a connection, such as its commit, until the deadline, and turns a panic in it into an error.

use tokio::time::timeout_at;

use super::{Phase, ResourceError};
use wasmcage_core::request::Deadline;
use wasmcage_core::task;

/// Runs a step until the deadline. After a timeout or a panic the connection must be discarded. In the phases up to `Begin`,
/// nothing irreversible has happened then.
///
/// # Errors
/// Those of the step; `TIMED_OUT`; `HOST_ERROR` for a panic.
pub(crate) async fn run_step<T>(
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
            Err(broken(ResourceError::HOST_ERROR, "the host's own code panicked; see the location in its log"))
        }
        Err(_) => Err(broken(ResourceError::TIMED_OUT, "the deadline has passed")),
    }
}
