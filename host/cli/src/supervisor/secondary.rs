//! Runs the secondary, the process that serves: `wasmcage secondary`, started by the primary. It runs the host, serves
//! the control sockets, sends heartbeats, and drains at a signal or when its standard input ends because its primary has
//! gone.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::protocols;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;
use wasmcage::host::{Host, HostOptions, ServingLine, StartError};
use wasmcage_core::directories::Directories;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::telemetry::{self, CageLog, LogSettings, error_chain};
use wasmcage_core::unix_socket::NamedListener;

use super::commands::SecondaryCommands;
use super::signals::Signals;
use super::socket_owner::SocketOwner;
use super::{FAILED, MISCONFIGURED, OWN_PROGRAM, RunOptions, STARVED, STOPPED, heartbeat};
use crate::control::{self, ControlServer};

/// Threads of the ordinary runtime, which runs no guests: watching, control, timers.
const WORKER_THREADS: usize = 2;
/// Threads for watching the primary, for the epoch, for watching stores, and some for blocking work.
const OTHER_THREADS: usize = 7;
/// Threads of each cage: its log, the watch of its directory, its store.
const THREADS_PER_CAGE: usize = 3;
/// Timeout for tasks that are still running when the host has stopped.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("cannot set up the process")]
    Setup(#[source] io::Error),
    #[error(
        "the system gives this process too few threads: see ulimit -u, TasksMax of a systemd unit, pids.max of a cgroup"
    )]
    Threads(#[source] io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl ServeError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Start(error) if error.is_configuration() => MISCONFIGURED,
            Self::Start(_) | Self::Setup(_) => FAILED,
            Self::Threads(_) => STARVED,
        }
    }
}

/// Serves the cages until they are stopped. Returns the exit code.
///
/// # Errors
/// The reason why the cages could not be started; it has been logged.
pub(crate) fn serve(options: &RunOptions) -> Result<u8, ServeError> {
    let served = match runtime(options) {
        Ok(runtime) => {
            let served = runtime.block_on(run(options));
            runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
            served
        }
        Err(error) => Err(error),
    };
    if let Err(error) = &served {
        log_failure(options, error);
    }
    served
}

fn runtime(options: &RunOptions) -> Result<Runtime, ServeError> {
    try_threads(threads_needed(options)).map_err(ServeError::Threads)?;
    Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().build().map_err(ServeError::Setup)
}

/// Returns the number of threads that the cages need to serve.
fn threads_needed(options: &RunOptions) -> usize {
    WORKER_THREADS
        + options.lanes.unwrap_or_else(Lanes::default_count)
        + OTHER_THREADS
        + THREADS_PER_CAGE * options.cages.len()
}

/// Checks that the system allows that many threads: libraries panic or hang when a thread is refused during their start.
fn try_threads(count: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        let _closed = gate.lock();
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, || drop(gate.lock())).map(|_| ());
        (0..count).try_for_each(start)
    })
}

/// Logs the error to each cage. The logs are opened again, since those of the host have been closed.
fn log_failure(options: &RunOptions, error: &ServeError) {
    for cage in &options.cages {
        let log = CageLog::open(cage, &options.directories.logs(cage), LogSettings::default());
        tracing::error!(%cage, error = %error_chain(error), "cage could not be started");
        log.flush();
    }
}

async fn run(options: &RunOptions) -> Result<u8, ServeError> {
    let _beats = AbortOnDropHandle::new(tokio::spawn(heartbeat::send()));
    let mut stop_requested = pin!(stop_requested(options)?);
    let mut listeners = Vec::with_capacity(options.cages.len());
    for cage in &options.cages {
        watch_predecessor(options, cage).await;
        listeners.extend(listen(options, cage));
    }
    let mut host = Host::prepare(host_options(options))?;
    let early = tokio::select! {
        () = host.serve() => false,
        () = &mut stop_requested => true,
    };
    if early {
        // Cages that have begun to serve are drained.
        return Ok(stop(host).await);
    }
    show(&host.serving());
    let host = Arc::new(Mutex::new(Some(host)));
    let servers = listeners.into_iter().map(|(cage, listener)| {
        let handler = Arc::new(SecondaryCommands::new(cage.clone(), host.clone()));
        AbortOnDropHandle::new(tokio::spawn(ControlServer { cage, listener, handler }.serve()))
    });
    let _servers: Vec<_> = servers.collect();
    stop_requested.await;
    let host = host.lock().take().expect("nobody else takes the host");
    Ok(stop(host).await)
}

