//! One connection between two cages, over any stream of bytes: many calls at once in both directions, each of which can
//! be cancelled and gets its share of the connection. Knows neither what a call means nor how the connection was made.

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

use self::driver::LinkDriver;
use self::frame::{Frame, Hello, RefusalReason};
use self::session::LinkSession;
pub(crate) use self::session::SessionLimits;
use super::envelope::Message;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::Deadline;

/// A peer from which nothing was received for this time is avoided until something is received again.
const SUSPECT_AFTER: Duration = Duration::from_millis(1_200);

/// A connection on which calls can be made. Its clones share one connection, which ends with `close` or when it breaks.
#[derive(Clone)]
pub(crate) struct Link(Arc<LinkShared>);

type AnswerSender = oneshot::Sender<Result<Message, LinkError>>;

struct LinkShared {
    session: Mutex<LinkSession<AnswerSender, AbortHandle>>,
    /// Wakes the driver.
    waker: AtomicWaker,
    closed: watch::Sender<Option<CloseReason>>,
    /// Set by `close`: the driver ends once no call is open and everything is written.
    closing: AtomicBool,
    going_away: AtomicBool,
    silent_ms: AtomicU64,
}

/// Handles what the peer sends over a link.
pub(crate) trait LinkHandler: Send + Sync + 'static {
    /// Runs a call. The future is dropped when the caller gives up or the connection breaks.
    fn answer(&self, call: Message) -> impl Future<Output = Message> + Send;

    /// Takes the list of members that the peer knows.
    fn members_received(&self, members: &[u8]);
}

/// Why a connection ended.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CloseReason {
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

/// Why a call over a link got no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The call surely did not run: it was not sent, or the peer says so.
    #[error("not handed over: {0}")]
    NotHandedOver(String),
    /// The call surely did not run: the peer refused it.
    #[error("refused: {1}")]
    Refused(RefusalReason, String),
    /// The call may have run.
    #[error("{0}")]
    Lost(CloseReason),
    /// The deadline passed; the call is being cancelled at the callee.
    #[error("no answer in time")]
    TimedOut,
}

/// Why the greeting on a new connection failed.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    #[error("connection failed")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Violation(#[from] frame::Violation),
    #[error("no greeting within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("the peer closed the connection: {0}")]
    Bye(String),
    #[error("the peer closed the connection before it greeted")]
    Closed,
}

/// Sends this side's greeting and waits for the peer's, which the caller has to check. Returns it with the bytes that
/// were received after it.
///
/// # Errors
/// No greeting received, or none that can be understood.
pub async fn greet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hello: &Hello,
    timeout: Duration,
) -> Result<(Hello, BytesMut), GreetingError> {
    let greeting = async {
        let mut out = BytesMut::new();
        hello.put(&mut out);
        stream.write_all(&out).await?;
        stream.flush().await?;
        let mut received = BytesMut::with_capacity(1 << 10);
        loop {
            match Frame::take(&mut received)? {
                Some(Frame::Hello(hello)) => return Ok((hello, received)),
                Some(Frame::Bye(text)) => return Err(GreetingError::Bye(text)),
                Some(_) => return Err(frame::violation("the first frame is no greeting").into()),
                None => {}
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err(GreetingError::Closed);
            }
        }
    };
    tokio::time::timeout(timeout, greeting).await.unwrap_or(Err(GreetingError::TimedOut(timeout)))
}

/// Tells the peer why this side closes the connection. An error is ignored.
pub(crate) async fn say_bye(stream: &mut (impl AsyncWrite + Unpin), text: &str) {
    let mut out = BytesMut::new();
    frame::put_bye(&mut out, text);
    // The connection is closed in any case.
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        let _ = stream.write_all(&out).await;
        let _ = stream.shutdown().await;
    })
    .await;
}

