//! Facts about the request that the module is working on. In a call on its behalf, the callee sees the same request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bindings::imports::wasmcage::cage::context;

pub use context::{cage, describe, fact, facts, log_level, module, request_id, set_log_level};

/// Returns the time until the request's deadline; zero when it has passed. Calls on the request's behalf inherit the deadline.
pub fn deadline_left() -> Duration {
    Duration::from_millis(context::deadline_left_ms())
}

/// An attempt at a retried call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The call's id, which is the same for all attempts.
    pub id: String,
    /// Number of the attempt, from 1.
    pub number: u32,
    /// Start of the first attempt.
    pub first_started: SystemTime,
    /// When the call is given up; none: never.
    pub expires: Option<SystemTime>,
}

/// Returns the current attempt at a retried call; none if this is no retried call, also in functions that a retried one calls.
///
/// ```no_run
/// # use wasmcage_guest::{Error, Result, context};
/// # fn f() -> Result<()> {
/// if context::attempt().is_some_and(|attempt| attempt.number > 10) {
///     return Err(Error::refused("ten attempts are enough"));
/// }
/// # Ok(()) }
/// ```
pub fn attempt() -> Option<Attempt> {
    let time = |ms: u64| UNIX_EPOCH + Duration::from_millis(ms);
    let context::Attempt { id, number, first_started_ms, expires_ms } = context::current_attempt()?;
    Some(Attempt { id, number, first_started: time(first_started_ms), expires: expires_ms.map(time) })
}
