//! `wasmcage retry`: lists and changes the retried calls of a cage, pending ones and dead letters. A running cage is
//! asked over its control socket; the store of a cage that is not running is opened here.

mod output;

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;
use serde_json::Value;
use wasmcage_store::Store;

use super::{CommandError, RootArg, check_cage, completion, config, directories, holder, print};
use crate::control::retry::{self, ChangeResult, LISTED_MAX, RetryRequest};
use crate::control::{self, CommandRefusal, ControlError};
use crate::supervisor::pid_lock::LockHolder;
use crate::supervisor::{FAILED, STOPPED};

/// Show and change calls that a cage makes later, running or not
///
/// A retried call is made again and again until it succeeds. One that is refused, expires, or has had all its attempts,
/// is a dead letter: it is kept until it is run again or dropped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage retry list shop                              what is pending
  wasmcage retry list shop --dead                       what was given up
  wasmcage retry show shop RT-20261121103000-0123456789AB
  wasmcage retry run shop order-7                       now, instead of when it is due; a dead letter anew
  wasmcage retry run shop --dead --queue mail           every dead letter of a queue
  wasmcage retry drop shop order-7 order-8
  wasmcage retry move shop order-7 --to slow            into another queue")]
pub(super) struct RetryArgs {
    #[command(subcommand)]
    action: RetryAction,
}

#[derive(Debug, Subcommand)]
enum RetryAction {
    /// List calls in the order in which they were accepted
    List(ListCallsArgs),
    /// Show one call with its arguments
    Show(ShowCallArgs),
    /// Make calls now: those that wait, or dead letters, which begin anew and do not expire any more
    Run(ChangeArgs),
    /// Drop calls; their ids are remembered for three days
    Drop(ChangeArgs),
    /// Move calls into another queue, and make them there
    Move(MoveArgs),
}

/// Names the cage.
#[derive(Debug, Args)]
struct CageArg {
    /// Name of the cage
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cage: String,
    #[command(flatten)]
    root: RootArg,
}

#[derive(Debug, Args)]
struct ListCallsArgs {
    #[command(flatten)]
    of: CageArg,
    /// Only this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Calls that were given up, instead of pending ones
    #[arg(long)]
    dead: bool,
    /// Number of calls to list at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// For programs: {"queues": [..], "calls": [..]}
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowCallArgs {
    #[command(flatten)]
    of: CageArg,
    /// Id of the call
    id: String,
    /// For programs: {"call": {..}, "arguments": {"json" or "base64": ".."}}
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ChangeArgs {
    #[command(flatten)]
    of: CageArg,
    #[command(flatten)]
    which: CallSelection,
}

#[derive(Debug, Args)]
struct MoveArgs {
    #[command(flatten)]
    of: CageArg,
    #[command(flatten)]
    which: CallSelection,
    /// The queue that they are moved into
    #[arg(long, value_name = "NAME")]
    to: String,
}

/// Selects the calls to change.
#[derive(Debug, Args)]
struct CallSelection {
    /// Ids of calls
    #[arg(value_name = "ID", required_unless_present = "dead")]
    ids: Vec<String>,
    /// Every dead letter instead, up to 10,000 at once
    #[arg(long, conflicts_with = "ids")]
    dead: bool,
    /// With --dead: only of this queue
    #[arg(long, value_name = "NAME", requires = "dead", conflicts_with = "ids")]
    queue: Option<String>,
}

impl RetryArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        match self.action {
            RetryAction::List(args) => {
                let ListCallsArgs { of, queue, dead, limit, json } = args;
                let answer = of.ask(&RetryRequest::List { queue, dead, limit })?;
                print(if json { answer.to_string() } else { output::table(&answer, dead) })?;
            }
            RetryAction::Show(args) => {
                let answer = args.of.ask(&RetryRequest::Show { id: args.id })?;
                print(if args.json { answer.to_string() } else { output::one(&answer) })?;
            }
            RetryAction::Run(args) => {
                let ids = args.which.ids(&args.of)?;
                return print_changes(args.of.change(&RetryRequest::Run { ids, to: None })?, "is made now");
            }
            RetryAction::Drop(args) => {
                let ids = args.which.ids(&args.of)?;
                return print_changes(args.of.change(&RetryRequest::Drop { ids })?, "is dropped");
            }
            RetryAction::Move(args) => {
                let ids = args.which.ids(&args.of)?;
                let done = format!("is in queue {} now", args.to);
                return print_changes(args.of.change(&RetryRequest::Run { ids, to: Some(args.to) })?, &done);
            }
        }
        Ok(STOPPED)
    }
}

impl CallSelection {
    fn ids(self, of: &CageArg) -> Result<Vec<String>, CommandError> {
        if !self.dead {
            return Ok(self.ids);
        }
        let answer = of.ask(&RetryRequest::List { queue: self.queue, dead: true, limit: LISTED_MAX })?;
        let calls = answer["calls"].as_array().into_iter().flatten();
        Ok(calls.filter_map(|call| call["id"].as_str().map(str::to_owned)).collect())
    }
}

impl CageArg {
    fn ask(&self, request: &RetryRequest) -> Result<Value, CommandError> {
        let (root, cage) = (&self.root.root, &self.cage);
        check_cage(root, cage)?;
        let arguments = serde_json::to_value(request).expect("a request has text keys only");
        if holder(root, cage)? == LockHolder::None {
            return self.ask_store(arguments);
        }
        control::ask_with_timeout(&directories(root).run(cage), cage, "retry", arguments, COMMAND_TIMEOUT).map_err(
            |error| match error {
                ControlError::Refused { code, text, .. } => CommandError::Call { code, text },
                ControlError::Connect { .. } | ControlError::Answer { .. } => error.into(),
            },
        )
    }

    fn ask_store(&self, arguments: Value) -> Result<Value, CommandError> {
        let settings = config(&self.root.root, &self.cage)?.store;
        let store = Store::new(&self.cage, &directories(&self.root.root).state(&self.cage), settings);
        let store = std::sync::Arc::new(store);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| CommandError::failed("cannot set up a runtime", error))?;
        let answer = runtime.block_on(retry::answer(&store, arguments));
        answer.map_err(|CommandRefusal { code, text }| CommandError::Call { code, text })
    }

    fn change(&self, request: &RetryRequest) -> Result<Vec<ChangeResult>, CommandError> {
        let failed = |error| CommandError::failed("the cage answered in a way this version does not know", error);
        serde_json::from_value(self.ask(request)?).map_err(failed)
    }
}

/// Timeout of a command that may change many calls.
const COMMAND_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// Prints the result of each change: `done` says what was done. Returns the exit code.
fn print_changes(changes: Vec<ChangeResult>, done: &str) -> Result<u8, CommandError> {
    let mut code = STOPPED;
    for ChangeResult { id, error } in &changes {
        match error {
            None => print(format_args!("{id} {done}"))?,
            Some(error) => {
                code = FAILED;
                print(format_args!("{id}: {error}"))?;
            }
        }
    }
    if changes.is_empty() {
        print("there is no such call")?;
    }
    Ok(code)
}