impl Link {
    /// Returns the link, and the future that drives it: it must be spawned, and ends with the connection. The peer's
    /// calls are run only if `serves`; with `lanes`, many calls at once are spread over them.
    pub(crate) fn new<S, A>(
        stream: S,
        rest: BytesMut,
        limits: SessionLimits,
        serves: bool,
        handler: Arc<A>,
        lanes: Option<Arc<Lanes>>,
    ) -> (Self, impl Future<Output = ()> + Send)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: LinkHandler,
    {
        let shared = Arc::new(LinkShared {
            session: Mutex::new(LinkSession::new(limits, serves)),
            waker: AtomicWaker::new(),
            closed: watch::Sender::new(None),
            closing: AtomicBool::new(false),
            going_away: AtomicBool::new(false),
            silent_ms: AtomicU64::new(0),
        });
        let driver = LinkDriver::new(stream, shared.clone(), handler, lanes, rest);
        (Self(shared), driver.run())
    }

    /// Sends a call to the peer and waits for the answer. Dropping the future cancels the call.
    ///
    /// # Errors
    /// Each variant says whether the call may have run.
    pub(crate) async fn call(&self, message: Message, deadline: Deadline) -> Result<Message, LinkError> {
        let (waiter, answer) = oneshot::channel();
        let begun = self.0.session.lock().call(message, waiter);
        let Ok(id) = begun else { return Err(LinkError::NotHandedOver(self.why_closed())) };
        self.0.waker.wake();
        let mut guard = CancelGuard { shared: &self.0, id: Some(id) };
        match tokio::time::timeout_at(deadline.instant(), answer).await {
            Ok(ended) => {
                guard.id = None;
                // The driver was dropped: its runtime is ending.
                ended.unwrap_or(Err(LinkError::Lost(CloseReason::Here)))
            }
            Err(_) => Err(LinkError::TimedOut),
        }
    }

    /// Returns whether the connection is open and the peer accepts calls.
    pub(crate) fn is_usable(&self) -> bool {
        self.0.closed.borrow().is_none() && !self.0.going_away.load(Ordering::Relaxed)
    }

    /// Returns whether nothing was received for longer than a ping and its answer take.
    pub(crate) fn is_suspect(&self) -> bool {
        u128::from(self.0.silent_ms.load(Ordering::Relaxed)) > SUSPECT_AFTER.as_millis()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.closed.borrow().is_some()
    }

    /// Calls made by this side that have no answer yet.
    pub(crate) fn calls_open(&self) -> usize {
        self.0.session.lock().calls_open()
    }

    /// Sends the peer a list of members.
    pub(crate) fn send_members(&self, members: &[u8]) {
        self.0.session.lock().send_members(members);
        self.0.waker.wake();
    }

    /// Waits for the end of the connection.
    pub(crate) async fn closed(&self) -> CloseReason {
        self.ended().await
    }

    /// The same as `closed`, without keeping the link alive.
    pub(crate) fn ended(&self) -> impl Future<Output = CloseReason> + Send + use<> {
        let mut closed = self.0.closed.subscribe();
        async move {
            let closed = closed.wait_for(Option::is_some).await.map(|closed| closed.clone());
            // A dropped sender has sent the reason, unless the driver was dropped.
            closed.ok().flatten().unwrap_or(CloseReason::Here)
        }
    }

    /// Refuses new calls, and closes the connection when those in flight on both sides have ended.
    pub(crate) fn close(&self) {
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

/// Cancels a call when it is dropped before the call has ended.
struct CancelGuard<'a> {
    shared: &'a LinkShared,
    /// None once the call has ended.
    id: Option<u64>,
}

impl Drop for CancelGuard<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.session.lock().cancel(id);
            self.shared.waker.wake();
        }
    }
}

impl LinkShared {
    fn must_close(&self) -> Option<CloseReason> {
        if !self.closing.load(Ordering::Relaxed) {
            return None;
        }
        self.session.lock().is_idle().then_some(CloseReason::Here)
    }

    fn note_going_away(&self) {
        self.going_away.store(true, Ordering::Relaxed);
    }

    fn note_silence(&self, silent: Duration) {
        self.silent_ms.store(silent.as_millis() as u64, Ordering::Relaxed);
    }

    fn close(&self, closed: CloseReason) {
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
            // The caller may have just left.
            let _ = waiter.send(Err(error));
        }
    }
}
