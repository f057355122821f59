//! The two processes of `wasmcage run`. The primary holds each cage's pid file, starts the secondary, which serves, and
//! starts it again when it fails; a signal to the primary drains and stops both. The primary never reads a module and has
//! nothing to crash of. The secondary learns by its standard input, a pipe, that its primary has gone, and ends too.

mod adopted;
mod commands;
pub(crate) mod pid_lock;
pub(crate) mod secondary;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind};
use wasmcage::cage::load_config;
use wasmcage::host::host_name;
use wasmcage::telemetry::{CageLog, LogFormat, LogSettings, error_chain};

use self::pid_lock::{LockError, PidLock};

/// Exit codes of both processes: stopped as it should; failed; wrong arguments or configuration.
pub(crate) const STOPPED: u8 = 0;
pub(crate) const FAILED: u8 = 1;
pub(crate) const MISCONFIGURED: u8 = 2;

/// A secondary that ran for so long was well: the next failure is a first one.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// The longest pause before a restart.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What both processes are told.
#[derive(Clone, Debug)]
pub(crate) struct RunOptions {
    /// Directory of the cages, all of which exist.
    pub root: PathBuf,
    pub cages: Vec<String>,
    pub lanes: Option<usize>,
    /// Overrides the cages' own.
    pub log_format: Option<LogFormat>,
}

