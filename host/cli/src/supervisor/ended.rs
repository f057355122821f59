//! How the secondary ended, and what the primary makes of it.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use wasmcage_core::backoff::Backoff;

use super::heartbeat::SILENT_TICKS_MAX;
use super::{FAILED, MISCONFIGURED, STARVED, STOPPED};

/// The pause before the second restart in a row; the first is at once.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ended {
    /// None: it could not be started, or the system does not say.
    pub status: Option<ExitStatus>,
    /// It had been asked to.
    pub stopping: bool,
    /// It was killed because it gave no sign of life.
    pub silent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Exit(u8),
    Restart(String),
}

impl Ended {
    pub(super) fn verdict(self, first: bool) -> Verdict {
        let code = self.status.and_then(|status| status.code());
        match code {
            Some(0) => Verdict::Exit(STOPPED),
            // It had not begun to serve.
            _ if self.stopping && self.signal() == Some(Signal::TERM.as_raw()) => Verdict::Exit(STOPPED),
            _ if self.stopping => Verdict::Exit(FAILED),
            // A configuration that breaks while the cage runs is no reason to give up: mending it must be enough.
            Some(code) if code == i32::from(MISCONFIGURED) && first => Verdict::Exit(MISCONFIGURED),
            _ => Verdict::Restart(self.describe()),
        }
    }

    fn signal(self) -> Option<i32> {
        self.status.and_then(|status| status.signal())
    }

    pub(super) fn describe(self) -> String {
        if self.silent {
            return format!("it gave no sign of life for {SILENT_TICKS_MAX} s, and was killed");
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

/// The pauses before restarts: none, then 1, 2, 4.. seconds up to the longest.
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
        fn check(raw: i32, stopping: bool, first: bool, expected: Verdict) {
            let status = Some(ExitStatus::from_raw(raw));
            assert_eq!(Ended { status, stopping, silent: false }.verdict(first), expected);
        }
        let code = |code: i32| code << 8;
        check(code(0), false, false, Verdict::Exit(STOPPED));
        check(code(0), true, false, Verdict::Exit(STOPPED));
        check(code(1), true, false, Verdict::Exit(FAILED));
        check(9, true, false, Verdict::Exit(FAILED));
        check(15, true, true, Verdict::Exit(STOPPED));
        check(15, false, true, Verdict::Restart("signal 15".into()));
        check(code(2), false, true, Verdict::Exit(MISCONFIGURED));
        check(code(2), false, false, Verdict::Restart("exit code 2".into()));
        check(code(3), false, true, Verdict::Restart("the system gives it too few threads".into()));
        check(code(1), false, true, Verdict::Restart("exit code 1".into()));
        check(11, false, false, Verdict::Restart("signal 11".into()));
        assert_eq!(Ended::default().verdict(false), Verdict::Restart("it did not start".into()));
        let silent = Ended { status: Some(ExitStatus::from_raw(9)), stopping: false, silent: true };
        assert_eq!(silent.verdict(true), Verdict::Restart("it gave no sign of life for 10 s, and was killed".into()));
    }
}
