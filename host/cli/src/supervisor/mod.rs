//! The two processes of `wasmcage run`. The primary holds each cage's lock, starts the secondary, which serves, and
//! restarts it when it fails or hangs; a signal to the primary, or `stop` on its socket, drains and stops both. The
//! primary never reads a module, so that no module can crash it. The secondary notices by the end of its standard input,
//! a socket, that its primary has gone, and ends too.

mod adopted;
mod commands;
mod exit_report;
mod heartbeat;
pub(crate) mod pid_lock;
mod primary;
pub(crate) mod secondary;
mod signals;
pub(crate) mod socket_owner;
pub(crate) mod stop;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use wasmcage_core::directories::Directories;
use wasmcage_core::telemetry::LogFormat;

use self::pid_lock::{PidLock, PidLockError};
pub(crate) use self::primary::supervise;

/// Exit codes of both processes: stopped as requested; failed; wrong arguments or configuration.
pub(crate) const STOPPED: u8 = 0;
pub(crate) const FAILED: u8 = 1;
pub(crate) const MISCONFIGURED: u8 = 2;

/// Exit code of the secondary when the system allows too few threads.
const STARVED: u8 = 3;

/// This program's own file, also after an upgrade has replaced or removed the file at its path.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// Options of both processes.
#[derive(Clone, Debug)]
pub(crate) struct RunOptions {
    pub directories: Directories,
    /// Names of existing cages.
    pub cages: Vec<String>,
    pub lanes: Option<usize>,
    /// Overrides the format in the cages' configurations.
    pub log_format: Option<LogFormat>,
}

impl RunOptions {
    /// Returns the secondary's command line. The environment is inherited.
    fn arguments(&self) -> Vec<OsString> {
        let root = self.directories.root.clone();
        let mut arguments: Vec<OsString> = vec!["secondary".into(), "--root".into(), root.into()];
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

    fn for_each_cage(&self, log: impl Fn(&str)) {
        self.cages.iter().for_each(|cage| log(cage));
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SuperviseError {
    #[error(transparent)]
    Lock(#[from] PidLockError),
    #[error("cannot make {directory}, where running cages keep their files")]
    Directory {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot set up the process{}", limits_hint(.0))]
    Setup(#[source] io::Error),
    #[error("cannot start the cage's process{}", limits_hint(.0))]
    Spawn(#[source] io::Error),
}

/// Explains the system's error "resource temporarily unavailable".
fn limits_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            ": too few threads or processes, see ulimit -u, TasksMax of a systemd unit, pids.max of a cgroup"
        }
        _ => "",
    }
}

/// Takes the cages' locks, which are held from before the first build to the end.
pub(crate) fn lock(options: &RunOptions) -> Result<Vec<PidLock>, SuperviseError> {
    let made = options.directories.make_parents();
    made.map_err(|(directory, source)| SuperviseError::Directory { directory, source })?;
    let acquire = |cage: &String| PidLock::acquire(&options.directories, cage);
    Ok(options.cages.iter().map(acquire).collect::<Result<_, _>>()?)
}
