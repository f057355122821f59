//! The primary's life, from the first start of the secondary to its exit code.

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

use super::ended::{Ended, Verdict, restart_pauses};
use super::pid_lock::{LockError, PidLock};
use super::signals::Signals;
use super::stop::{PrimaryCommands, Stop, StopSwitch};
use super::{FAILED, OWN_PROGRAM, RunOptions, STOPPED, SuperviseError, adopted, heartbeat};
use crate::control::{Server, primary_socket_path};

/// Between two looks whether the locks are still where others look for them.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the cages are stopped, or cannot be started.
///
/// # Errors
/// What keeps the secondary from being started at all.
pub(crate) fn supervise(options: &RunOptions, locks: Vec<PidLock>) -> Result<u8, SuperviseError> {
    let _logs: Vec<_> = options.cages.iter().map(|cage| open_log(options, cage)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(SuperviseError::Setup)?;
    let stop = StopSwitch::new();
    let of_thread = stop.clone();
    // It ends with the process, and the locks with it.
    let thread = std::thread::Builder::new().name("lock-watch".into()).spawn(move || watch_locks(locks, &of_thread));
    thread.map_err(SuperviseError::Setup)?;
    runtime.block_on(async {
        let signals = Signals::new().map_err(SuperviseError::Setup)?;
        let serving = options.cages.iter().filter_map(|cage| serve(options, cage, &stop));
        let obeying = tokio::spawn(stop.clone().obey(signals));
        let reaping = tokio::spawn(adopted::reap());
        let _tasks: Vec<_> = serving.chain([obeying, reaping]).map(AbortOnDropHandle::new).collect();
        keep_running(options, stop.subscribe()).await
    })
}

/// The primary writes into the same file as the secondary, as the cage's settings say. When they cannot be read, the
/// secondary tells why.
fn open_log(options: &RunOptions, cage: &str) -> CageLog {
    let config = load_config(&options.directories.root, cage, &host_name(), protocols()).ok();
    let settings = config.map_or_else(LogSettings::default, |config| config.log_settings());
    CageLog::open(cage, &options.directories.logs(cage), settings)
}

/// Answers `wasmcage stop`. Without a socket, on a file system that has none, signals are left.
fn serve(options: &RunOptions, cage: &str, stop: &StopSwitch) -> Option<tokio::task::JoinHandle<()>> {
    let answer = Arc::new(PrimaryCommands { cages: options.cages.clone(), stop: stop.clone() });
    match NamedListener::bind(&primary_socket_path(&options.directories.run(cage))) {
        Ok(listener) => Some(tokio::spawn(Server { cage: cage.to_owned(), listener, answer }.serve())),
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(%cage, %error, "socket for `wasmcage stop` could not be made, only signals stop the cage");
            None
        }
    }
}

/// Keeps the locks where others look for them, as long as nobody else has them, on a thread of its own: a disk that does not
/// answer must not keep the primary from its work. A cage that another process has taken is no longer this one's, and two must
/// not serve it.
fn watch_locks(mut locks: Vec<PidLock>, stop: &StopSwitch) {
    loop {
        std::thread::sleep(LOCK_INTERVAL);
        if !locks.iter_mut().all(look_after) {
            stop.raise(Stop::Drain);
        }
    }
}

/// False when another process has the cage.
fn look_after(lock: &mut PidLock) -> bool {
    let cage = lock.cage().to_owned();
    match lock.look_after() {
        Ok(false) => {}
        Ok(true) => tracing::warn!(%cage, "the cage's lock had been removed and was made again"),
        Err(error @ LockError::Held { .. }) => {
            let error = error_chain(&error);
            tracing::error!(%cage, %error, "another process has taken the cage while its lock was gone, this one stops");
            return false;
        }
        // The cage's directory is gone, or the disk fails: there is nothing to do but to look again.
        Err(LockError::Write { .. }) => {}
    }
    true
}

async fn keep_running(options: &RunOptions, mut stop: watch::Receiver<Stop>) -> Result<u8, SuperviseError> {
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
                Ended::default()
            }
        };
        let reason = match ended.verdict(restarts == 0) {
            Verdict::Exit(code) => {
                if code != STOPPED {
                    let reason = ended.describe();
                    options.for_each_cage(|cage| {
                        tracing::error!(%cage, reason, "cage process ended and is not restarted");
                    });
                }
                return Ok(code);
            }
            Verdict::Restart(reason) => reason,
        };
        let pause = pauses.pause_after(started.elapsed());
        restarts += 1;
        options.for_each_cage(|cage| {
            tracing::error!(%cage, reason, pause_s = pause.as_secs(), restarts, "cage process failed and is restarted");
        });
        tokio::select! {
            biased;
            asked = stop.wait_for(|stop| *stop != Stop::No) => return Ok(if asked.is_ok() { STOPPED } else { FAILED }),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// In a process group of its own, so that Ctrl-C in a terminal reaches the primary alone, which decides.
fn spawn(options: &RunOptions) -> io::Result<(Child, UnixStream)> {
    let (socket, stdin) = heartbeat::pair()?;
    let mut command = Command::new(OWN_PROGRAM);
    command.arg0("wasmcage").args(options.arguments()).stdin(Stdio::from(stdin)).process_group(0);
    Ok((command.spawn()?, socket))
}

/// Waits for the secondary's end, and tells it to end: by a signal, and when it may not finish its work, or gives no sign of
/// life, by one that it cannot refuse.
async fn watch(mut child: Child, mut socket: UnixStream, stop: &mut watch::Receiver<Stop>) -> Ended {
    let mut stopping = *stop.borrow_and_update() != Stop::No;
    let mut silent = false;
    if stopping {
        tell(&child, *stop.borrow());
    }
    let pid = child.id();
    let mut hung = pin!(heartbeat::silent(&mut socket, heartbeat::INTERVAL, pid));
    loop {
        tokio::select! {
            status = child.wait() => return Ended { status: status.ok(), stopping, silent },
            changed = stop.changed() => {
                // The switch lives as long as the runtime.
                let wish = if changed.is_ok() { *stop.borrow_and_update() } else { Stop::Force };
                stopping = true;
                tell(&child, wish);
            }
            () = &mut hung, if !silent => {
                silent = true;
                tell(&child, Stop::Force);
            }
        }
    }
}

/// A child that was not waited for has its number to itself.
fn tell(child: &Child, wish: Stop) {
    let signal = match wish {
        Stop::No => return,
        Stop::Drain => Signal::TERM,
        Stop::Force => Signal::KILL,
    };
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        // It may have ended by itself; then the wait is over at once.
        let _ = kill_process(pid, signal);
    }
}
