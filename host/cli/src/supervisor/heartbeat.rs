//! How the primary knows that the secondary is alive: a byte each second over the socket that is the secondary's standard
//! input. The secondary's ordinary runtime sends it, so that it stops when that hangs, or when the process is stopped.
//!
//! The primary counts its own ticks without a byte, not time: when the whole machine was suspended, or both processes were
//! frozen, one tick has passed and nobody was silent.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::{MissedTickBehavior, interval};

pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// A secondary that has sent a byte before may be silent for so many ticks.
pub(super) const SILENT_TICKS_MAX: u32 = 10;
/// The first one may take so long: the program is read from the disk, and the cages' configurations are.
const FIRST_TICKS_MAX: u32 = 60;

/// The primary's end, and the secondary's standard input.
pub(super) fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

/// Resolves when the secondary has been silent for too many ticks.
pub(super) async fn silent(socket: &mut UnixStream, tick: Duration, pid: Option<u32>) {
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silence = Silence::default();
    let mut bytes = [0; 64];
    loop {
        tokio::select! {
            biased;
            read = socket.read(&mut bytes) => match read {
                Ok(1..) => silence.broken(),
                // It is ending, which its exit tells.
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

/// Ticks without a byte.
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
    fn broken(&mut self) {
        *self = Self { ticks: 0, max: SILENT_TICKS_MAX };
    }

    /// Whether it has been too long.
    fn tick(&mut self) -> bool {
        self.ticks = self.ticks.saturating_add(1);
        self.ticks > self.max
    }
}

/// Whether a debugger holds the process, which is our child and not waited for, so that the number is its own.
fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}

/// Sends the secondary's bytes, until standard input turns out to be no socket: it was not started by a primary.
pub(super) async fn send() {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A primary that does not read has all the bytes that it needs.
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
        silent(&mut socket, SHORT, None).await;
        // Bytes that come in time.
        let beats = async {
            for _ in 0..2 * FIRST_TICKS_MAX {
                tokio::time::sleep(SHORT / 2).await;
                (&theirs).write_all(b".").unwrap();
            }
        };
        tokio::select! {
            () = silent(&mut socket, 50 * SHORT, None) => panic!("it was not silent"),
            () = beats => {}
        }
        // The end of the process is no silence.
        drop(theirs);
        let ended = tokio::time::timeout(4 * FIRST_TICKS_MAX * SHORT, silent(&mut socket, SHORT, None)).await;
        assert!(ended.is_err());
    }

    #[test]
    fn the_first_byte_may_take_longer() {
        let mut silence = Silence::default();
        assert!((0..FIRST_TICKS_MAX).all(|_| !silence.tick()) && silence.tick());
        silence.broken();
        assert!((0..SILENT_TICKS_MAX).all(|_| !silence.tick()) && silence.tick());
    }
}