impl RunOptions {
    /// The secondary's command line.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["secondary".into(), "--root".into(), self.root.clone().into()];
        if let Some(lanes) = self.lanes {
            arguments.extend(["--lanes".into(), lanes.to_string().into()]);
        }
        if let Some(format) = self.log_format {
            arguments.extend(["--log-format".into(), format.name().into()]);
        }
        arguments.push("--".into());
        arguments.extend(self.cages.iter().map(OsString::from));
        arguments
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SuperviseError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot set up the process")]
    Setup(#[source] io::Error),
    #[error("cannot start the cage's process")]
    Spawn(#[source] io::Error),
}

/// The cages' pid files, held from before the first build to the end.
pub(crate) fn lock(options: &RunOptions) -> Result<Vec<PidLock>, LockError> {
    options.cages.iter().map(|cage| PidLock::acquire(&options.root.join(cage), cage)).collect()
}

/// The primary's life, from the first start of the secondary to its exit code.
///
/// # Errors
/// What keeps the secondary from being started at all.
pub(crate) fn supervise(options: &RunOptions, _locks: &[PidLock]) -> Result<u8, SuperviseError> {
    let _logs: Vec<_> = options.cages.iter().map(|cage| open_log(options, cage)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(SuperviseError::Setup)?;
    runtime.spawn(adopted::reap());
    runtime.block_on(keep_running(options))
}

/// The primary writes into the same file as the secondary, as the cage's settings say. When they cannot be read, the
/// secondary tells why.
fn open_log(options: &RunOptions, cage: &str) -> CageLog {
    let config = load_config(&options.root, cage, &host_name()).ok();
    let settings = config.map_or_else(LogSettings::default, |config| config.log_settings());
    CageLog::open(cage, &options.root.join(cage), settings)
}

async fn keep_running(options: &RunOptions) -> Result<u8, SuperviseError> {
    let mut signals = Signals::new().map_err(SuperviseError::Setup)?;
    let mut backoff = Backoff::default();
    let mut restarts = 0_u64;
    loop {
        let started = Instant::now();
        let child = match spawn(options) {
            Ok(child) => Some(child),
            Err(error) if restarts == 0 => return Err(SuperviseError::Spawn(error)),
            Err(error) => {
                for_each_cage(
                    options,
                    |cage| tracing::error!(%cage, error = %error_chain(&error), "cage process could not be started"),
                );
                None
            }
        };
        let ended = match child {
            Some(child) => watch(child, &mut signals).await,
            None => Ended { status: None, stopping: false },
        };
        let reason = match ended.verdict(restarts == 0) {
            Verdict::Exit(code) => {
                if code != STOPPED {
                    let reason = ended.describe();
                    for_each_cage(
                        options,
                        |cage| tracing::error!(%cage, reason, "cage process ended and is not restarted"),
                    );
                }
                return Ok(code);
            }
            Verdict::Restart(reason) => reason,
        };
        let pause = backoff.next(started.elapsed());
        restarts += 1;
        for_each_cage(options, |cage| {
            tracing::error!(%cage, reason, pause_s = pause.as_secs(), restarts, "cage process failed and is restarted");
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = signals.next() => return Ok(STOPPED),
        }
    }
}

fn for_each_cage(options: &RunOptions, log: impl Fn(&str)) {
    options.cages.iter().for_each(|cage| log(cage));
}

/// In a process group of its own, so that Ctrl-C in a terminal reaches the primary alone, which decides.
fn spawn(options: &RunOptions) -> io::Result<Child> {
    let program = std::env::current_exe()?;
    Command::new(program).args(options.arguments()).stdin(Stdio::piped()).process_group(0).spawn()
}

/// Waits for the secondary's end, and passes on what signals ask for: the first drains, the second kills.
async fn watch(mut child: Child, signals: &mut Signals) -> Ended {
    // Held open to the end: `wait` would close it, which tells the secondary that its primary has gone.
    let _pipe = child.stdin.take();
    let mut stopping = false;
    loop {
        tokio::select! {
            status = child.wait() => return Ended { status: status.ok(), stopping },
            () = signals.next() => {
                let signal = if stopping { Signal::KILL } else { Signal::TERM };
                stopping = true;
                let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
                if let Some(pid) = pid {
                    // It may have ended by itself; then the wait is over at once.
                    let _ = kill_process(pid, signal);
                }
            }
        }
    }
}

/// How the secondary ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    /// None: it could not be started, or the system does not say.
    status: Option<ExitStatus>,
    /// It had been asked to.
    stopping: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Exit(u8),
    Restart(String),
}

impl Ended {
    fn verdict(self, first: bool) -> Verdict {
        let code = self.status.and_then(|status| status.code());
        match code {
            Some(0) => Verdict::Exit(STOPPED),
            _ if self.stopping => Verdict::Exit(FAILED),
            // A configuration that breaks while the cage runs is no reason to give up: mending it must be enough.
            Some(code) if code == i32::from(MISCONFIGURED) && first => Verdict::Exit(MISCONFIGURED),
            _ => Verdict::Restart(self.describe()),
        }
    }

    fn describe(self) -> String {
        match self.status {
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => status.to_string(),
            },
            None => "it did not start".to_owned(),
        }
    }
}

/// The pauses between failures: none, then 1, 2, 4.. seconds up to the longest.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self, ran: Duration) -> Duration {
        if ran >= WELL_AFTER {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            failures => Duration::from_secs(1 << (failures - 1).min(16)).min(PAUSE_MAX),
        };
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

/// The signals that ask a process to stop.
pub(crate) struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            hangup: unix::signal(SignalKind::hangup())?,
        })
    }

    /// Resolves at the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_the_others_wait() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let pauses: Vec<_> = (0..9).map(|_| backoff.next(short).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(backoff.next(WELL_AFTER).as_secs(), 0);
        assert_eq!(backoff.next(short).as_secs(), 1);
        backoff.failures = u32::MAX - 1;
        assert_eq!(backoff.next(short), PAUSE_MAX);
    }

    #[test]
    fn endings_decide_between_exit_and_restart() {
        #[track_caller]
        fn check(raw: i32, stopping: bool, first: bool, expected: Verdict) {
            assert_eq!(Ended { status: Some(ExitStatus::from_raw(raw)), stopping }.verdict(first), expected);
        }
        let code = |code: i32| code << 8;
        check(code(0), false, false, Verdict::Exit(STOPPED));
        check(code(0), true, false, Verdict::Exit(STOPPED));
        check(code(1), true, false, Verdict::Exit(FAILED));
        check(9, true, false, Verdict::Exit(FAILED));
        check(code(2), false, true, Verdict::Exit(MISCONFIGURED));
        check(code(2), false, false, Verdict::Restart("exit code 2".into()));
        check(code(1), false, true, Verdict::Restart("exit code 1".into()));
        check(11, false, false, Verdict::Restart("signal 11".into()));
        let unknown = Ended { status: None, stopping: false };
        assert_eq!(unknown.verdict(false), Verdict::Restart("it did not start".into()));
    }
}
