//! The byte stream of one connection, plain or TLS, between the socket and hyper. It returns the bytes that were read
//! ahead to tell HTTP/1 from HTTP/2, and records the connection's activity. It changes no byte.
//!
//! A client of HTTP/1 may close its sending side and still wait for its response, so hyper is told to tolerate that.
//! hyper then no longer notices that a client has gone while a request is in flight; `Wire` looks for that whenever
//! hyper flushes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::activity::ConnectionActivity;

/// The first bytes of an HTTP/2 connection, RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The buffer for bytes that are read ahead: the preface, or mostly a whole request.
const AHEAD_BYTES: usize = 2048;

/// The most bytes that are read at once while a request is in flight, such as the next request of a client that
/// pipelines.
const WATCHED_BYTES: usize = 512;

pub(super) struct Wire<S> {
    stream: S,
    ahead: BytesMut,
    /// The client closed its sending side while a request was in flight.
    ended: bool,
    activity: Arc<ConnectionActivity>,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, ahead: BytesMut, activity: Arc<ConnectionActivity>) -> Self {
        Self { stream, ahead, ended: false, activity }
    }
}

/// A socket that can be reset, so that its peer does not read the end as one in good order.
pub(super) trait Reset {
    /// From now on, dropping the socket resets the connection.
    fn reset_on_drop(&self);
}

impl Reset for TcpStream {
    fn reset_on_drop(&self) {
        // If this fails, the socket is closed in the ordinary way.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl Reset for TlsStream<TcpStream> {
    fn reset_on_drop(&self) {
        self.get_ref().0.reset_on_drop();
    }
}

impl<S: Reset> Reset for Wire<S> {
    fn reset_on_drop(&self) {
        self.stream.reset_on_drop();
    }
}

/// Reads until it is certain whether the client began with the HTTP/2 preface; returns the bytes that were read, too. A
/// client that closes without a byte counts as one of HTTP/1.
pub(super) async fn speaks_http2<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(bool, BytesMut)> {
    let mut ahead = BytesMut::with_capacity(AHEAD_BYTES);
    loop {
        if stream.read_buf(&mut ahead).await? == 0 {
            return Ok((false, ahead));
        }
        let compared = ahead.len().min(PREFACE.len());
        if ahead[..compared] != PREFACE[..compared] {
            return Ok((false, ahead));
        }
        if compared == PREFACE.len() {
            return Ok((true, ahead));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        if !wire.ahead.is_empty() {
            let count = wire.ahead.len().min(buffer.remaining());
            buffer.put_slice(&wire.ahead[..count]);
            wire.ahead.advance(count);
            if wire.ahead.is_empty() {
                wire.ahead = BytesMut::new();
            }
            wire.activity.bytes_received();
            return Poll::Ready(Ok(()));
        }
        if wire.ended {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut wire.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = result {
            if buffer.filled().len() > before {
                wire.activity.bytes_received();
            } else {
                wire.activity.client_ended();
            }
        }
        result
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// Looks whether the client of a request in flight has gone; bytes that it has sent are kept for hyper.
    ///
    /// # Errors
    /// The connection has failed, such as by a reset.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.ended || !self.ahead.is_empty() || !self.activity.needs_watching() {
            return Ok(());
        }
        let mut bytes = [0; WATCHED_BYTES];
        let mut buffer = ReadBuf::new(&mut bytes);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.ahead.extend_from_slice(buffer.filled()),
            Poll::Ready(Ok(())) => self.end(),
            // TLS ended without close_notify. HTTP's own lengths show whether bytes are missing.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => self.end(),
            Poll::Ready(Err(error)) => return Err(error),
        }
        Ok(())
    }

    fn end(&mut self) {
        self.ended = true;
        self.activity.client_ended();
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Records whether a write made progress.
    fn record<T>(&self, result: Poll<T>) -> Poll<T> {
        match result {
            Poll::Ready(_) => self.activity.write_progressed(),
            Poll::Pending => self.activity.write_blocked(),
        }
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        let result = Pin::new(&mut wire.stream).poll_write(cx, buffer);
        wire.record(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        let result = Pin::new(&mut wire.stream).poll_write_vectored(cx, buffers);
        wire.record(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        wire.watch(cx)?;
        let result = Pin::new(&mut wire.stream).poll_flush(cx);
        wire.record(result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let result = Pin::new(&mut wire.stream).poll_shutdown(cx);
        wire.record(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(sent: &'static [u8], http2: bool) {
        // The bytes arrive one at a time.
        let (mut client, mut server) = tokio::io::duplex(1);
        let client = tokio::spawn(async move {
            // The server may have seen enough before the last byte.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut client, sent).await;
        });
        let (is, ahead) = speaks_http2(&mut server).await.unwrap();
        assert_eq!(is, http2);
        assert!(sent.starts_with(&ahead));
        client.abort();
    }

    #[tokio::test]
    async fn http2_is_recognized_by_its_preface() {
        check(PREFACE, true).await;
        check(b"PRI * HTTP/1.1\r\n\r\n", false).await;
        check(b"GET / HTTP/1.1\r\n\r\n", false).await;
        check(b"P", false).await;
        check(b"", false).await;
    }
}
