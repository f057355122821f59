//! The process that serves: `wasmcage secondary`, started by the primary. Runs the host, answers on the control sockets,
//! and drains when it is told to, or when its standard input ends because its primary has gone.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use wasmcage::host::{Host, HostOptions, ServingLine, StartError};
use wasmcage::telemetry::{self, CageLog, LogSettings, error_chain};

use super::commands::Commands;
use super::{FAILED, MISCONFIGURED, RunOptions, STOPPED, Signals};
use crate::control;

/// Threads for what does not run guests: watching, control, timers.
const WORKER_THREADS: usize = 2;
/// What is still running when the host has stopped gets so long to end.
const RUNTIME_PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("cannot set up the process")]
    Setup(#[source] io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl ServeError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Start(error) if error.is_configuration() => MISCONFIGURED,
            Self::Start(_) | Self::Setup(_) => FAILED,
        }
    }
}

/// The secondary's life. Returns its exit code.
///
/// # Errors
/// What kept the cages from being started; it is in their logs already.
pub(crate) fn serve(options: &RunOptions) -> Result<u8, ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().build();
    let runtime = runtime.map_err(ServeError::Setup)?;
    let served = runtime.block_on(run(options));
    runtime.shutdown_timeout(RUNTIME_PATIENCE);
    if let Err(error) = &served {
        log_failure(options, error);
    }
    served
}

/// The host's own logs have gone with it.
fn log_failure(options: &RunOptions, error: &ServeError) {
    for cage in &options.cages {
        let log = CageLog::open(cage, &options.root.join(cage), LogSettings::default());
        tracing::error!(%cage, error = %error_chain(error), "cage could not be started");
        log.flush();
    }
}

async fn run(options: &RunOptions) -> Result<u8, ServeError> {
    let mut signals = Signals::new().map_err(ServeError::Setup)?;
    let mut orphaned = orphaned().map_err(ServeError::Setup)?;
    let mut listeners = Vec::new();
    for cage in &options.cages {
        listeners.push((cage.clone(), control::listen(&options.root.join(cage), cage).await));
    }
    let mut host_options = HostOptions::new(&options.root, options.cages.iter().cloned());
    host_options.lanes = options.lanes;
    let mut host = Host::prepare(host_options)?;
    let ended_early = tokio::select! {
        () = host.serve() => None,
        () = signals.next() => Some(StopCause::Signal),
        _ = &mut orphaned => Some(StopCause::Orphaned),
    };
    if let Some(cause) = ended_early {
        // What has begun to serve is drained like the rest.
        return Ok(stop(host, cause, &mut signals).await);
    }
    show(&host.serving());
    let host = Arc::new(Mutex::new(Some(host)));
    for (cage, listener) in listeners {
        match listener {
            Ok(listener) => {
                tokio::spawn(control::serve(listener, Arc::new(Commands::new(cage, host.clone()))));
            }
            // The cage serves without it; only `ps` has nothing to say.
            Err(error) => tracing::warn!(%cage, error = %error_chain(&error), "control socket could not be made"),
        }
    }
    let cause = tokio::select! {
        () = signals.next() => StopCause::Signal,
        _ = orphaned => {
            for cage in &options.cages {
                tracing::warn!(%cage, "supervising process has gone, cage is stopping");
            }
            StopCause::Orphaned
        }
    };
    let host = host.lock().take().expect("nobody else takes the host");
    let code = stop(host, cause, &mut signals).await;
    for cage in &options.cages {
        // A socket left behind is removed by the next process; one that was never made is not there.
        let _ = std::fs::remove_file(control::socket_path(&options.root.join(cage), cage));
    }
    Ok(code)
}

/// Why the process stops.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StopCause {
    Signal,
    Orphaned,
}

/// Drains the host; a second signal ends it at once. Returns the exit code.
async fn stop(host: Host, cause: StopCause, signals: &mut Signals) -> u8 {
    let forced = async {
        if cause == StopCause::Orphaned {
            // Who stops both processes has sent one by now, or will: it is the first.
            signals.next().await;
        }
        signals.next().await;
    };
    tokio::select! {
        // What had to be cut off is in the log; the stop was asked for, so it is a success all the same.
        _finished = host.stop() => STOPPED,
        () = forced => FAILED,
    }
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
