//! Tunnels: a `wasi:http` module answers CONNECT with 2xx, and from then on the connection (HTTP/1, RFC 9110 section 9.3.6)
//! or the stream (HTTP/2, RFC 9113 section 8.5) carries bytes: the client's are the body of the module's request, the body of
//! its answer goes to the client. Made by `interface.rs`; run by `connection.rs` on a connection of HTTP/1, and in a task of
//! its own on a stream of HTTP/2. Each direction ends by itself. What breaks off never looks like an end in good order, in
//! either direction, as far as the protocol can tell them apart.

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

use super::pulse::{Active, Pulse};
use wasmcage_core::body::StreamBody;

/// Read at once from the client. A module that takes nothing holds up its client with three times as much in memory.
const CHUNK_BYTES: usize = 16 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

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
    Late,
}

enum Piece {
    Data(Bytes),
    /// The client ended its sending in good order.
    End,
}

/// The body of a CONNECT request. A module that reads it before it has answered waits.
pub(super) struct Entrance {
    pieces: mpsc::Receiver<Piece>,
    ended: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("the tunnel's client has left")]
struct ClientLeft;

impl Body for Entrance {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(cx));
        self.ended = !matches!(piece, Some(Piece::Data(_)));
        Poll::Ready(match piece {
            Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Piece::End) => None,
            None => Some(Err(ClientLeft.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// The other side of an `Entrance`.
pub(super) struct Door(mpsc::Sender<Piece>);

pub(super) fn entrance() -> (Door, Entrance) {
    let (door, pieces) = mpsc::channel(1);
    (Door(door), Entrance { pieces, ended: false })
}

impl Door {
    /// There is no tunnel, so that the request has no body. (Dropped, it would seem to have lost one.)
    pub(super) fn close(self) {
        // There is room: nothing was sent before. A module that has gone does not read it.
        let _ = self.0.try_send(Piece::End);
    }
}

/// What a module agreed to.
pub(super) struct Tunnel {
    pub(super) door: Door,
    pub(super) from_module: StreamBody,
    /// From the client.
    pub(super) bytes_max: u64,
    /// When it is cut however much moves.
    pub(super) latest: Instant,
    /// Keeps the connection from being idle.
    pub(super) active: Active,
}

impl Tunnel {
    /// Carries bytes until both directions have ended. `ahead` has come already. `sender` belongs to a stream of HTTP/2.
    ///
    /// # Errors
    /// When it has to be cut: the stream must not end as if all was well.
    pub(super) async fn run<S: AsyncRead + AsyncWrite>(
        self,
        stream: S,
        ahead: Bytes,
        sender: Option<&Sender>,
    ) -> Result<(), TunnelError> {
        let Self { door, from_module, bytes_max, latest, active } = self;
        let (reader, writer) = tokio::io::split(stream);
        let ended = AtomicBool::new(false);
        let inwards = inwards(reader, ahead, door.0, bytes_max, active.pulse(), Client { sender, ended: &ended });
        let outwards = outwards(from_module, writer, active.pulse(), &ended);
        let both = async {
            tokio::select! {
                biased;
                result = try_join(inwards, outwards) => result.map(drop),
                () = lost(sender, &ended) => Err(TunnelError::Client(io::ErrorKind::ConnectionReset.into())),
            }
        };
        timeout_at(latest, both).await.unwrap_or(Err(TunnelError::Late))
    }
}

/// Resolves when a stream of HTTP/2 was reset before its end was sent.
async fn lost(sender: Option<&Sender>, ended: &AtomicBool) {
    if let Some(sender) = sender {
        sender.gone().await;
        if !ended.load(Ordering::Acquire) {
            return;
        }
    }
    std::future::pending().await
}

/// Whoever may know better what the end of a client's bytes means.
struct Client<'a> {
    sender: Option<&'a Sender>,
    ended: &'a AtomicBool,
}

impl Client<'_> {
    /// Whether the end of its bytes is one in good order. After the end of the other direction nobody knows it any more.
    async fn ended_well(&self) -> bool {
        match self.sender {
            Some(sender) => sender.confirm_end().await || self.ended.load(Ordering::Acquire),
            None => true,
        }
    }
}

/// From the client to the module, up to the client's end, or as long as the module wants it.
async fn inwards(
    mut reader: impl AsyncRead + Unpin,
    ahead: Bytes,
    door: mpsc::Sender<Piece>,
    bytes_max: u64,
    pulse: &Pulse,
    client: Client<'_>,
) -> Result<(), TunnelError> {
    let mut bytes_left = bytes_max;
    let mut buffer = BytesMut::from(ahead);
    loop {
        if buffer.is_empty() {
            buffer.reserve(CHUNK_BYTES);
            let count = tokio::select! {
                biased;
                () = door.closed() => break,
                count = reader.read_buf(&mut buffer) => count.map_err(TunnelError::Client)?,
            };
            if count == 0 {
                if !client.ended_well().await {
                    return Err(TunnelError::Client(io::ErrorKind::ConnectionReset.into()));
                }
                // A module that reads no more does not want to know.
                let _ = door.send(Piece::End).await;
                return Ok(());
            }
        }
        pulse.progressed();
        let data = buffer.split().freeze();
        bytes_left = bytes_left.checked_sub(data.len() as u64).ok_or(TunnelError::TooLarge { bytes_max })?;
        if door.send(Piece::Data(data)).await.is_err() {
            break;
        }
    }
    pulse.body_left_unread();
    Ok(())
}

/// From the module to the client. Trailers have no place in a tunnel.
async fn outwards(
    mut body: StreamBody,
    mut writer: impl AsyncWrite + Unpin,
    pulse: &Pulse,
    ended: &AtomicBool,
) -> Result<(), TunnelError> {
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(TunnelError::Module)?.into_data() else { continue };
        pulse.progressed();
        writer.write_all(&data).await.map_err(TunnelError::Client)?;
        writer.flush().await.map_err(TunnelError::Client)?;
    }
    ended.store(true, Ordering::Release);
    writer.shutdown().await.map_err(TunnelError::Client)
}

