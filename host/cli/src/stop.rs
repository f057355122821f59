//! `wasmcage stop`: asks the primary on its socket, and waits for its end. A pid from a file is never signalled: in
//! another container, or after a reboot, the number may be of another process.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use serde_json::Value;

use super::{CommandError, RootArg, check_cages, completion, directories, holder, print};
use crate::control::{ControlError, ask_primary, primary_socket_path, socket_path};
use crate::supervisor::pid_lock::LockHolder;
use crate::supervisor::socket_owner::SocketOwner;
use crate::supervisor::stop::{PrimaryStatus, StopRequest};
use crate::supervisor::{FAILED, STOPPED};

const POLL: Duration = Duration::from_millis(20);
/// Time for a primary to make its socket.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(2);

/// Drain and stop running cages
///
/// Requests in flight are finished, up to each cage's request_timeout_ms. A cage that is not running is stopped already.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage stop hello
  wasmcage stop hello --force     without waiting for requests in flight")]
pub(super) struct StopArgs {
    /// Names of the cages
    #[arg(required = true, value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cages: Vec<String>,
    /// Cut off requests in flight, and kill processes that do not answer
    #[arg(long)]
    force: bool,
    /// How long to wait for the end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    #[command(flatten)]
    root: RootArg,
}

impl StopArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let root = &self.root.root;
        check_cages(root, &self.cages)?;
        let mut running = Vec::new();
        for cage in &self.cages {
            match holder(root, cage)? {
                LockHolder::None => print(format_args!("{cage} is not running"))?,
                LockHolder::Pid(_) => running.push(cage),
            }
        }
        for cage in &running {
            self.refuse_bystanders(cage)?;
        }
        for cage in &running {
            self.ask(cage)?;
        }
        let until = Instant::now() + Duration::from_secs(self.wait);
        let mut code = STOPPED;
        for cage in running {
            if wait_for_end(root, cage, until)? {
                print(format_args!("{cage} has stopped"))?;
            } else {
                print(format_args!("{cage} is still stopping after {} s; --force cuts it short", self.wait))?;
                code = FAILED;
            }
        }
        Ok(code)
    }

    /// Refuses to stop the cage if others that were not named would stop with it: cages that were started together stop
    /// together.
    fn refuse_bystanders(&self, cage: &str) -> Result<(), CommandError> {
        let Some(PrimaryStatus { cages: together, .. }) = self.command(cage, "status", Value::Null)? else {
            return Ok(());
        };
        if together.iter().all(|cage| self.cages.contains(cage)) {
            return Ok(());
        }
        let together = together.join(" ");
        Err(CommandError::Usage(format!(
            "these cages run in one process, and stop together only: wasmcage stop {together}"
        )))
    }

    fn ask(&self, cage: &str) -> Result<(), CommandError> {
        let request = serde_json::to_value(StopRequest { force: self.force }).expect("a request has text keys only");
        self.command(cage, "stop", request).map(|_| ())
    }

    /// Sends the primary a command. Returns none if it has ended meanwhile, or was killed because it did not answer.
    fn command(&self, cage: &str, command: &str, arguments: Value) -> Result<Option<PrimaryStatus>, CommandError> {
        let root = &self.root.root;
        let run = directories(root).run(cage);
        let until = Instant::now() + SOCKET_TIMEOUT;
        let failure = loop {
            match ask_primary(&run, cage, command, arguments.clone()) {
                Ok(answer) => return Ok(serde_json::from_value(answer).ok()),
                Err(_) if holder(root, cage)? == LockHolder::None => return Ok(None),
                Err(ControlError::Connect { .. }) if Instant::now() < until => std::thread::sleep(POLL),
                Err(error) => break error,
            }
        };
        if self.force && kill(&run)? {
            return Ok(None);
        }
        let hint =
            "--force kills its processes if the system names them; else send TERM to the process that holds the lock";
        Err(CommandError::failed(
            format!("cage {cage} is running, but its primary process does not answer: {hint}"),
            failure,
        ))
    }
}

/// Kills the processes that listen on the cage's sockets: first the primary, which would restart the secondary. Returns
/// false when there is none.
fn kill(run: &Path) -> Result<bool, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::failed("cannot make a runtime", error))?;
    let mut killed = false;
    for socket in [primary_socket_path(run), socket_path(run)] {
        let failed = |error| CommandError::failed(format!("cannot kill the process at {}", socket.display()), error);
        if let Some(owner) = runtime.block_on(SocketOwner::at(&socket)).map_err(failed)? {
            owner.kill().map_err(failed)?;
            killed = true;
        }
    }
    Ok(killed)
}

fn wait_for_end(root: &Path, cage: &str, until: Instant) -> Result<bool, CommandError> {
    loop {
        if holder(root, cage)? == LockHolder::None {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
}
