//! A response's body as it comes: bounded in time, and broken off with the reason.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::Times;
use super::error::{WebError, WebErrorKind, of_body};
use wasmcage_core::request::Deadline;

pub struct ResponseBody {
    incoming: Incoming,
    between_bytes: Option<Duration>,
    deadline: Deadline,
    /// Ends when the next part is late.
    late: Pin<Box<Sleep>>,
}

impl ResponseBody {
    pub(super) fn new(incoming: Incoming, times: Times) -> Self {
        let Times { between_bytes, deadline, .. } = times;
        let late = Box::pin(tokio::time::sleep_until(next(deadline, between_bytes).instant()));
        Self { incoming, between_bytes, deadline, late }
    }
}

/// When the next part is late.
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
