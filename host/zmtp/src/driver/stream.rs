//! The transports: TCP and Unix sockets.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::endpoint::{ANY, Endpoint};
use crate::error::BindError;

#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// One attempt.
    pub(crate) async fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                // On one machine a connection to a port that nobody listens to may happen to start from that very port, and
                // is then connected to itself.
                if stream.local_addr()? == stream.peer_addr()? {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                Self::tcp(stream)
            }
            Endpoint::Ipc(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
            Endpoint::IpcAbstract(name) => Ok(Self::Unix(UnixStream::connect(abstract_path(name)).await?)),
        }
    }

    fn tcp(stream: TcpStream) -> io::Result<Self> {
        // Writes are made in batches here.
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Reads into the free space of `buffer`, of which there is some.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
        // Such a future keeps nothing between two polls, so that it may be made anew for each.
        match self {
            Self::Tcp(stream) => pin!(stream.read_buf(buffer)).poll(cx),
            Self::Unix(stream) => pin!(stream.read_buf(buffer)).poll(cx),
        }
    }

    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    /// Says that nothing more will be written.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// tokio takes a path that starts with a zero byte for a name that is no path.
fn abstract_path(name: &str) -> PathBuf {
    PathBuf::from(format!("\0{name}"))
}

/// A bound socket. Its file, if it has one, goes with it.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: Option<SocketFile> },
}

#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already, or belong to a successor that replaced it: nothing else can be done about it here.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds, and says to what.
    pub(crate) async fn bind(endpoint: &Endpoint) -> Result<(Self, Endpoint), BindError> {
        let failed = |source| BindError::Io { endpoint: endpoint.clone(), source };
        match endpoint {
            Endpoint::Tcp { host, port } => {
                let listener = match host.as_str() {
                    "*" => TcpListener::bind((ANY, *port)).await,
                    host => TcpListener::bind((host, *port)).await,
                };
                let listener = listener.map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?.into();
                Ok((Self::Tcp(listener), bound))
            }
            Endpoint::Ipc(path) => {
                let listener = bind_path(endpoint, path).await?;
                Ok((Self::Unix { listener, _file: Some(SocketFile(path.clone())) }, endpoint.clone()))
            }
            Endpoint::IpcAbstract(name) => {
                let listener = UnixListener::bind(abstract_path(name)).map_err(failed)?;
                Ok((Self::Unix { listener, _file: None }, endpoint.clone()))
            }
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => Stream::tcp(listener.accept().await?.0),
            Self::Unix { listener, .. } => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

/// A socket's file stays behind when its process is killed. It is replaced if nobody listens to it any more.
async fn bind_path(endpoint: &Endpoint, path: &Path) -> Result<UnixListener, BindError> {
    let failed = |source| BindError::Io { endpoint: endpoint.clone(), source };
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
            if !is_socket {
                return Err(BindError::NotASocket(endpoint.clone()));
            }
            match UnixStream::connect(path).await {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed)?;
                    UnixListener::bind(path).map_err(failed)
                }
                Ok(_) | Err(_) => Err(failed(error)),
            }
        }
        bound => bound.map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_left_behind_is_replaced_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let endpoint = Endpoint::Ipc(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (listener, _) = Listener::bind(&endpoint).await.unwrap();
        let second = Listener::bind(&endpoint).await.unwrap_err();
        assert!(matches!(second, BindError::Io { .. }), "{second:?}");
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "text").unwrap();
        let second = Listener::bind(&endpoint).await.unwrap_err();
        assert!(matches!(second, BindError::NotASocket(_)), "{second:?}");
        assert!(path.exists());
    }
}
