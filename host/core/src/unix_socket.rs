//! Unix sockets at paths of any length. The system allows 107 bytes, so longer paths go through the open directory. A socket
//! gets its name only when it listens and only its user may connect, so that it is never mistaken for one that a dead process
//! left behind.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

use crate::file_identity::FileIdentity;
use crate::private;

/// Longer paths go through their open directory.
const PATH_BYTES_MAX: usize = 100;

/// A path to a socket that is short enough for the system.
struct ReachablePath {
    path: PathBuf,
    /// Kept open as long as the path goes through it.
    _directory: Option<File>,
}

impl ReachablePath {
    fn new(socket: &Path) -> io::Result<Self> {
        if socket.as_os_str().len() <= PATH_BYTES_MAX {
            return Ok(Self { path: socket.to_owned(), _directory: None });
        }
        let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = File::open(parent)?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _directory: Some(directory) })
    }
}

/// Listens at a path, for its own user only. Dropping it removes the file, unless another socket has taken the path.
#[derive(Debug)]
pub struct NamedListener {
    listener: UnixListener,
    path: PathBuf,
    identity: FileIdentity,
}

impl NamedListener {
    /// Listens at the path, and replaces whatever was there.
    ///
    /// # Errors
    /// The operating system's.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let (listener, identity) = bind_anew(path)?;
        Ok(Self { listener, path: path.to_owned(), identity })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// The operating system's.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Listens at the path again if the file was removed, or its directory moved or replaced. Another socket that listens
    /// there is left alone. Connections that wait to be accepted at the old file are lost. Returns whether it was done.
    ///
    /// # Errors
    /// The operating system's.
    pub fn restore(&mut self) -> io::Result<bool> {
        let found = FileIdentity::at(&self.path)?;
        if found == Some(self.identity) || (found.is_some() && is_listening(&self.path)?) {
            return Ok(false);
        }
        (self.listener, self.identity) = bind_anew(&self.path)?;
        Ok(true)
    }
}

impl Drop for NamedListener {
    fn drop(&mut self) {
        self.identity.remove_from(&self.path);
    }
}

/// Listens at the path, for its own user only, and replaces whatever was there. The file stays when the listener is dropped.
///
/// # Errors
/// The operating system's.
pub fn bind(socket: &Path) -> io::Result<UnixListener> {
    bind_anew(socket).map(|(listener, _)| listener)
}

fn bind_anew(socket: &Path) -> io::Result<(UnixListener, FileIdentity)> {
    let mut name = std::ffi::OsString::from(".");
    name.push(socket.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    let unfinished = socket.with_file_name(name);
    remove(&unfinished)?;
    let listener = UnixListener::bind(&ReachablePath::new(&unfinished)?.path)?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600))?;
    private::give_to_owner_of_parent(&unfinished)?;
    let identity = FileIdentity::at(&unfinished)?.ok_or(io::ErrorKind::NotFound)?;
    fs::rename(&unfinished, socket)?;
    Ok((listener, identity))
}

/// Connects to the socket at a path.
///
/// # Errors
/// The operating system's.
pub async fn connect(socket: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(&ReachablePath::new(socket)?.path).await
}

/// As `connect`, for programs without a runtime.
///
/// # Errors
/// The operating system's.
pub fn connect_blocking(socket: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    std::os::unix::net::UnixStream::connect(&ReachablePath::new(socket)?.path)
}

/// Returns whether a socket listens at the path, however busy. Does not wait.
///
/// # Errors
/// The operating system's, except that there is no socket or nobody listens.
pub fn is_listening(socket: &Path) -> io::Result<bool> {
    let address = ReachablePath::new(socket)?;
    let name = SocketAddrUnix::new(&address.path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let stream = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&stream, &name) {
        // `AGAIN`: the queue of connections that wait to be accepted is full.
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes a file, if it exists.
pub fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_of_any_length_are_reached_by_their_user() {
        let root = tempfile::tempdir().unwrap();
        for name in ["short", &"long".repeat(40)] {
            let directory = root.path().join(name);
            fs::create_dir(&directory).unwrap();
            let path = directory.join("a.sock");
            assert!(!is_listening(&path).unwrap());
            // A process that was killed leaves such a file behind.
            drop(std::os::unix::net::UnixListener::bind(&ReachablePath::new(&path).unwrap().path).unwrap());
            assert!(!is_listening(&path).unwrap());
            let mut listener = NamedListener::bind(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
            let (ours, theirs) = tokio::join!(connect(&path), listener.accept());
            ours.unwrap();
            theirs.unwrap();
            assert!(is_listening(&path).unwrap());
            assert!(!listener.restore().unwrap(), "it is there");
            fs::rename(&directory, directory.with_extension("moved")).unwrap();
            assert!(listener.restore().is_err(), "there is no directory for it");
            fs::create_dir(&directory).unwrap();
            assert!(listener.restore().unwrap());
            assert!(is_listening(&path).unwrap());
            let other = NamedListener::bind(&path).unwrap();
            assert!(!listener.restore().unwrap(), "somebody else listens there");
            drop(listener);
            assert!(is_listening(&path).unwrap(), "only the own file is removed");
            drop(other);
            assert!(!path.exists());
            assert_eq!(connect(&path).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }
}
