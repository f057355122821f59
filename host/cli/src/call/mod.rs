//! `wasmcage call`: calls a function of a running cage, or of one that a running cage can reach. Chooses the cage that
//! makes the call, asks it over its control socket, and prints the result.

mod arguments;
mod flock;
mod output;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, PathCompleter};
use serde_json::Value;

use self::arguments::FunctionName;
pub(super) use self::arguments::{bytes, value_of};
pub(super) use self::output::print_one;
use super::keys::flock_name;
use super::{CommandError, RootArg, cages_in, check_cage, completion, directories, holder, progress};
use crate::control::call::{CallRequest, CopyAnswer, EncodedPayload, RetryOptions};
use crate::control::{self, CLIENT_TIMEOUT, CONTENT_BYTES_MAX, ControlError};
use crate::supervisor::STOPPED;
use crate::supervisor::pid_lock::LockHolder;

/// Call a function of a running cage, and print its result
///
/// An ARG is JSON; one that is not is taken as a string, so that `/` and `"/"` are the same. NAME=ARG gives an argument
/// by the name of its parameter, where NAME is a lower-case letter followed by lower-case letters, digits, `_` and `-`;
/// a string that looks like that is written as JSON: '"a=b"'. Write -- before an ARG that begins with a dash.
///
/// The call goes to the cage itself when it runs in the root. When it does not, another cage that runs there makes the
/// call, as if it were its own: it needs no permission of its own cage.toml, but the called cage's. With --flock no cage
/// needs to run in the root: the cage may be any of the flock's that this user runs on this machine.
///
/// Exits with 1 when there is no result, and says why, with a code for programs in parentheses.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage call worker work.handle /
  wasmcage call worker work.handle request_target=/ --timeout 500ms
  wasmcage call shop orders.find '{\"customer\": 7, \"open\": true}' limit=10
  wasmcage call shop cache.clear --all               in every copy of the cage
  wasmcage call --via runner worker work.handle /    as cage runner, wherever worker runs
  wasmcage call --flock default worker work.handle /
  wasmcage call --retried shop mail.send 7           in the background, until it succeeds
  wasmcage call images thumbnail.make --bytes-from photo.jpg --raw > small.jpg")]
pub(super) struct CallArgs {
    /// Name of the cage
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::callable_cages))]
    cage: String,
    /// What to call, such as work.handle
    #[arg(value_name = "MODULE.FUNCTION", value_parser = FunctionName::parse)]
    #[arg(add = ArgValueCandidates::new(completion::functions))]
    function: FunctionName,
    /// Arguments, by position or by name
    #[arg(value_name = "[NAME=]ARG", allow_negative_numbers = true)]
    arguments: Vec<String>,
    /// Send the content of this file instead of JSON arguments; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "arguments")]
    #[arg(add = ArgValueCompleter::new(PathCompleter::file().stdio()))]
    bytes_from: Option<PathBuf>,
    /// How long the call may take, such as 5s, 500ms or 2m
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = arguments::duration)]
    timeout: Duration,
    /// The function may run twice without harm: a call that was lost may be tried on another copy
    #[arg(long)]
    idempotent: bool,
    /// Call every copy of the cage that is known; prints a list of {"copy", "ok" or "error"}
    #[arg(long)]
    all: bool,
    /// Print a string without quotes, and bytes even on a terminal; no end of line is added
    #[arg(long, conflicts_with = "all")]
    raw: bool,
    /// Have the call be made in the background until it succeeds, and print its id; see `wasmcage retry`
    #[arg(long, conflicts_with_all = ["all", "flock", "idempotent"])]
    retried: bool,
    /// Name the retried call, so that it is accepted once
    #[arg(long, value_name = "ID", requires = "retried")]
    id: Option<String>,
    /// The queue of the retried call [default: retry]
    #[arg(long, value_name = "NAME", requires = "retried")]
    queue: Option<String>,
    /// How long the retried call is tried, such as 30m
    #[arg(long, value_name = "DURATION", requires = "retried", value_parser = arguments::duration)]
    expires: Option<Duration>,
    /// The cage of the root that makes the call
    #[arg(long, value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    via: Option<String>,
    /// Call a cage of this flock that runs on this machine, in any root
    #[arg(long, value_name = "NAME", conflicts_with = "via", value_parser = flock_name)]
    flock: Option<String>,
    #[command(flatten)]
    root: RootArg,
}

