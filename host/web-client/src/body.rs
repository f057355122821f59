//! The body of a response: a stream with timeouts, which ends with the reason when it breaks off.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::Timeouts;
use super::error::{WebError, WebErrorKind, of_body};
use wasmcage_core::request::Deadline;

/// The body of a response.
pub struct ResponseBody {
    incoming: Incoming,
    /// The connection speaks HTTP/2, so that a reset of the stream may end the body. Set to false once that is reported.
    http2: bool,
    between_bytes: Option<Duration>,
    deadline: Deadline,
    /// The timeout of the next part.
    late: Pin<Box<Sleep>>,
}

impl ResponseBody {
    pub(super) fn new(incoming: Incoming, http2: bool, times: Timeouts) -> Self {
        let Timeouts { between_bytes, deadline, .. } = times;
        let late = Box::pin(tokio::time::sleep_until(next(deadline, between_bytes).instant()));
        Self { incoming, http2, between_bytes, deadline, late }
    }
}

/// Returns the deadline of the next part.
fn next(deadline: Deadline, between_bytes: Option<Duration>) -> Deadline {
    between_bytes.map_or(deadline, |between| deadline.within(between))
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = WebError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WebError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if this.between_bytes.is_some() {
                    this.late.as_mut().reset(next(this.deadline, this.between_bytes).instant());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(of_body(&error)))),
            // hyper takes a reset without an error for an end in good order, which it is only after the end of the
            // body: RFC 9113 section 8.1. Proxies send it when the server behind them broke off.
            Poll::Ready(None) if this.http2 && !this.incoming.is_end_stream() => {
                this.http2 = false;
                let error = WebError::new(WebErrorKind::Disconnected, "the server reset the answer before its end");
                Poll::Ready(Some(Err(WebError { sent: true, ..error })))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => this.late.as_mut().poll(cx).map(|()| {
                let error = WebError::new(WebErrorKind::BodyTimedOut, "the rest of the answer did not come in time");
                Some(Err(WebError { sent: true, ..error }))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;

    /// Reads an answer of a server that sends half of it and, unless that is `all`, resets the stream without an error.
    async fn answered(all: bool) -> Result<Bytes, WebError> {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (half_came, reset) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(server).await.unwrap();
            let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"half"), all).unwrap();
            tokio::spawn(async move {
                if reset.await.is_ok() && !all {
                    body.send_reset(h2::Reason::NO_ERROR);
                }
            });
            // Drives the connection to the client's end.
            while connection.accept().await.is_some() {}
        });
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await;
        let (mut sender, connection) = handshake.unwrap();
        tokio::spawn(connection);
        let request = Request::get("http://a.example/").body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let deadline = Deadline::after(Duration::from_secs(20));
        let times = Timeouts { connect: None, first_byte: None, between_bytes: None, deadline };
        let mut body = ResponseBody::new(response.into_body(), true, times);
        let half = body.frame().await.unwrap()?.into_data().unwrap();
        half_came.send(()).unwrap();
        match body.frame().await {
            None => Ok(half),
            Some(more) => Err(more.unwrap_err()),
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_reset_without_an_error_is_not_a_whole_one() {
        assert_eq!(answered(true).await.unwrap(), "half");
        assert_eq!(answered(false).await.unwrap_err().kind, WebErrorKind::Disconnected);
    }
}
