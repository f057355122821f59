//! Standard output and error of guests: cut into lines, each a line of the cage's log. Never waits, never fails.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::log::GuestLog;
use crate::request::RequestContext;
use crate::telemetry::Level;

/// A line that grows past this is written as it is then.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// What a guest may write at once.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// The request that the instance works on, for the lines' ends.
pub(super) type CurrentRequest = Arc<Mutex<Option<Arc<RequestContext>>>>;

/// One of a guest's two outputs. Clones share the unfinished line.
#[derive(Clone)]
pub(super) struct Capture {
    log: Arc<GuestLog>,
    level: Level,
    request: CurrentRequest,
    line: Arc<Mutex<Vec<u8>>>,
}

impl Capture {
    pub(super) fn new(log: Arc<GuestLog>, level: Level, request: CurrentRequest) -> Self {
        Self { log, level, request, line: Arc::default() }
    }

    fn take(&self, mut bytes: &[u8]) {
        let mut line = self.line.lock();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            line.extend_from_slice(&bytes[..end]);
            self.write(&mut line);
            bytes = &bytes[end + 1..];
        }
        for piece in bytes.chunks(LINE_BYTES_MAX) {
            line.extend_from_slice(piece);
            if line.len() >= LINE_BYTES_MAX {
                self.write(&mut line);
            }
        }
    }

    fn write(&self, line: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(line);
        if !text.trim().is_empty() {
            self.log.line(self.level, text.trim_end(), self.request.lock().as_deref());
        }
        drop(text);
        line.clear();
    }
}

impl IsTerminal for Capture {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Capture {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Capture {
    async fn ready(&mut self) {}
}

impl OutputStream for Capture {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

impl AsyncWrite for Capture {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