tokio::task_local! {
    /// Of a stream of HTTP/2: what the task obeys that hyper is going to spawn for the stream's tunnel.
    static ORDERS: Cell<Option<Orders>>;
}

/// The task by which hyper sends what is written into a tunnel over HTTP/2. hyper ends the stream in good order when its
/// handle is dropped, and reads a client's reset as an end in good order; this task knows of resets, and resets the stream
/// when it is dropped.
pub(super) struct Sender {
    cut: CancellationToken,
    questions: mpsc::Sender<oneshot::Sender<()>>,
}

/// The task's side of a `Sender`.
pub(super) struct Orders {
    cut: CancellationToken,
    questions: mpsc::Receiver<oneshot::Sender<()>>,
}

impl Sender {
    /// For the tunnel of the stream that this is called in; the answer must be returned to hyper next.
    pub(super) fn expected() -> Self {
        let cut = CancellationToken::new();
        let (ask, questions) = mpsc::channel(1);
        let orders = Orders { cut: cut.clone(), questions };
        // Without a place for them they are dropped, and the task is taken for gone.
        let _ = ORDERS.try_with(|place| place.set(Some(orders)));
        Self { cut, questions: ask }
    }

    /// Whether the client's end is one, and no reset.
    async fn confirm_end(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.questions.send(answer).await.is_ok() && answered.await.is_ok()
    }

    /// Resolves when the task has ended: after the end was sent, or because the stream was reset.
    async fn gone(&self) {
        self.questions.closed().await;
    }

    /// Resets the stream, as long as its handle is there.
    pub(super) async fn cut(&self) {
        self.cut.cancel();
        self.gone().await;
    }
}

impl Orders {
    /// Those that the task being spawned here has to obey, if it is a tunnel's.
    pub(super) fn taken() -> Option<Self> {
        ORDERS.try_with(Cell::take).ok().flatten()
    }

    /// A stream in which a tunnel may begin.
    pub(super) async fn may_come<T>(stream: impl Future<Output = T>) -> T {
        ORDERS.scope(Cell::new(None), stream).await
    }

    /// The tunnel's task itself.
    pub(super) async fn obeyed(mut self, task: impl Future) {
        let mut task = pin!(task);
        loop {
            let answer = tokio::select! {
                biased;
                () = self.cut.cancelled() => return,
                _ = &mut task => return,
                Some(answer) = self.questions.recv() => answer,
            };
            // A reset from before the question is seen now, if not before.
            if poll_fn(|cx| Poll::Ready(task.as_mut().poll(cx).is_ready())).await {
                return;
            }
            // Whoever asked may have gone.
            let _ = answer.send(());
        }
    }
}
