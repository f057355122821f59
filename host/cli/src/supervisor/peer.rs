//! The process that listens on a socket, as the kernel names it, held so that its number cannot become another's.

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

/// Between two questions to a process that is ending, and how long it may take to answer one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

pub(crate) struct Peer {
    stream: UnixStream,
    process: OwnedFd,
}

impl Peer {
    /// None: nobody listens there.
    ///
    /// # Errors
    /// The process is in another container, where its number means nothing here, or the operating system's.
    pub(crate) async fn at(socket: &Path) -> io::Result<Option<Self>> {
        let stream = match unix_socket::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // The kernel says 0 of a process that has no number here.
        let Some(pid) = stream.peer_cred()?.pid().filter(|pid| *pid > 0).and_then(Pid::from_raw) else {
            return Err(io::Error::other("it is in another container"));
        };
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let peer = Self { stream, process };
        // Who listens still has its number; if it has ended meanwhile, what is held may be another process.
        Ok(peer.is_connected().then_some(peer))
    }

    fn is_connected(&self) -> bool {
        let waiting = rustix::net::recv(&self.stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        !matches!(waiting, Ok((_, 0))) && matches!(waiting, Ok(_) | Err(Errno::AGAIN))
    }

    /// # Errors
    /// The operating system's, other than that it has ended.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.process, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the end of a process of this cage that has no primary any more, and kills it when it answers no command: one
    /// that hangs would keep the store and its ports for ever. Returns whether it had to.
    pub(crate) async fn outlive(mut self) -> bool {
        loop {
            match timeout(ANSWER_TIMEOUT, self.ask()).await {
                Ok(Ok(())) => sleep(ANSWER_TIMEOUT).await,
                Ok(Err(_)) => return false,
                Err(_) => return self.kill().is_ok(),
            }
        }
    }

    /// An error: it has ended.
    async fn ask(&mut self) -> io::Result<()> {
        self.stream.write_all(b"{\"command\":\"ping\"}\n").await?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new((&mut self.stream).take(ANSWER_BYTES_MAX));
        match reader.read_until(b'\n', &mut answer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
