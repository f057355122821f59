//! Heartbeats by which the primary knows that the secondary is alive: a byte each second over the socket that is the
//! secondary's standard input. The secondary's ordinary runtime sends them, so that they end when that hangs or when the
//! process is stopped.
//!
//! The primary counts its own ticks without a byte, not time: after the whole machine was suspended, or both processes
//! were frozen, only one tick has passed, and the secondary does not count as silent.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::{MissedTickBehavior, interval};

pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// Ticks without a byte after which a secondary that has sent one before is hung.
pub(super) const SILENT_TICKS_MAX: u32 = 10;
/// Ticks until the first byte: the program and the cages' configurations are read from the disk before.
const FIRST_TICKS_MAX: u32 = 60;

/// Makes the socket: returns the primary's end, and the secondary's standard input.
pub(super) fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

/// Returns when the secondary has been silent for too many ticks. Never returns once it has closed the socket.
pub(super) async fn wait_for_silence(socket: &mut UnixStream, tick: Duration, pid: Option<u32>) {
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silence = Silence::default();
    let mut bytes = [0; 64];
    loop {
        tokio::select! {
            biased;
            read = socket.read(&mut bytes) => match read {
                Ok(1..) => silence.reset(),
                // The secondary is ending, which its exit status shows.
                Ok(0) | Err(_) => return std::future::pending().await,
            },
            _ = ticks.tick() => {
                if silence.tick() && !pid.is_some_and(is_traced) {
                    return;
                }
            }
        }
    }
}

/// Counts the ticks without a byte.
struct Silence {
    ticks: u32,
    max: u32,
}

impl Default for Silence {
    fn default() -> Self {
        Self { ticks: 0, max: FIRST_TICKS_MAX }
    }
}

impl Silence {
    fn reset(&mut self) {
        *self = Self { ticks: 0, max: SILENT_TICKS_MAX };
    }

    /// Counts a tick. Returns whether there were too many.
    fn tick(&mut self) -> bool {
        self.ticks = self.ticks.saturating_add(1);
        self.ticks > self.max
    }
}

/// Returns whether a debugger is attached to the process: a child that was not waited for, so that the pid is still its
/// own.
fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}

/// Sends the secondary's heartbeats. Returns when standard input is no socket: then no primary has started this process.
pub(super) async fn send() {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // If the socket is full, the primary has enough bytes to read.
        let sent = rustix::net::send(io::stdin().as_fd(), b".", SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        if matches!(sent, Err(error) if error != rustix::io::Errno::AGAIN) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn silence_is_noticed_and_a_byte_breaks_it() {
        const SHORT: Duration = Duration::from_millis(2);
        let (mut socket, theirs) = pair().unwrap();
        let theirs = std::os::unix::net::UnixStream::from(theirs);
        (&theirs).write_all(b".").unwrap();
        wait_for_silence(&mut socket, SHORT, None).await;
        // These bytes come in time.
        let beats = async {
            for _ in 0..2 * FIRST_TICKS_MAX {
                tokio::time::sleep(SHORT / 2).await;
                (&theirs).write_all(b".").unwrap();
            }
        };
        tokio::select! {
            () = wait_for_silence(&mut socket, 50 * SHORT, None) => panic!("it was not silent"),
            () = beats => {}
        }
        // The end of the process does not count as silence.
        drop(theirs);
        let ended = tokio::time::timeout(4 * FIRST_TICKS_MAX * SHORT, wait_for_silence(&mut socket, SHORT, None)).await;
        assert!(ended.is_err());
    }

    #[test]
    fn the_first_byte_may_take_longer() {
        let mut silence = Silence::default();
        assert!((0..FIRST_TICKS_MAX).all(|_| !silence.tick()) && silence.tick());
        silence.reset();
        assert!((0..SILENT_TICKS_MAX).all(|_| !silence.tick()) && silence.tick());
    }
}
