//! One connection between two cages, over any stream of bytes: many calls at once in both directions, each with its
//! cancellation and its share of the connection. Knows nothing of what a call means, and nothing of how the connection
//! came to be.

mod driver;
pub mod frame;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use self::driver::Driver;
use self::frame::{Frame, Hello, Refusal};
use self::session::Session;
pub use self::session::SessionLimits;
use super::envelope::Message;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::Deadline;

/// A peer that was silent for so long is avoided until it is heard again.
const SUSPECT_AFTER: Duration = Duration::from_millis(1_200);

/// A connection on which calls can be made. Its clones are the same one; it is closed by `close`, or when it breaks.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

type Waiter = oneshot::Sender<Result<Message, LinkError>>;

struct Shared {
    session: Mutex<Session<Waiter, AbortHandle>>,
    /// Of the driver.
    waker: AtomicWaker,
    closed: watch::Sender<Option<Closed>>,
    /// Set by `close`: the driver ends when everything is said.
    closing: AtomicBool,
    going_away: AtomicBool,
    silent_ms: AtomicU64,
}

/// What answers the peer's calls on a link.
pub trait Answering: Send + Sync + 'static {
    /// Dropped when the caller gives up or the connection breaks.
    fn answer(&self, call: Message) -> impl Future<Output = Message> + Send;

    /// The peer told of members that it knows.
    fn told(&self, members: &[u8]);
}

/// Why a connection ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Closed {
    #[error("closed by this side")]
    Here,
    #[error("the connection was closed by the peer")]
    ByPeer,
    #[error("the peer closed the connection: {0}")]
    Bye(String),
    #[error("nothing was heard of the peer for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the peer does not read what is sent to it")]
    Unread,
    #[error("the peer broke the protocol: {0}")]
    Violation(String),
    #[error("the connection failed: {0}")]
    Io(Arc<std::io::Error>),
}

/// Why a call over a link has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// It was surely not run: it never left, or the peer says so.
    #[error("not handed over: {0}")]
    NotHandedOver(String),
    /// Surely not run, by the peer's word.
    #[error("refused: {1}")]
    Refused(Refusal, String),
    /// It may have run.
    #[error("{0}")]
    Lost(Closed),
    /// The deadline came first; the callee has been told.
    #[error("no answer in time")]
    TimedOut,
}

/// Why two sides do not become a link.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    #[error("connection failed")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Violation(#[from] frame::Violation),
    #[error("no greeting within {} ms", .0.as_millis())]
    Late(Duration),
    #[error("the peer closed the connection: {0}")]
    Bye(String),
    #[error("the peer closed the connection before it greeted")]
    Closed,
}

/// Sends this side's greeting and waits for the other's, which is for the caller to check. What came after it is left in
/// the buffer.
///
/// # Errors
/// No greeting came, or none that can be understood.
pub async fn greet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hello: &Hello,
    patience: Duration,
) -> Result<(Hello, BytesMut), GreetingError> {
    let greeting = async {
        let mut out = BytesMut::new();
        hello.put(&mut out);
        stream.write_all(&out).await?;
        stream.flush().await?;
        let mut came = BytesMut::with_capacity(1 << 10);
        loop {
            match Frame::take(&mut came)? {
                Some(Frame::Hello(hello)) => return Ok((hello, came)),
                Some(Frame::Bye(text)) => return Err(GreetingError::Bye(text)),
                Some(_) => return Err(frame::violation("the first frame is no greeting").into()),
                None => {}
            }
            if stream.read_buf(&mut came).await? == 0 {
                return Err(GreetingError::Closed);
            }
        }
    };
    tokio::time::timeout(patience, greeting).await.unwrap_or(Err(GreetingError::Late(patience)))
}

/// Tells the peer why this side leaves, as far as it still listens.
pub async fn say_bye(stream: &mut (impl AsyncWrite + Unpin), text: &str) {
    let mut out = BytesMut::new();
    frame::put_bye(&mut out, text);
    // The connection is given up either way.
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        let _ = stream.write_all(&out).await;
        let _ = stream.shutdown().await;
    })
    .await;
}

