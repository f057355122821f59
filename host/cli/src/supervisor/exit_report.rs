//! How the secondary ended, and whether the primary restarts it.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use wasmcage_core::backoff::Backoff;

use super::heartbeat::SILENT_TICKS_MAX;
use super::{FAILED, MISCONFIGURED, STARVED, STOPPED};

/// Pause before the second restart in a row; there is none before the first.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ExitReport {
    /// None if it could not be started, or if the system does not report the status.
    pub status: Option<ExitStatus>,
    /// It had been asked to stop.
    pub stopping: bool,
    /// It was killed because it sent no heartbeat.
    pub silent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExitDecision {
    Exit(u8),
    Restart(String),
}

impl ExitReport {
    pub(super) fn decide(self, first: bool) -> ExitDecision {
        let code = self.status.and_then(|status| status.code());
        match code {
            Some(0) => ExitDecision::Exit(STOPPED),
            // It was stopped before it handled signals.
            _ if self.stopping && self.signal() == Some(Signal::TERM.as_raw()) => ExitDecision::Exit(STOPPED),
            _ if self.stopping => ExitDecision::Exit(FAILED),
            // A configuration that becomes wrong while the cage runs is retried, so that correcting it is enough.
            Some(code) if code == i32::from(MISCONFIGURED) && first => ExitDecision::Exit(MISCONFIGURED),
            _ => ExitDecision::Restart(self.describe()),
        }
    }

    fn signal(self) -> Option<i32> {
        self.status.and_then(|status| status.signal())
    }

    pub(super) fn describe(self) -> String {
        if self.silent {
            return format!("it sent no heartbeat for {SILENT_TICKS_MAX} s, and was killed");
        }
        match self.status {
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) if code == i32::from(STARVED) => "the system gives it too few threads".to_owned(),
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => status.to_string(),
            },
            None => "it did not start".to_owned(),
        }
    }
}

/// Returns the pauses before restarts: none, then 1, 2, 4.. seconds up to `PAUSE_MAX`.
pub(super) fn restart_pauses() -> Backoff {
    Backoff::new(PAUSE_FIRST, PAUSE_MAX).first_at_once()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_the_others_wait() {
        let mut pauses = restart_pauses();
        let short = Duration::from_secs(1);
        let first: Vec<_> = (0..9).map(|_| pauses.pause_after(short).as_secs()).collect();
        assert_eq!(first, [0, 1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(pauses.pause_after(Backoff::STABLE_AFTER).as_secs(), 0);
        assert_eq!(pauses.pause_after(short).as_secs(), 1);
    }

    #[test]
    fn endings_decide_between_exit_and_restart() {
        #[track_caller]
        fn check(raw: i32, stopping: bool, first: bool, expected: ExitDecision) {
            let status = Some(ExitStatus::from_raw(raw));
            assert_eq!(ExitReport { status, stopping, silent: false }.decide(first), expected);
        }
        let code = |code: i32| code << 8;
        check(code(0), false, false, ExitDecision::Exit(STOPPED));
        check(code(0), true, false, ExitDecision::Exit(STOPPED));
        check(code(1), true, false, ExitDecision::Exit(FAILED));
        check(9, true, false, ExitDecision::Exit(FAILED));
        check(15, true, true, ExitDecision::Exit(STOPPED));
        check(15, false, true, ExitDecision::Restart("signal 15".into()));
        check(code(2), false, true, ExitDecision::Exit(MISCONFIGURED));
        check(code(2), false, false, ExitDecision::Restart("exit code 2".into()));
        check(code(3), false, true, ExitDecision::Restart("the system gives it too few threads".into()));
        check(code(1), false, true, ExitDecision::Restart("exit code 1".into()));
        check(11, false, false, ExitDecision::Restart("signal 11".into()));
        assert_eq!(ExitReport::default().decide(false), ExitDecision::Restart("it did not start".into()));
        let silent = ExitReport { status: Some(ExitStatus::from_raw(9)), stopping: false, silent: true };
        assert_eq!(silent.decide(true), ExitDecision::Restart("it sent no heartbeat for 10 s, and was killed".into()));
    }
}