/// The cage in whose name the call is made.
enum CallOrigin {
    /// A cage that runs in the root.
    Cage(String),
    /// This process, as a member of a flock.
    Flock(String),
}

impl CallArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let arguments = match &self.bytes_from {
            Some(file) => EncodedPayload::bytes(&arguments::bytes(file)?),
            None => EncodedPayload::Json(arguments::json(&self.arguments).map_err(CommandError::Usage)?),
        };
        let caller = match self.flock.clone() {
            Some(flock) => CallOrigin::Flock(flock),
            None => CallOrigin::Cage(self.caller()?),
        };
        let request = CallRequest {
            cage: self.cage,
            module: self.function.module,
            function: self.function.function,
            arguments,
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
            idempotent: self.idempotent,
            all: self.all,
            retried: self.retried.then(|| RetryOptions {
                id: self.id,
                queue: self.queue,
                expires_ms: self.expires.map(|expires| u64::try_from(expires.as_millis()).unwrap_or(u64::MAX)),
            }),
        };
        let answer = match caller {
            CallOrigin::Cage(cage) => ask(&self.root.root, &cage, &request, self.timeout)?,
            CallOrigin::Flock(flock) => flock::call(&flock, request)?,
        };
        if self.all {
            return output::print_all(parsed(answer)?);
        }
        output::print_one(parsed(answer)?, self.raw)?;
        Ok(STOPPED)
    }

    /// Returns the cage that makes the call.
    fn caller(&self) -> Result<String, CommandError> {
        let root = &self.root.root;
        if let Some(via) = &self.via {
            check_cage(root, via)?;
            return match holder(root, via)? {
                LockHolder::Pid(_) => Ok(via.clone()),
                LockHolder::None => Err(not_running(via)),
            };
        }
        let is_here = root.join(&self.cage).is_dir();
        if is_here && holder(root, &self.cage)? != LockHolder::None {
            return Ok(self.cage.clone());
        }
        let Some(neighbour) = neighbour(root, &self.cage)? else {
            check_cage(root, &self.cage)?;
            return Err(not_running(&self.cage));
        };
        progress(format_args!(
            "cage {} does not run in {}: cage {neighbour} makes the call (--via {neighbour})",
            self.cage,
            root.display()
        ));
        Ok(neighbour)
    }
}

fn not_running(cage: &str) -> CommandError {
    CommandError::Refused(format!("cage {cage} is not running: `wasmcage run {cage}` starts it"))
}

/// Returns a running cage of the root that can call this one: one that knows a copy of it, otherwise the first.
fn neighbour(root: &Path, cage: &str) -> Result<Option<String>, CommandError> {
    let mut first = None;
    for name in cages_in(root) {
        if holder(root, &name)? == LockHolder::None {
            continue;
        }
        // A cage that does not answer counts as one that does not know the called cage.
        let knows = control::ask(&directories(root).run(&name), &name, "ps", Value::Null).is_ok_and(|process| {
            let members = process["cages"][0]["members"].as_array();
            members.is_some_and(|members| members.iter().any(|member| member["cage"] == *cage))
        });
        if knows {
            return Ok(Some(name));
        }
        first.get_or_insert(name);
    }
    Ok(first)
}

fn ask(root: &Path, caller: &str, request: &CallRequest, timeout: Duration) -> Result<Value, CommandError> {
    let arguments = serde_json::to_value(request).expect("a request has text keys only");
    // A cage that works answers by the deadline.
    let answer_timeout = timeout + CLIENT_TIMEOUT;
    control::ask_with_timeout(&directories(root).run(caller), caller, "call", arguments, answer_timeout).map_err(
        |error| match error {
            ControlError::Refused { code, text, .. } => CommandError::Call { code, text },
            ControlError::Connect { .. } | ControlError::Answer { .. } => error.into(),
        },
    )
}

fn parsed<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, CommandError> {
    let failed = |error| CommandError::failed("the cage answered in a way this version does not know", error);
    serde_json::from_value(answer).map_err(failed)
}