impl Link {
    /// The link, and its life: a future to be spawned, which ends with the connection. The peer's calls are served when
    /// `serves`; where `lanes` are given, many at once are spread over them.
    pub fn new<S, A>(
        stream: S,
        rest: BytesMut,
        limits: SessionLimits,
        serves: bool,
        answering: Arc<A>,
        lanes: Option<Arc<Lanes>>,
    ) -> (Self, impl Future<Output = ()> + Send)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Answering,
    {
        let shared = Arc::new(Shared {
            session: Mutex::new(Session::new(limits, serves)),
            waker: AtomicWaker::new(),
            closed: watch::Sender::new(None),
            closing: AtomicBool::new(false),
            going_away: AtomicBool::new(false),
            silent_ms: AtomicU64::new(0),
        });
        let driver = Driver::new(stream, shared.clone(), answering, lanes, rest);
        (Self(shared), driver.run())
    }

    /// Has the peer run a call.
    ///
    /// # Errors
    /// See the kinds. Dropping the future cancels the call.
    pub async fn call(&self, message: Message, deadline: Deadline) -> Result<Message, LinkError> {
        let (waiter, answer) = oneshot::channel();
        let begun = self.0.session.lock().call(message, waiter);
        let Ok(id) = begun else { return Err(LinkError::NotHandedOver(self.why_closed())) };
        self.0.waker.wake();
        let mut open = Open { shared: &self.0, id: Some(id) };
        match tokio::time::timeout_at(deadline.instant(), answer).await {
            Ok(ended) => {
                open.id = None;
                // The driver was dropped as it was: its runtime is ending.
                ended.unwrap_or(Err(LinkError::Lost(Closed::Here)))
            }
            Err(_) => Err(LinkError::TimedOut),
        }
    }

    /// Open, and its peer takes calls.
    pub fn is_usable(&self) -> bool {
        self.0.closed.borrow().is_none() && !self.0.going_away.load(Ordering::Relaxed)
    }

    /// Nothing was heard of the peer for longer than its signs of life take.
    pub fn is_suspect(&self) -> bool {
        u128::from(self.0.silent_ms.load(Ordering::Relaxed)) > SUSPECT_AFTER.as_millis()
    }

    pub fn is_closed(&self) -> bool {
        self.0.closed.borrow().is_some()
    }

    /// Calls made here that have no answer yet.
    pub fn calls_open(&self) -> usize {
        self.0.session.lock().calls_open()
    }

    pub fn tell(&self, members: &[u8]) {
        self.0.session.lock().told(members);
        self.0.waker.wake();
    }

    /// Resolves when the connection has ended.
    pub async fn closed(&self) -> Closed {
        self.ended().await
    }

    /// The same, without keeping the link.
    pub fn ended(&self) -> impl Future<Output = Closed> + Send + use<> {
        let mut closed = self.0.closed.subscribe();
        async move {
            let closed = closed.wait_for(Option::is_some).await.map(|closed| closed.clone());
            // A sender that is gone has sent it, or the driver went without a word.
            closed.ok().flatten().unwrap_or(Closed::Here)
        }
    }

    /// Takes no calls any more, and ends the connection when those in work on either side have ended.
    pub fn close(&self) {
        self.0.session.lock().go_away();
        self.0.closing.store(true, Ordering::Relaxed);
        self.0.waker.wake();
    }

    fn why_closed(&self) -> String {
        match &*self.0.closed.borrow() {
            Some(closed) => closed.to_string(),
            None => "the peer takes no more calls".to_owned(),
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("usable", &self.is_usable()).finish_non_exhaustive()
    }
}

/// A call that is cancelled when nobody waits for it any more.
struct Open<'a> {
    shared: &'a Shared,
    id: Option<u64>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.session.lock().cancel(id);
            self.shared.waker.wake();
        }
    }
}

impl Shared {
    fn must_close(&self) -> Option<Closed> {
        if !self.closing.load(Ordering::Relaxed) {
            return None;
        }
        self.session.lock().is_idle().then_some(Closed::Here)
    }

    fn note_going_away(&self) {
        self.going_away.store(true, Ordering::Relaxed);
    }

    fn note_silence(&self, silent: Duration) {
        self.silent_ms.store(silent.as_millis() as u64, Ordering::Relaxed);
    }

    fn close(&self, closed: Closed) {
        let (waiters, runners) = self.session.lock().close();
        self.closed.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert_with(|| closed.clone());
            first
        });
        runners.iter().for_each(AbortHandle::abort);
        for (waiter, handed_over) in waiters {
            let error = match handed_over {
                true => LinkError::Lost(closed.clone()),
                false => LinkError::NotHandedOver(closed.to_string()),
            };
            // A caller that has just left has no use for it.
            let _ = waiter.send(Err(error));
        }
    }
}
