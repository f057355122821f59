//! The process that serves: `wasmcage secondary`, started by the primary. Runs the host, answers on the control sockets, gives
//! signs of life, and drains when it is told to, or when its standard input ends because its primary has gone.

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

use super::commands::Commands;
use super::peer::Peer;
use super::signals::Signals;
use super::{FAILED, MISCONFIGURED, OWN_PROGRAM, RunOptions, STARVED, STOPPED, heartbeat};
use crate::control::{self, Server};

/// Threads for what does not run guests: watching, control, timers.
const WORKER_THREADS: usize = 2;
/// The watch for the primary, the epoch, the watch over stores, and some for what blocks.
const OTHER_THREADS: usize = 7;
/// The log, the watch over the directory, the store.
const THREADS_PER_CAGE: usize = 3;
/// What is still running when the host has stopped gets so long to end.
const RUNTIME_PATIENCE: Duration = Duration::from_millis(500);

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

/// The secondary's life. Returns its exit code.
///
/// # Errors
/// What kept the cages from being started; it is in their logs already.
pub(crate) fn serve(options: &RunOptions) -> Result<u8, ServeError> {
    let served = match runtime(options) {
        Ok(runtime) => {
            let served = runtime.block_on(run(options));
            runtime.shutdown_timeout(RUNTIME_PATIENCE);
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

/// Without so many threads no cage can start, let alone serve.
fn threads_needed(options: &RunOptions) -> usize {
    WORKER_THREADS
        + options.lanes.unwrap_or_else(Lanes::default_count)
        + OTHER_THREADS
        + THREADS_PER_CAGE * options.cages.len()
}

/// Libraries panic or hang when the system refuses them a thread in the middle of their start. So it is tried first.
fn try_threads(count: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        let _closed = gate.lock();
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, || drop(gate.lock())).map(|_| ());
        (0..count).try_for_each(start)
    })
}

/// The host's own logs have gone with it.
fn log_failure(options: &RunOptions, error: &ServeError) {
    for cage in &options.cages {
        let log = CageLog::open(cage, &options.directories.logs(cage), LogSettings::default());
        tracing::error!(%cage, error = %error_chain(error), "cage could not be started");
        log.flush();
    }
}

async fn run(options: &RunOptions) -> Result<u8, ServeError> {
    let _beats = AbortOnDropHandle::new(tokio::spawn(heartbeat::send()));
    let mut asked = pin!(asked(options)?);
    let mut listeners = Vec::with_capacity(options.cages.len());
    for cage in &options.cages {
        outlive_predecessor(options, cage).await;
        listeners.extend(listen(options, cage));
    }
    let mut host = Host::prepare(host_options(options))?;
    let early = tokio::select! {
        () = host.serve() => false,
        () = &mut asked => true,
    };
    if early {
        // What has begun to serve is drained like the rest.
        return Ok(stop(host).await);
    }
    show(&host.serving());
    let host = Arc::new(Mutex::new(Some(host)));
    let servers = listeners.into_iter().map(|(cage, listener)| {
        let answer = Arc::new(Commands::new(cage.clone(), host.clone()));
        AbortOnDropHandle::new(tokio::spawn(Server { cage, listener, answer }.serve()))
    });
    let _servers: Vec<_> = servers.collect();
    asked.await;
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

/// A process whose primary has gone finishes its requests while this one serves; one that hangs is killed.
async fn outlive_predecessor(options: &RunOptions, cage: &str) {
    let socket = control::socket_path(&options.directories.run(cage));
    // One that cannot be told keeps what it has for as long as it lives.
    if let Ok(Some(predecessor)) = Peer::at(&socket).await {
        let cage = cage.to_owned();
        tokio::spawn(async move {
            if predecessor.outlive().await {
                tracing::warn!(%cage, "a process of the cage whose primary has gone did not answer and was killed");
            }
        });
    }
}

/// Takes the cage's socket, also from a process whose primary has gone and that is ending: this one's primary has the lock.
fn listen(options: &RunOptions, cage: &str) -> Option<(String, NamedListener)> {
    let run = options.directories.make_run(cage);
    match run.and_then(|run| NamedListener::bind(&control::socket_path(&run))) {
        Ok(listener) => Some((cage.to_owned(), listener)),
        // The cage serves without it; only those who ask it have no answer.
        Err(error) => {
            let log = CageLog::open(cage, &options.directories.logs(cage), LogSettings::default());
            tracing::warn!(%cage, error = %error_chain(&error), "control socket could not be made");
            log.flush();
            None
        }
    }
}

/// Resolves when the process is to stop: somebody says so, or its primary has gone. The first signal is the last that counts:
/// whoever wants the process to end at once kills it.
fn asked(options: &RunOptions) -> Result<impl Future<Output = ()>, ServeError> {
    let mut signals = Signals::new().map_err(ServeError::Setup)?;
    let orphaned = orphaned().map_err(ServeError::Setup)?;
    Ok(async move {
        tokio::select! {
            _ = signals.next() => {}
            _ = orphaned => options.for_each_cage(|cage| {
                tracing::warn!(%cage, "supervising process has gone, cage is stopping");
            }),
        }
    })
}

/// Drains the host. Returns the exit code.
async fn stop(host: Host) -> u8 {
    // What had to be cut off is in the log; the stop was asked for, so it is a success all the same.
    let _finished = host.stop().await;
    STOPPED
}

/// Resolves when standard input ends. Its thread is left behind at the end of the process.
fn orphaned() -> io::Result<oneshot::Receiver<()>> {
    let (gone, orphaned) = oneshot::channel();
    std::thread::Builder::new().name("primary-watch".into()).spawn(move || {
        let mut byte = [0];
        // The primary never writes; whatever else the read says, there is no primary there.
        while matches!(io::stdin().read(&mut byte), Ok(1..)) {}
        // Nobody listens when the process is stopping already.
        let _ = gone.send(());
    })?;
    Ok(orphaned)
}

/// Tells on a terminal what serves where.
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
    // After the lines of the start, which are on their way to the same terminal.
    telemetry::flush();
    // A terminal that went away is no reason not to serve.
    let _ = stdout.write_all(text.as_bytes());
}
