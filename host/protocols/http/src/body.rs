//! The two bodies of an exchange. `Inbound` is what the client sends, bounded, collected for `handler` modules or handed
//! on as it comes; `Outbound` is what hyper sends, and holds the request active until it is sent or dropped.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::pulse::{Active, Pulse};
use wasmcage_core::body::StreamBody;
use wasmcage_core::body_budget::{BodyRoom, NoRoom};

/// Memory taken ahead of a body's bytes; past it the buffer doubles as they come, up to what was announced.
const RESERVED_BYTES_MAX: usize = 256 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("body larger than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    #[error("body not received")]
    Broken(#[source] hyper::Error),
    /// hyper takes a reset without an error for an end in good order, as RFC 9113 section 8.1 lets servers send it; a client's
    /// leaves its body unfinished.
    #[error("the client reset the stream before the end of its body")]
    Reset,
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// A request's body. Ends with `TooLarge` as soon as more came than is allowed.
pub(super) struct Inbound {
    incoming: Incoming,
    bytes_max: u64,
    bytes_left: u64,
    ended: bool,
    too_large: Option<Arc<AtomicBool>>,
    pulse: Arc<Pulse>,
}

impl Inbound {
    pub(super) fn new(incoming: Incoming, pulse: &Arc<Pulse>) -> Self {
        let ended = incoming.is_end_stream();
        Self { incoming, bytes_max: 0, bytes_left: 0, ended, too_large: None, pulse: pulse.clone() }
    }

    /// Lets so many bytes in; none before.
    ///
    /// # Errors
    /// Before a byte is read: the client announced more.
    pub(super) fn allow(&mut self, bytes_max: u64) -> Result<(), BodyError> {
        (self.bytes_max, self.bytes_left) = (bytes_max, bytes_max);
        match self.incoming.size_hint().lower() > bytes_max {
            true => Err(BodyError::TooLarge { bytes_max }),
            false => Ok(()),
        }
    }

    /// The whole body, for which `room` is made as it comes. Trailers are dropped: a `handler` module has no place for them,
    /// and among the headers they would be believed.
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

    /// As a streaming module takes it; the flag tells later whether it was cut for its size.
    pub(super) fn stream(mut self) -> (StreamBody, Arc<AtomicBool>) {
        let flag = Arc::new(AtomicBool::new(false));
        self.too_large = Some(flag.clone());
        (StreamBody::new(self.map_err(|error| Box::new(error) as BoxError)), flag)
    }
}

/// Makes `buffer` good for `needed` bytes and some of those that follow, of which `missing` are announced, if that is known.
fn reserve(buffer: &mut Vec<u8>, needed: usize, missing: Option<usize>, room: &mut BodyRoom) -> Result<(), NoRoom> {
    if needed <= buffer.capacity() {
        return Ok(());
    }
    // An announcement costs the client nothing, so it reserves only so much; and no more than it says, if it says anything.
    let ahead = missing.map_or(needed, |missing| missing.min(needed.max(RESERVED_BYTES_MAX)));
    let capacity = needed.saturating_add(ahead);
    room.grow(capacity)?;
    buffer.reserve_exact(capacity - buffer.len());
    Ok(())
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.incoming).poll_frame(cx)) else {
            // Chunked bodies of HTTP/1 do not tell, but end too early with an error.
            let reset = self.pulse.is_multiplexed() && !self.incoming.is_end_stream();
            self.ended = true;
            return Poll::Ready(reset.then_some(Err(BodyError::Reset)));
        };
        let frame = frame.map_err(BodyError::Broken)?;
        self.pulse.progressed();
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

impl Drop for Inbound {
    fn drop(&mut self) {
        if !self.ended {
            self.pulse.body_left_unread();
        }
    }
}

/// What an answer consists of.
pub(super) enum Content {
    Empty,
    Whole(Bytes),
    Stream(StreamBody),
}

impl Content {
    /// Its length, when that is known before it is sent.
    pub(super) fn exact_bytes(&self) -> Option<u64> {
        self.size_hint().exact()
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Whole(bytes) }
    }
}

impl Body for Content {
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

/// An answer's body on its way out.
pub(super) struct Outbound {
    pub(super) content: Content,
    pub(super) active: Active,
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = self.get_mut();
        let frame = Pin::new(&mut body.content).poll_frame(cx);
        if frame.is_ready() {
            body.active.progressed();
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
