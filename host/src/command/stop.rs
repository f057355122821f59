//! `wasmcage stop`: a signal to the primary, and the wait for its end.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use rustix::process::{Pid, Signal, kill_process};

use super::{CommandError, RootArg, cages_in, check_cages, completion, holder, print};
use crate::supervisor::pid_lock::Holder;
use crate::supervisor::{FAILED, STOPPED};

const POLL: Duration = Duration::from_millis(20);
/// How long a primary may take to write its pid.
const PID_PATIENCE: Duration = Duration::from_secs(2);

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
    /// Cut off requests in flight
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
        let mut stopping: BTreeMap<i32, Vec<&String>> = BTreeMap::new();
        for cage in &self.cages {
            match pid_of(root, cage)? {
                Some(pid) => stopping.entry(pid).or_default().push(cage),
                None => print(format_args!("{cage} is not running"))?,
            }
        }
        for pid in stopping.keys() {
            self.refuse_bystanders(*pid)?;
        }
        for pid in stopping.keys() {
            signal(*pid, self.force)?;
        }
        let until = Instant::now() + Duration::from_secs(self.wait);
        let mut code = STOPPED;
        for cage in stopping.into_values().flatten() {
            if wait_for_end(root, cage, until)? {
                print(format_args!("{cage} has stopped"))?;
            } else {
                print(format_args!("{cage} is still stopping after {} s; --force cuts it short", self.wait))?;
                code = FAILED;
            }
        }
        Ok(code)
    }

    /// Cages that were started together end together: none does so unasked.
    fn refuse_bystanders(&self, pid: i32) -> Result<(), CommandError> {
        let root = &self.root.root;
        let mut together = Vec::new();
        for cage in cages_in(root) {
            if holder(root, &cage)? == Holder::Pid(Some(pid)) {
                together.push(cage);
            }
        }
        if together.iter().all(|cage| self.cages.contains(cage)) {
            return Ok(());
        }
        let together = together.join(" ");
        Err(CommandError::Usage(format!(
            "these cages run in one process, and stop together only: wasmcage stop {together}"
        )))
    }
}

/// The primary's pid; none when there is no primary.
fn pid_of(root: &Path, cage: &str) -> Result<Option<i32>, CommandError> {
    let until = Instant::now() + PID_PATIENCE;
    loop {
        match holder(root, cage)? {
            Holder::None => return Ok(None),
            Holder::Pid(Some(pid)) => return Ok(Some(pid)),
            Holder::Pid(None) if Instant::now() < until => std::thread::sleep(POLL),
            Holder::Pid(None) => {
                return Err(CommandError::Refused(format!("cage {cage} is running, but its pid file is empty")));
            }
        }
    }
}

fn signal(pid: i32, force: bool) -> Result<(), CommandError> {
    let Some(target) = Pid::from_raw(pid) else { return Ok(()) };
    let failed = |error| CommandError::failed(format!("cannot signal process {pid}"), std::io::Error::from(error));
    // Two different ones: equal signals that come together are taken for one.
    let signals: &[Signal] = if force { &[Signal::TERM, Signal::INT] } else { &[Signal::TERM] };
    for signal in signals {
        match kill_process(target, *signal) {
            Ok(()) => {}
            // It has ended meanwhile.
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn wait_for_end(root: &Path, cage: &str, until: Instant) -> Result<bool, CommandError> {
    loop {
        if holder(root, cage)? == Holder::None {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
}
