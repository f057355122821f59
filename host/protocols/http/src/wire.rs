//! The bytes of one connection, plain or TLS, between the socket and hyper: gives back what was read ahead to tell HTTP/1
//! from HTTP/2, and reports to the connection's `Pulse`. Changes no byte.
//!
//! A client of HTTP/1 that only ends its sending still wants its answer, so hyper is told to tolerate that. It then no longer
//! looks whether the client is there at all while a request is in work; `Wire` does so whenever hyper flushes.

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

use super::pulse::Pulse;

/// How an HTTP/2 client that knows what it talks to begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Room for what is read ahead: the preface and, mostly, a whole request.
const AHEAD_BYTES: usize = 2048;

/// Bytes taken at most while a request is in work, such as the next request of a client that does not wait.
const WATCHED_BYTES: usize = 512;

pub(super) struct Wire<S> {
    stream: S,
    ahead: BytesMut,
    /// The client ended its sending while a request was in work.
    ended: bool,
    pulse: Arc<Pulse>,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, ahead: BytesMut, pulse: Arc<Pulse>) -> Self {
        Self { stream, ahead, ended: false, pulse }
    }
}

/// A socket that can end so that its peer does not take that for an end in good order.
pub(super) trait Reset {
    /// From now on, dropping the socket resets the connection.
    fn reset_on_drop(&self);
}

impl Reset for TcpStream {
    fn reset_on_drop(&self) {
        // A socket that refuses is closed in the ordinary way: nothing better can be done.
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

/// Reads until it is sure whether the client opened with the HTTP/2 preface; returns what it read as well. The client
/// that closes without a byte is one of HTTP/1.
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
            wire.pulse.bytes_came();
            return Poll::Ready(Ok(()));
        }
        if wire.ended {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut wire.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = result {
            if buffer.filled().len() > before {
                wire.pulse.bytes_came();
            } else {
                wire.pulse.client_ended();
            }
        }
        result
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// Whether the client of a request in work is still there; what it sends meanwhile is kept for hyper.
    ///
    /// # Errors
    /// The connection's, such as a reset.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.ended || !self.ahead.is_empty() || !self.pulse.is_watched() {
            return Ok(());
        }
        let mut bytes = [0; WATCHED_BYTES];
        let mut buffer = ReadBuf::new(&mut bytes);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.ahead.extend_from_slice(buffer.filled()),
            Poll::Ready(Ok(())) => self.end(),
            // TLS without a farewell; whether something is missing is told by the lengths in HTTP.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => self.end(),
            Poll::Ready(Err(error)) => return Err(error),
        }
        Ok(())
    }

    fn end(&mut self) {
        self.ended = true;
        self.pulse.client_ended();
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    fn noted<T>(&self, result: Poll<T>) -> Poll<T> {
        match result {
            Poll::Ready(_) => self.pulse.write_went(),
            Poll::Pending => self.pulse.write_blocked(),
        }
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        let result = Pin::new(&mut wire.stream).poll_write(cx, buffer);
        wire.noted(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        let result = Pin::new(&mut wire.stream).poll_write_vectored(cx, buffers);
        wire.noted(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        wire.watch(cx)?;
        let result = Pin::new(&mut wire.stream).poll_flush(cx);
        wire.noted(result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let result = Pin::new(&mut wire.stream).poll_shutdown(cx);
        wire.noted(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(sent: &'static [u8], http2: bool) {
        // One byte at a time, as the slowest client would.
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
    async fn the_preface_tells() {
        check(PREFACE, true).await;
        check(b"PRI * HTTP/1.1\r\n\r\n", false).await;
        check(b"GET / HTTP/1.1\r\n\r\n", false).await;
        check(b"P", false).await;
        check(b"", false).await;
    }
}
