//! The signals that ask a process to stop. Service managers and `pkill` send them to both processes of a cage, terminals to all
//! that run in them: any number of them that come together are one wish.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{self, SignalKind};

/// Signals within so long of the first one say the same as it did.
const ONE_WISH: Duration = Duration::from_secs(1);

pub(crate) struct Signals {
    terminate: unix::Signal,
    interrupt: Option<unix::Signal>,
    hangup: Option<unix::Signal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopSignal {
    Terminate,
    Interrupt,
    Hangup,
}

impl Signals {
    /// What the process was started to ignore, it goes on to ignore: `nohup` has hang-ups ignored, a shell the interrupts of
    /// what it runs in the background.
    pub(crate) fn new() -> io::Result<Self> {
        let ignored = ignored_signals();
        let unless_ignored = |kind: SignalKind| match ignored & (1 << (kind.as_raw_value() - 1)) {
            0 => unix::signal(kind).map(Some),
            _ => Ok(None),
        };
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unless_ignored(SignalKind::interrupt())?,
            hangup: unless_ignored(SignalKind::hangup())?,
        })
    }

    /// Resolves at the next one.
    pub(crate) async fn next(&mut self) -> StopSignal {
        tokio::select! {
            _ = self.terminate.recv() => StopSignal::Terminate,
            () = received(&mut self.interrupt) => StopSignal::Interrupt,
            () = received(&mut self.hangup) => StopSignal::Hangup,
        }
    }
}

async fn received(signal: &mut Option<unix::Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

/// A bit for each signal, the lowest for number 1; none where the system does not tell.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_in(&status).unwrap_or(0)
}

fn ignored_in(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// What signals ask for, one after the other.
#[derive(Default)]
pub(super) struct Wishes {
    first: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Drain,
    Force,
    /// It says nothing new.
    Nothing,
}

impl Wishes {
    /// The first drains. A later one forces, but for a hang-up: a terminal that goes away sends several, and nobody waits there.
    pub(super) fn add(&mut self, signal: StopSignal, now: Instant) -> Wish {
        let Some(first) = self.first else {
            self.first = Some(now);
            return Wish::Drain;
        };
        match signal {
            StopSignal::Terminate | StopSignal::Interrupt if now.duration_since(first) >= ONE_WISH => Wish::Force,
            _ => Wish::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_come_together_are_one_wish_and_a_hangup_never_forces() {
        let (mut wishes, begun) = (Wishes::default(), Instant::now());
        let soon = begun + Duration::from_millis(10);
        assert_eq!(wishes.add(StopSignal::Terminate, begun), Wish::Drain);
        for signal in [StopSignal::Terminate, StopSignal::Interrupt, StopSignal::Hangup] {
            assert_eq!(wishes.add(signal, soon), Wish::Nothing);
        }
        assert_eq!(wishes.add(StopSignal::Hangup, begun + ONE_WISH), Wish::Nothing);
        assert_eq!(wishes.add(StopSignal::Interrupt, begun + ONE_WISH), Wish::Force);
        assert_eq!(wishes.add(StopSignal::Terminate, begun + ONE_WISH), Wish::Force);
    }

    #[test]
    fn ignored_signals_are_read_from_the_system() {
        assert_eq!(ignored_in("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001003\n"), Some(0x1003));
        assert_eq!(ignored_in("SigBlk:\t0\n"), None);
    }
}
