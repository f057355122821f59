//! The signals that ask a process to stop. Service managers and `pkill` send them to both processes of a cage, terminals
//! to all that run in them: several signals that come together count as one.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{self, SignalKind};

/// Signals within this time after the first one have no further effect.
const MERGE_WINDOW: Duration = Duration::from_secs(1);

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
    /// Signals that the process was started to ignore stay ignored: `nohup` ignores hang-ups, and a shell ignores
    /// interrupts for its background jobs.
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

    /// Waits for the next signal.
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

/// Returns a bit for each ignored signal, the lowest for number 1; no bits if the system does not tell.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_in(&status).unwrap_or(0)
}

fn ignored_in(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Turns a sequence of signals into effects.
#[derive(Default)]
pub(super) struct SignalFilter {
    first: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignalEffect {
    Drain,
    Force,
    None,
}

impl SignalFilter {
    /// Returns the effect of a signal. The first one drains. A later one forces, unless it is a hang-up: a terminal that
    /// closes sends several, and nobody waits there.
    pub(super) fn add(&mut self, signal: StopSignal, now: Instant) -> SignalEffect {
        let Some(first) = self.first else {
            self.first = Some(now);
            return SignalEffect::Drain;
        };
        match signal {
            StopSignal::Terminate | StopSignal::Interrupt if now.duration_since(first) >= MERGE_WINDOW => {
                SignalEffect::Force
            }
            _ => SignalEffect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_come_together_count_as_one_and_a_hangup_never_forces() {
        let (mut filter, begun) = (SignalFilter::default(), Instant::now());
        let soon = begun + Duration::from_millis(10);
        assert_eq!(filter.add(StopSignal::Terminate, begun), SignalEffect::Drain);
        for signal in [StopSignal::Terminate, StopSignal::Interrupt, StopSignal::Hangup] {
            assert_eq!(filter.add(signal, soon), SignalEffect::None);
        }
        assert_eq!(filter.add(StopSignal::Hangup, begun + MERGE_WINDOW), SignalEffect::None);
        assert_eq!(filter.add(StopSignal::Interrupt, begun + MERGE_WINDOW), SignalEffect::Force);
        assert_eq!(filter.add(StopSignal::Terminate, begun + MERGE_WINDOW), SignalEffect::Force);
    }

    #[test]
    fn ignored_signals_are_read_from_the_system() {
        assert_eq!(ignored_in("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001003\n"), Some(0x1003));
        assert_eq!(ignored_in("SigBlk:\t0\n"), None);
    }
}
