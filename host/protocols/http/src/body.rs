//! The two bodies of an exchange. `IncomingBody` is the client's; its size is limited, and it is collected for
//! `handler` modules or streamed. `OutgoingBody` is the one that hyper sends; it keeps the request active until it is
//! sent or dropped.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::activity::{ActiveRequest, ConnectionActivity};
use wasmcage_core::body::StreamBody;
use wasmcage_core::body_budget::{BodyRoom, NoRoom};

/// The most memory that is reserved before a body's bytes arrive. Beyond it the buffer doubles as they arrive, up to
/// the announced length.
const RESERVED_BYTES_MAX: usize = 256 * 1024;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("body larger than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    #[error("body not received")]
    Broken(#[source] hyper::Error),
    /// hyper reads a reset with NO_ERROR as an end in good order, since RFC 9113 section 8.1 lets servers send that.
    /// From a client it means that the body is incomplete.
    #[error("the client reset the stream before the end of its body")]
    Reset,
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// A request's body. It ends with `TooLarge` as soon as more bytes than allowed have arrived.
pub(super) struct IncomingBody {
    incoming: Incoming,
    bytes_max: u64,
    bytes_left: u64,
    ended: bool,
    too_large: Option<Arc<AtomicBool>>,
    activity: Arc<ConnectionActivity>,
}

impl IncomingBody {
    pub(super) fn new(incoming: Incoming, activity: &Arc<ConnectionActivity>) -> Self {
        let ended = incoming.is_end_stream();
        Self { incoming, bytes_max: 0, bytes_left: 0, ended, too_large: None, activity: activity.clone() }
    }

    /// Sets the limit, which is zero before.
    ///
    /// # Errors
    /// The client has announced a longer body.
    pub(super) fn allow(&mut self, bytes_max: u64) -> Result<(), BodyError> {
        (self.bytes_max, self.bytes_left) = (bytes_max, bytes_max);
        match self.incoming.size_hint().lower() > bytes_max {
            true => Err(BodyError::TooLarge { bytes_max }),
            false => Ok(()),
        }
    }

    /// Reads the whole body; `room` grows with it. Trailers are dropped: a `handler` module has no place for them, and
    /// would trust them if they were among the headers.
    pub(super) async fn collect(mut self, room: &mut BodyRoom) -> Result<Bytes, BodyError> {
        if self.ended {
            return Ok(Bytes::new());
        }
        let mut first = Bytes::new();
        let mut whole = Vec::new();
        while let Some(frame) = self.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if first.is_empty() {
                room.grow(data.len())?;
                first = data;
                continue;
            }
            let missing = match self.incoming.size_hint().lower() {
                _ if self.ended => Some(0),
                0 => None,
                announced => Some(usize::try_from(announced).unwrap_or(usize::MAX)),
            };
            let before = if whole.is_empty() { first.len() } else { whole.len() };
            reserve(&mut whole, before + data.len(), missing, room)?;
            if whole.is_empty() {
                whole.extend_from_slice(&first);
            }
            whole.extend_from_slice(&data);
        }
        Ok(if whole.is_empty() { first } else { Bytes::from(whole) })
    }

    /// Turns this into the body that a streaming module gets. The flag is set if the body is cut because of its size.
    pub(super) fn stream(mut self) -> (StreamBody, Arc<AtomicBool>) {
        let flag = Arc::new(AtomicBool::new(false));
        self.too_large = Some(flag.clone());
        (StreamBody::new(self.map_err(|error| Box::new(error) as BoxError)), flag)
    }
}

/// Reserves `buffer` for `needed` bytes and for some of those that follow. `missing` of them are announced, if that is
/// known.
fn reserve(buffer: &mut Vec<u8>, needed: usize, missing: Option<usize>, room: &mut BodyRoom) -> Result<(), NoRoom> {
    if needed <= buffer.capacity() {
        return Ok(());
    }
    // A client can announce any length at no cost, so it reserves only a limited part; and no more than announced.
    let ahead = missing.map_or(needed, |missing| missing.min(needed.max(RESERVED_BYTES_MAX)));
    let capacity = needed.saturating_add(ahead);
    room.grow(capacity)?;
    buffer.reserve_exact(capacity - buffer.len());
    Ok(())
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.incoming).poll_frame(cx)) else {
            // In HTTP/1 an incomplete body ends with an error.
            let reset = self.activity.is_multiplexed() && !self.incoming.is_end_stream();
            self.ended = true;
            return Poll::Ready(reset.then_some(Err(BodyError::Reset)));
        };
        let frame = frame.map_err(BodyError::Broken)?;
        self.activity.record_progress();
        if let Some(data) = frame.data_ref() {
            let Some(left) = self.bytes_left.checked_sub(data.len() as u64) else {
                if let Some(flag) = &self.too_large {
                    flag.store(true, Ordering::Relaxed);
                }
                return Poll::Ready(Some(Err(BodyError::TooLarge { bytes_max: self.bytes_max })));
            };
            self.bytes_left = left;
        }
        self.ended = self.incoming.is_end_stream();
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        if !self.ended {
            self.activity.body_left_unread();
        }
    }
}

/// The body of a response.
pub(super) enum ResponseContent {
    Empty,
    Whole(Bytes),
    Stream(StreamBody),
}

impl ResponseContent {
    /// The length, if it is known before it is sent.
    pub(super) fn exact_bytes(&self) -> Option<u64> {
        self.size_hint().exact()
    }
}

impl From<Bytes> for ResponseContent {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Whole(bytes) }
    }
}

impl Body for ResponseContent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let content = self.get_mut();
        match content {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *content = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(_) => false,
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// The body of a response while hyper sends it.
pub(super) struct OutgoingBody {
    pub(super) content: ResponseContent,
    pub(super) active: ActiveRequest,
}

impl Body for OutgoingBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = self.get_mut();
        let frame = Pin::new(&mut body.content).poll_frame(cx);
        if frame.is_ready() {
            body.active.record_progress();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}
