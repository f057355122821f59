//! One request on a connection of its own, whose body goes out and whose answer comes in piece by piece: for tests of what
//! streams, and of clients that leave in the middle.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// No test waits longer for a piece of an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The version of HTTP that a request is sent by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

/// A request whose body and answer stream. Dropped before the body has ended, it is cut off as by a client that crashed.
pub struct StreamedRequest {
    body: Option<mpsc::Sender<BodyPart>>,
    response: Option<JoinHandle<hyper::Result<Response<Incoming>>>>,
    answer: Option<Response<Incoming>>,
    connection: JoinHandle<hyper::Result<()>>,
}

enum BodyPart {
    Frame(Frame<Bytes>),
    End,
}

impl StreamedRequest {
    /// Sends a POST's head; the body's pieces follow.
    ///
    /// # Panics
    /// When it cannot connect, as everything here when the server does not do what it should.
    pub async fn begin(address: &str, version: Version, target: &str, headers: &[(&str, &str)]) -> Self {
        let stream = TokioIo::new(TcpStream::connect(address).await.expect("a connection"));
        let (body, pieces) = mpsc::channel(1);
        let target = match version {
            Version::Http1 => target.to_owned(),
            Version::Http2 => format!("http://{address}{target}"),
        };
        let mut request = Request::post(target);
        if version == Version::Http1 {
            request = request.header("host", address);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(BodyParts { pieces, ended: false }).expect("a request");
        let (response, connection) = match version {
            Version::Http1 => {
                let (mut sender, connection) = http1::handshake(stream).await.expect("a conversation");
                (tokio::spawn(async move { sender.send_request(request).await }), tokio::spawn(connection))
            }
            Version::Http2 => {
                let handshake = http2::handshake(TokioExecutor::new(), stream).await;
                let (mut sender, connection) = handshake.expect("a conversation");
                (tokio::spawn(async move { sender.send_request(request).await }), tokio::spawn(connection))
            }
        };
        Self { body: Some(body), response: Some(response), answer: None, connection }
    }

    pub async fn send(&self, bytes: impl Into<Bytes>) {
        self.put(BodyPart::Frame(Frame::data(bytes.into()))).await;
    }

    /// Ends the body.
    pub async fn end(&mut self) {
        self.put(BodyPart::End).await;
        self.body = None;
    }

    /// Ends the body with trailers, which HTTP/1 must have announced in its headers.
    pub async fn end_with(&mut self, name: &'static str, value: &'static str) {
        let mut trailers = HeaderMap::new();
        trailers.insert(name, HeaderValue::from_static(value));
        self.put(BodyPart::Frame(Frame::trailers(trailers))).await;
        self.end().await;
    }

    async fn put(&self, piece: BodyPart) {
        // A server that takes no more of the body has its reasons; what it answers is looked at elsewhere.
        let _ = self.body.as_ref().expect("the body has not ended").send(piece).await;
    }

    /// Waits for the answer's head.
    pub async fn status(&mut self) -> StatusCode {
        self.answer().await.status()
    }

    pub async fn headers(&mut self) -> &HeaderMap {
        self.answer().await.headers()
    }

    async fn answer(&mut self) -> &mut Response<Incoming> {
        if let Some(response) = self.response.take() {
            let response = tokio::time::timeout(TIMEOUT, response).await.expect("an answer comes");
            self.answer = Some(response.expect("no panic").expect("an answer"));
        }
        self.answer.as_mut().expect("an answer that has come stays")
    }

    /// Reads until all of `text` has come.
    pub async fn expect(&mut self, text: &str) {
        let mut came = BytesMut::new();
        while came.len() < text.len() {
            let frame = self.frame().await.expect("a piece of the answer").expect("the answer goes on");
            came.extend_from_slice(&frame.into_data().expect("data"));
        }
        assert_eq!(came, text);
    }

    /// Reads so many bytes of the answer, whatever they are.
    pub async fn skip(&mut self, bytes: usize) {
        let mut came = 0;
        while came < bytes {
            let frame = self.frame().await.expect("a piece of the answer").expect("the answer goes on");
            came += frame.into_data().expect("data").len();
        }
        assert_eq!(came, bytes);
    }

    /// Reads the next part of the answer, whatever it is: its bytes.
    pub async fn piece(&mut self) -> usize {
        let frame = self.frame().await.expect("a piece of the answer").expect("the answer goes on");
        frame.into_data().expect("data").len()
    }

    /// Reads to the end of the answer: its text and its trailers.
    ///
    /// # Errors
    /// When it breaks off.
    pub async fn rest(&mut self) -> hyper::Result<(String, HeaderMap)> {
        let (mut body, mut trailers) = (BytesMut::new(), HeaderMap::new());
        while let Some(frame) = self.frame().await? {
            match frame.into_data() {
                Ok(data) => body.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().expect("data or trailers"),
            }
        }
        Ok((String::from_utf8_lossy(&body).into_owned(), trailers))
    }

    async fn frame(&mut self) -> hyper::Result<Option<Frame<Bytes>>> {
        let body = self.answer().await.body_mut();
        let frame = tokio::time::timeout(TIMEOUT, poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx))).await;
        frame.expect("a piece comes, or the end").transpose()
    }

    /// Waits until the server has ended the connection in an orderly way.
    pub async fn closed(mut self) {
        self.body = None;
        let ended = tokio::time::timeout(TIMEOUT, &mut self.connection).await;
        ended.expect("the server ends the connection").expect("no panic").expect("an orderly end");
    }
}

impl Drop for StreamedRequest {
    fn drop(&mut self) {
        self.connection.abort();
        if let Some(response) = &self.response {
            response.abort();
        }
    }
}

struct BodyParts {
    pieces: mpsc::Receiver<BodyPart>,
    ended: bool,
}

impl Body for BodyParts {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.pieces.poll_recv(cx)) {
            Some(BodyPart::Frame(frame)) => Some(Ok(frame)),
            Some(BodyPart::End) => {
                self.ended = true;
                None
            }
            None => Some(Err(io::Error::other("the client left"))),
        })
    }
}
