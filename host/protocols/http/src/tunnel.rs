//! Tunnels. A `wasi:http` module answers CONNECT with 2xx, and from then on the connection (HTTP/1, RFC 9110 section
//! 9.3.6) or the stream (HTTP/2, RFC 9113 section 8.5) carries bytes: the client's are the body of the module's
//! request, and the body of the response goes to the client. `interface.rs` makes a tunnel; `connection.rs` runs it on
//! an HTTP/1 connection, and a task of its own on an HTTP/2 stream. Each direction ends by itself. An interrupted
//! direction never looks like one that ended in good order, as far as the protocol can tell them apart.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::activity::{ActiveRequest, ConnectionActivity};
use super::body::BoxError;
use wasmcage_core::body::StreamBody;

/// How many bytes are read from the client at once. If a module reads nothing, up to three times as much is buffered.
const CHUNK_BYTES: usize = 16 * 1024;

/// Why a tunnel was cut.
#[derive(Debug, thiserror::Error)]
pub(super) enum TunnelError {
    #[error("the client's side of the tunnel broke off")]
    Client(#[source] io::Error),
    #[error("the module's side of the tunnel broke off")]
    Module(#[source] BoxError),
    #[error("more came through the tunnel than max_body_bytes = {bytes_max}")]
    TooLarge { bytes_max: u64 },
    #[error("stream_timeout_ms passed")]
    TimedOut,
}

/// A part of the client's bytes.
enum TunnelChunk {
    Data(Bytes),
    /// The client closed its sending side in good order.
    End,
}

/// The body of a CONNECT request. It has no bytes before the module has responded.
pub(super) struct TunnelBody {
    chunks: mpsc::Receiver<TunnelChunk>,
    ended: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("the tunnel's client has left")]
struct ClientLeft;

impl Body for TunnelBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let chunk = ready!(self.chunks.poll_recv(cx));
        self.ended = !matches!(chunk, Some(TunnelChunk::Data(_)));
        Poll::Ready(match chunk {
            Some(TunnelChunk::Data(data)) => Some(Ok(Frame::data(data))),
            Some(TunnelChunk::End) => None,
            None => Some(Err(ClientLeft.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// The sending side of a `TunnelBody`.
pub(super) struct TunnelInput(mpsc::Sender<TunnelChunk>);

/// The body for the request to the module, and its sending side.
pub(super) fn request_body() -> (TunnelInput, TunnelBody) {
    let (input, chunks) = mpsc::channel(1);
    (TunnelInput(input), TunnelBody { chunks, ended: false })
}

impl TunnelInput {
    /// Ends the body in good order, since there is no tunnel. A mere drop would look like a client that has left.
    pub(super) fn close(self) {
        // The channel has room, since nothing was sent before. It fails only if the module has gone.
        let _ = self.0.try_send(TunnelChunk::End);
    }
}

/// A tunnel that a module has agreed to.
pub(super) struct Tunnel {
    pub(super) input: TunnelInput,
    pub(super) from_module: StreamBody,
    /// The most bytes from the client.
    pub(super) bytes_max: u64,
    /// When the tunnel is cut, even if it makes progress.
    pub(super) latest: Instant,
    /// Counts as a request, so that the connection is not idle.
    pub(super) active: ActiveRequest,
}

impl Tunnel {
    /// Copies bytes until both directions have ended. `ahead` was read from the client already. `send_task` is that of
    /// an HTTP/2 stream.
    ///
    /// # Errors
    /// The tunnel has to be cut: the stream must be reset rather than ended in good order.
    pub(super) async fn run<S: AsyncRead + AsyncWrite>(
        self,
        stream: S,
        ahead: Bytes,
        send_task: Option<&SendTask>,
    ) -> Result<(), TunnelError> {
        let Self { input, from_module, bytes_max, latest, active } = self;
        let (reader, writer) = tokio::io::split(stream);
        let ended = AtomicBool::new(false);
        let copy_from_client = copy_from_client(
            reader,
            ahead,
            input.0,
            bytes_max,
            active.activity(),
            ClientEnd { send_task, ended: &ended },
        );
        let copy_to_client = copy_to_client(from_module, writer, active.activity(), &ended);
        let both = async {
            tokio::select! {
                biased;
                result = try_join(copy_from_client, copy_to_client) => result.map(drop),
                () = wait_for_reset(send_task, &ended) => Err(TunnelError::Client(io::ErrorKind::ConnectionReset.into())),
            }
        };
        timeout_at(latest, both).await.unwrap_or(Err(TunnelError::TimedOut))
    }
}

/// Waits until an HTTP/2 stream is reset before its end was sent.
async fn wait_for_reset(send_task: Option<&SendTask>, ended: &AtomicBool) {
    if let Some(send_task) = send_task {
        send_task.ended().await;
        if !ended.load(Ordering::Acquire) {
            return;
        }
    }
    std::future::pending().await
}

/// Tells whether the end of the client's bytes is one in good order.
struct ClientEnd<'a> {
    send_task: Option<&'a SendTask>,
    /// Set when the other direction has ended.
    ended: &'a AtomicBool,
}

impl ClientEnd<'_> {
    /// Returns whether the client ended in good order. This cannot be known any more once the other direction has
    /// ended; then it is assumed.
    async fn is_in_order(&self) -> bool {
        match self.send_task {
            Some(send_task) => send_task.confirm_end().await || self.ended.load(Ordering::Acquire),
            None => true,
        }
    }
}

/// Copies bytes from the client to the module, until the client ends or the module stops reading.
async fn copy_from_client(
    mut reader: impl AsyncRead + Unpin,
    ahead: Bytes,
    input: mpsc::Sender<TunnelChunk>,
    bytes_max: u64,
    activity: &ConnectionActivity,
    client: ClientEnd<'_>,
) -> Result<(), TunnelError> {
    let mut bytes_left = bytes_max;
    let mut buffer = BytesMut::from(ahead);
    loop {
        if buffer.is_empty() {
            buffer.reserve(CHUNK_BYTES);
            let count = tokio::select! {
                biased;
                () = input.closed() => break,
                count = reader.read_buf(&mut buffer) => count.map_err(TunnelError::Client)?,
            };
            if count == 0 {
                if !client.is_in_order().await {
                    return Err(TunnelError::Client(io::ErrorKind::ConnectionReset.into()));
                }
                // It fails only if the module has stopped reading.
                let _ = input.send(TunnelChunk::End).await;
                return Ok(());
            }
        }
        activity.record_progress();
        let data = buffer.split().freeze();
        bytes_left = bytes_left.checked_sub(data.len() as u64).ok_or(TunnelError::TooLarge { bytes_max })?;
        if input.send(TunnelChunk::Data(data)).await.is_err() {
            break;
        }
    }
    activity.body_left_unread();
    Ok(())
}

/// Copies bytes from the module to the client. Trailers are dropped: a tunnel has none.
async fn copy_to_client(
    mut body: StreamBody,
    mut writer: impl AsyncWrite + Unpin,
    activity: &ConnectionActivity,
    ended: &AtomicBool,
) -> Result<(), TunnelError> {
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(TunnelError::Module)?.into_data() else { continue };
        activity.record_progress();
        writer.write_all(&data).await.map_err(TunnelError::Client)?;
        writer.flush().await.map_err(TunnelError::Client)?;
    }
    ended.store(true, Ordering::Release);
    writer.shutdown().await.map_err(TunnelError::Client)
}

tokio::task_local! {
    /// The control of the task that hyper is about to spawn for a tunnel; set in the task of the tunnel's HTTP/2
    /// stream.
    static SEND_TASK_CONTROL: Cell<Option<SendTaskControl>>;
}

/// The task with which hyper sends the bytes of a tunnel over HTTP/2. When the tunnel's handle is dropped, hyper ends
/// the stream in good order, and it reads a client's reset as an end in good order. Only this task learns of resets,
/// and dropping the task resets the stream.
pub(super) struct SendTask {
    cut: CancellationToken,
    queries: mpsc::Sender<oneshot::Sender<()>>,
}

/// The task's side of a `SendTask`.
pub(super) struct SendTaskControl {
    cut: CancellationToken,
    queries: mpsc::Receiver<oneshot::Sender<()>>,
}

impl SendTask {
    /// Prepares for the task that hyper spawns for the tunnel of this stream. It must be called in the stream's own
    /// task, right before the response is returned to hyper.
    pub(super) fn expect() -> Self {
        let cut = CancellationToken::new();
        let (queries_tx, queries) = mpsc::channel(1);
        let control = SendTaskControl { cut: cut.clone(), queries };
        // Outside of a stream's task the control is dropped, and the send task counts as ended.
        let _ = SEND_TASK_CONTROL.try_with(|place| place.set(Some(control)));
        Self { cut, queries: queries_tx }
    }

    /// Returns whether the end of the client's bytes was no reset.
    async fn confirm_end(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.queries.send(answer).await.is_ok() && answered.await.is_ok()
    }

    /// Waits until the task has ended, because the stream's end was sent or the stream was reset.
    async fn ended(&self) {
        self.queries.closed().await;
    }

    /// Resets the stream. The tunnel's handle must not be dropped before.
    pub(super) async fn cut(&self) {
        self.cut.cancel();
        self.ended().await;
    }
}

impl SendTaskControl {
    /// Takes the control for the task that is being spawned, if it is a tunnel's.
    pub(super) fn take() -> Option<Self> {
        SEND_TASK_CONTROL.try_with(Cell::take).ok().flatten()
    }

    /// Runs a stream's task, in which a tunnel may begin.
    pub(super) async fn scope<T>(stream: impl Future<Output = T>) -> T {
        SEND_TASK_CONTROL.scope(Cell::new(None), stream).await
    }

    /// Runs the task of a tunnel.
    pub(super) async fn run(mut self, task: impl Future) {
        let mut task = pin!(task);
        loop {
            let answer = tokio::select! {
                biased;
                () = self.cut.cancelled() => return,
                _ = &mut task => return,
                Some(answer) = self.queries.recv() => answer,
            };
            // This poll sees a reset that came before the query.
            if poll_fn(|cx| Poll::Ready(task.as_mut().poll(cx).is_ready())).await {
                return;
            }
            // The asking side may have gone.
            let _ = answer.send(());
        }
    }
}