fn host_options(options: &RunOptions) -> HostOptions {
    let Directories { root, state, logs } = options.directories.clone();
    let mut host_options = HostOptions::new(root, options.cages.iter().cloned(), protocols().clone());
    (host_options.state, host_options.logs) = (state, logs);
    host_options.lanes = options.lanes;
    host_options.compiler = Some(OWN_PROGRAM.into());
    host_options
}

/// Watches a process of the cage whose primary has gone: it finishes its requests while this one serves, and is killed
/// if it hangs.
async fn watch_predecessor(options: &RunOptions, cage: &str) {
    let socket = control::socket_path(&options.directories.run(cage));
    // If the process cannot be identified, it is left to end by itself.
    if let Ok(Some(predecessor)) = SocketOwner::at(&socket).await {
        let cage = cage.to_owned();
        tokio::spawn(async move {
            if predecessor.wait_or_kill().await {
                tracing::warn!(%cage, "a process of the cage whose primary has gone did not answer and was killed");
            }
        });
    }
}

/// Binds the cage's control socket, also in place of that of a process that is ending: this one's primary has the lock.
fn listen(options: &RunOptions, cage: &str) -> Option<(String, NamedListener)> {
    let run = options.directories.make_run(cage);
    match run.and_then(|run| NamedListener::bind(&control::socket_path(&run))) {
        Ok(listener) => Some((cage.to_owned(), listener)),
        // The cage serves without it; only commands such as `ps` do not work.
        Err(error) => {
            let log = CageLog::open(cage, &options.directories.logs(cage), LogSettings::default());
            tracing::warn!(%cage, error = %error_chain(&error), "control socket could not be made");
            log.flush();
            None
        }
    }
}

/// Returns a future that resolves when the process has to stop: at the first signal, or when its primary has gone.
/// Further signals have no effect; KILL ends the process at once.
fn stop_requested(options: &RunOptions) -> Result<impl Future<Output = ()>, ServeError> {
    let mut signals = Signals::new().map_err(ServeError::Setup)?;
    let primary_gone = primary_gone().map_err(ServeError::Setup)?;
    Ok(async move {
        tokio::select! {
            _ = signals.next() => {}
            _ = primary_gone => options.for_each_cage(|cage| {
                tracing::warn!(%cage, "supervising process has gone, cage is stopping");
            }),
        }
    })
}

/// Drains the host. Returns the exit code.
async fn stop(host: Host) -> u8 {
    // Requests that were cut off are in the log. The stop was requested, so the exit code is that of success.
    let _finished = host.stop().await;
    STOPPED
}

/// Returns a channel that receives when standard input ends. Its thread runs until the process ends.
fn primary_gone() -> io::Result<oneshot::Receiver<()>> {
    let (gone, primary_gone) = oneshot::channel();
    std::thread::Builder::new().name("primary-watch".into()).spawn(move || {
        let mut byte = [0];
        // The primary never writes; an end or an error means that it has gone.
        while matches!(io::stdin().read(&mut byte), Ok(1..)) {}
        // The receiver has been dropped if the process is stopping already.
        let _ = gone.send(());
    })?;
    Ok(primary_gone)
}

/// Prints on a terminal which interfaces serve at which addresses.
fn show(serving: &[ServingLine]) {
    let mut stdout = io::stdout();
    if !stdout.is_terminal() {
        return;
    }
    let width = |part: fn(&ServingLine) -> &String| serving.iter().map(|line| part(line).len()).max().unwrap_or(0);
    let (cages, interfaces, addresses) =
        (width(|line| &line.cage), width(|line| &line.interface), width(|line| &line.address));
    let mut text = String::from(if serving.is_empty() { "\nno interface serves yet\n" } else { "\n" });
    for ServingLine { cage, interface, address, module, .. } in serving {
        text += &format!("  {cage:cages$}  {interface:interfaces$}  {address:addresses$}  {module}\n");
    }
    text += "\nCtrl-C stops\n\n";
    // The log lines of the start go to the same terminal, and come first.
    telemetry::flush();
    // The cages also serve if the terminal has been closed.
    let _ = stdout.write_all(text.as_bytes());
}
