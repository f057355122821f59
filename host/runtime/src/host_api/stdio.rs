//! Writes the standard output and error of guests to the cage's log, line by line. A line that is unfinished when its request
//! or its guest ends is written then, as a line of that request. Writing never waits and never fails.

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
use wasmcage_core::request::RequestContext;
use wasmcage_core::telemetry::Level;

/// The length from which an unfinished line is written as it is.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// The greatest number of bytes that a guest may write in one call.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// The request that the instance works on, which is logged with each line.
type CurrentRequest = Arc<Mutex<Option<Arc<RequestContext>>>>;

/// Both outputs of a guest.
pub(super) struct Outputs {
    stdout: Capture,
    stderr: Capture,
    request: CurrentRequest,
}

impl Outputs {
    pub(super) fn new(log: &Arc<GuestLog>) -> Self {
        let request = CurrentRequest::default();
        let [stdout, stderr] =
            [Level::Info, Level::Warn].map(|level| Capture::new(log.clone(), level, request.clone()));
        Self { stdout, stderr, request }
    }

    pub(super) fn stdout(&self) -> Capture {
        self.stdout.clone()
    }

    pub(super) fn stderr(&self) -> Capture {
        self.stderr.clone()
    }

    /// Sets the request that further lines belong to.
    pub(super) fn begin(&self, request: Option<&Arc<RequestContext>>) {
        *self.request.lock() = request.cloned();
    }

    /// Writes the unfinished lines of a request that has ended.
    pub(super) fn end(&self) {
        self.stdout.finish_line();
        self.stderr.finish_line();
        self.request.lock().take();
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        self.end();
    }
}

/// One of a guest's two outputs. Clones share the unfinished line.
#[derive(Clone)]
pub(super) struct Capture {
    log: Arc<GuestLog>,
    level: Level,
    request: CurrentRequest,
    line: Arc<Mutex<Vec<u8>>>,
}

impl Capture {
    fn new(log: Arc<GuestLog>, level: Level, request: CurrentRequest) -> Self {
        Self { log, level, request, line: Arc::default() }
    }

    fn finish_line(&self) {
        let mut line = self.line.lock();
        if !line.is_empty() {
            self.write(&mut line);
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use wasmcage_core::telemetry::{self, CageLog, LevelCell, LogSettings, TerminalOptions};

    fn request(text: &str) -> Arc<RequestContext> {
        let request = RequestContext::new("web".into(), "http", Duration::from_secs(5), Arc::default());
        request.describe(text);
        Arc::new(request)
    }

    #[test]
    fn an_unfinished_line_is_written_when_its_request_ends_and_belongs_to_it() {
        telemetry::install(TerminalOptions::off());
        let directory = tempfile::tempdir().unwrap();
        let cage = "stdio-last-words";
        let log = CageLog::open(cage, directory.path(), LogSettings::default());
        let level = Arc::new(LevelCell::new(Level::Info));
        let guest = Arc::new(GuestLog::new(cage.into(), "work".into(), level));
        let outputs = Outputs::new(&guest);
        outputs.stdout().take(b"while it starts");
        outputs.end();
        outputs.begin(Some(&request("first")));
        outputs.stderr().take(b"fatal: ");
        outputs.stderr().take(b"the reason");
        outputs.end();
        outputs.begin(Some(&request("second")));
        outputs.stdout().take(b"a line\nand a half");
        // The guest ends in the middle of a line.
        drop(outputs);
        log.flush();
        let logs = std::fs::read_dir(directory.path()).unwrap();
        let text: String = logs.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
        let lines: Vec<_> = text.lines().collect();
        let expected = [
            ("INF [work] while it starts", ""),
            ("WRN [work] fatal: the reason # ", "(first)"),
            ("INF [work] a line # ", "(second)"),
            ("INF [work] and a half # ", "(second)"),
        ];
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, (part, request)) in lines.iter().zip(expected) {
            assert!(line.contains(part) && line.contains(request), "{text}");
        }
    }
}
