//! STUB
use std::io;
use std::path::Path;
use tokio::net::{UnixListener, UnixStream};
pub async fn connect(p: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(p).await
}
pub fn bind(p: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(p)
}
