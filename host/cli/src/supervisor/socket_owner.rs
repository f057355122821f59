//! The process that listens on a socket, as reported by the kernel. It is referred to by a descriptor, so that its pid
//! cannot be reused for another process meanwhile.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use wasmcage_core::unix_socket;

/// Interval of pings to a process that is ending, and the timeout for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

pub(crate) struct SocketOwner {
    stream: UnixStream,
    process: OwnedFd,
}

impl SocketOwner {
    /// Connects to a socket; none if nobody listens there.
    ///
    /// # Errors
    /// The process is in another container, so that it has no pid here, or the operating system reports an error.
    pub(crate) async fn at(socket: &Path) -> io::Result<Option<Self>> {
        let stream = match unix_socket::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // The kernel reports 0 for a process that has no pid in this container.
        let Some(pid) = stream.peer_cred()?.pid().filter(|pid| *pid > 0).and_then(Pid::from_raw) else {
            return Err(io::Error::other("it is in another container"));
        };
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let peer = Self { stream, process };
        // While the process listens, the pid is its own. If it has ended, the descriptor may be of another process.
        Ok(peer.is_connected().then_some(peer))
    }

    fn is_connected(&self) -> bool {
        let waiting = rustix::net::recv(&self.stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        !matches!(waiting, Ok((_, 0))) && matches!(waiting, Ok(_) | Err(Errno::AGAIN))
    }

    /// Kills the process.
    ///
    /// # Errors
    /// The operating system refuses. It is no error that the process has ended.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.process, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the end of a secondary whose primary has gone, and kills it when it does not answer: a hung process
    /// would keep the store and its ports for ever. Returns whether it was killed.
    pub(crate) async fn wait_or_kill(mut self) -> bool {
        loop {
            match timeout(ANSWER_TIMEOUT, self.ping()).await {
                Ok(Ok(())) => sleep(ANSWER_TIMEOUT).await,
                Ok(Err(_)) => return false,
                Err(_) => return self.kill().is_ok(),
            }
        }
    }

    /// Waits for the answer to a command. An error means that the process has ended.
    async fn ping(&mut self) -> io::Result<()> {
        self.stream.write_all(b"{\"command\":\"ping\"}\n").await?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new((&mut self.stream).take(ANSWER_BYTES_MAX));
        match reader.read_until(b'\n', &mut answer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
