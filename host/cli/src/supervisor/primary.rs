//! Runs the primary: starts the secondary, restarts it when it fails or hangs, and returns the exit code.

use std::io;
use std::pin::pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocols;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use wasmcage::cage::load_config;
use wasmcage::host::host_name;
use wasmcage_core::telemetry::{CageLog, LogSettings, error_chain};
use wasmcage_core::unix_socket::NamedListener;

use super::exit_report::{ExitDecision, ExitReport, restart_pauses};
use super::pid_lock::{PidLock, PidLockError};
use super::signals::Signals;
use super::stop::{PrimaryCommands, StopLevel, StopSwitch};
use super::{FAILED, OWN_PROGRAM, RunOptions, STOPPED, SuperviseError, adopted, heartbeat};
use crate::control::{ControlServer, primary_socket_path};

/// Interval at which the files of the locks are checked.
const LOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the cages are stopped, or cannot be started.
///
/// # Errors
/// The reason why the secondary could not be started at all.
pub(crate) fn supervise(options: &RunOptions, locks: Vec<PidLock>) -> Result<u8, SuperviseError> {
    let _logs: Vec<_> = options.cages.iter().map(|cage| open_log(options, cage)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(SuperviseError::Setup)?;
    let stop = StopSwitch::new();
    let of_thread = stop.clone();
    // The thread, and with it the locks, ends with the process.
    let thread = std::thread::Builder::new().name("lock-watch".into()).spawn(move || watch_locks(locks, &of_thread));
    thread.map_err(SuperviseError::Setup)?;
    runtime.block_on(async {
        let signals = Signals::new().map_err(SuperviseError::Setup)?;
        let serving = options.cages.iter().filter_map(|cage| serve(options, cage, &stop));
        let following_signals = tokio::spawn(stop.clone().follow_signals(signals));
        let reaping = tokio::spawn(adopted::reap());
        let _tasks: Vec<_> = serving.chain([following_signals, reaping]).map(AbortOnDropHandle::new).collect();
        keep_running(options, stop.subscribe()).await
    })
}

/// Opens the cage's log with the cage's settings; the secondary writes to the same file. If the configuration cannot be
/// read, defaults are used, and the secondary reports the error.
fn open_log(options: &RunOptions, cage: &str) -> CageLog {
    let config = load_config(&options.directories.root, cage, &host_name(), protocols()).ok();
    let settings = config.map_or_else(LogSettings::default, |config| config.log_settings());
    CageLog::open(cage, &options.directories.logs(cage), settings)
}

/// Serves the socket for `wasmcage stop`. On a file system without sockets, only signals stop the cage.
fn serve(options: &RunOptions, cage: &str, stop: &StopSwitch) -> Option<tokio::task::JoinHandle<()>> {
    let handler = Arc::new(PrimaryCommands { cages: options.cages.clone(), stop: stop.clone() });
    match NamedListener::bind(&primary_socket_path(&options.directories.run(cage))) {
        Ok(listener) => Some(tokio::spawn(ControlServer { cage: cage.to_owned(), listener, handler }.serve())),
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(%cage, %error, "socket for `wasmcage stop` could not be made, only signals stop the cage");
            None
        }
    }
}

/// Restores the locks when their files are removed. Runs on a thread of its own, so that a disk that does not answer
/// does not block the primary. If another process has taken a cage, this one stops: two must not serve it.
fn watch_locks(mut locks: Vec<PidLock>, stop: &StopSwitch) {
    loop {
        std::thread::sleep(LOCK_CHECK_INTERVAL);
        if !locks.iter_mut().all(restore) {
            stop.raise(StopLevel::Drain);
        }
    }
}

/// Returns false when another process has taken the cage.
fn restore(lock: &mut PidLock) -> bool {
    let cage = lock.cage().to_owned();
    match lock.restore() {
        Ok(false) => {}
        Ok(true) => tracing::warn!(%cage, "the cage's lock had been removed and was made again"),
        Err(error @ PidLockError::Held { .. }) => {
            let error = error_chain(&error);
            tracing::error!(%cage, %error, "another process has taken the cage while its lock was gone, this one stops");
            return false;
        }
        // The cage's directory is gone, or the disk fails: tried again at the next check.
        Err(PidLockError::Write { .. }) => {}
    }
    true
}

async fn keep_running(options: &RunOptions, mut stop: watch::Receiver<StopLevel>) -> Result<u8, SuperviseError> {
    let mut pauses = restart_pauses();
    let mut restarts = 0_u64;
    loop {
        let started = Instant::now();
        let ended = match spawn(options) {
            Ok((child, socket)) => watch(child, socket, &mut stop).await,
            Err(error) if restarts == 0 => return Err(SuperviseError::Spawn(error)),
            Err(error) => {
                let error = error_chain(&error);
                options.for_each_cage(|cage| tracing::error!(%cage, %error, "cage process could not be started"));
                ExitReport::default()
            }
        };
        let reason = match ended.decide(restarts == 0) {
            ExitDecision::Exit(code) => {
                if code != STOPPED {
                    let reason = ended.describe();
                    options.for_each_cage(|cage| {
                        tracing::error!(%cage, reason, "cage process ended and is not restarted");
                    });
                }
                return Ok(code);
            }
            ExitDecision::Restart(reason) => reason,
        };
        let pause = pauses.pause_after(started.elapsed());
        restarts += 1;
        options.for_each_cage(|cage| {
            tracing::error!(%cage, reason, pause_s = pause.as_secs(), restarts, "cage process failed and is restarted");
        });
        tokio::select! {
            biased;
            asked = stop.wait_for(|stop| *stop != StopLevel::No) => return Ok(if asked.is_ok() { STOPPED } else { FAILED }),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Starts the secondary in a process group of its own, so that Ctrl-C in a terminal reaches only the primary.
fn spawn(options: &RunOptions) -> io::Result<(Child, UnixStream)> {
    let (socket, stdin) = heartbeat::pair()?;
    let mut command = Command::new(OWN_PROGRAM);
    command.arg0("wasmcage").args(options.arguments()).stdin(Stdio::from(stdin)).process_group(0);
    Ok((command.spawn()?, socket))
}

/// Waits for the secondary's end. Sends it TERM when it has to drain, and KILL when it has to stop at once or sends no
/// heartbeats.
async fn watch(mut child: Child, mut socket: UnixStream, stop: &mut watch::Receiver<StopLevel>) -> ExitReport {
    let mut stopping = *stop.borrow_and_update() != StopLevel::No;
    let mut silent = false;
    if stopping {
        signal_child(&child, *stop.borrow());
    }
    let pid = child.id();
    let mut hung = pin!(heartbeat::wait_for_silence(&mut socket, heartbeat::INTERVAL, pid));
    loop {
        tokio::select! {
            status = child.wait() => return ExitReport { status: status.ok(), stopping, silent },
            changed = stop.changed() => {
                // The switch lives as long as the runtime.
                let level = if changed.is_ok() { *stop.borrow_and_update() } else { StopLevel::Force };
                stopping = true;
                signal_child(&child, level);
            }
            () = &mut hung, if !silent => {
                silent = true;
                signal_child(&child, StopLevel::Force);
            }
        }
    }
}

/// Signals the secondary. Its pid cannot have been reused, since it was not waited for.
fn signal_child(child: &Child, level: StopLevel) {
    let signal = match level {
        StopLevel::No => return,
        StopLevel::Drain => Signal::TERM,
        StopLevel::Force => Signal::KILL,
    };
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        // An error means that it has ended, which the wait reports.
        let _ = kill_process(pid, signal);
    }
}
