//! The connections to brokers. Each cage has two for each broker, one to publish and one to consume; its interfaces and
//! resources share them, each with channels of its own. A lost connection is made again, with growing pauses.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::ConfirmSelectOptions;
use lapin::{AsyncTcpStream, BasicProperties, Channel, Connection, ConnectionProperties, ErrorKind, Event};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::broker::Broker;
use super::events::LinkEvents;
use super::guard::{Mark, WithheldReason};
use super::stream;
use super::topology::{ExchangeDeclaration, declare_exchanges};
use super::value::FRAME_BYTES_MAX;
use wasmcage_core::backoff::Backoff;
use wasmcage_core::request::Deadline;
use wasmcage_core::task::catch_panic_async;

/// The pause between attempts to connect doubles from the first to the longest; up to half of it is added at random.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);
/// The time for TCP, TLS and AMQP's handshake together.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a connection's status is polled: the library does not report the end of every connection as an event.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The codes by which a broker refuses a connection for good: access refused, and not allowed, such as for a virtual
/// host that does not exist.
const FINAL_REPLIES: [u16; 2] = [403, 530];

/// The use of a connection. A broker without room blocks the connections that publish; the others go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    Publish,
    Consume,
}

/// One connection, from its handshake until it is lost.
pub(super) struct LiveConnection {
    connection: Connection,
    mark: Arc<Mark>,
    /// Why the broker accepts no messages now; none if it does.
    blocked: watch::Sender<Option<String>>,
    ended: CancellationToken,
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) struct Outage {
    pub(super) why: String,
    /// The broker has refused the connection for good, so there is no use in waiting for the next attempt.
    is_final: bool,
    /// The first attempt is still in progress.
    is_new: bool,
}

/// The connection, or why there is none.
pub(super) type LinkState = Result<Arc<LiveConnection>, Outage>;

/// A cage's connection to a broker for one purpose. It is made again when it is lost, until the last `Arc` of it is
/// dropped.
pub(super) struct BrokerLink {
    state: watch::Receiver<LinkState>,
    _keeper: AbortOnDropHandle<()>,
}

type LinkTable = Mutex<HashMap<(PathBuf, String, Purpose), Weak<BrokerLink>>>;
static LINKS: LazyLock<LinkTable> = LazyLock::new(LinkTable::default);

impl BrokerLink {
    /// The cage's link to this broker for this purpose, which all callers share. A new one connects on `runtime`.
    pub(super) fn shared(cage_directory: &Path, broker: &Broker, purpose: Purpose, runtime: &Handle) -> Arc<Self> {
        let key = (cage_directory.to_owned(), broker.key(), purpose);
        let mut links = LINKS.lock();
        links.retain(|_, link| link.strong_count() > 0);
        if let Some(link) = links.get(&key).and_then(Weak::upgrade) {
            return link;
        }
        let cage = cage_directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let not_yet = Outage { why: "not connected yet".into(), is_final: false, is_new: true };
        let (state_tx, state) = watch::channel(Err(not_yet));
        let keeper = runtime.spawn(keep(broker.clone(), purpose, cage, state_tx));
        let link = Arc::new(Self { state, _keeper: AbortOnDropHandle::new(keeper) });
        links.insert(key, Arc::downgrade(&link));
        link
    }

    /// Waits until there is a connection.
    pub(super) async fn live(&self) -> Arc<LiveConnection> {
        loop {
            if let Ok(live) = self.wait_for(|state| state.as_ref().is_ok_and(|live| live.is_up())).await {
                return live;
            }
        }
    }

    /// Waits until there is a connection, or the broker refuses it for good.
    async fn live_or_refused(&self) -> LinkState {
        self.wait_for(|state| state.as_ref().map_or_else(|outage| outage.is_final, |live| live.is_up())).await
    }

    async fn wait_for(&self, fits: impl FnMut(&LinkState) -> bool) -> LinkState {
        let mut state = self.state.clone();
        let found = state.wait_for(fits).await.map(|state| state.clone());
        match found {
            Ok(state) => state,
            // The keeper runs as long as `self` exists, unless its runtime is shut down.
            Err(_) => std::future::pending().await,
        }
    }

    /// The connection as it is now.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn current(&self) -> Result<Arc<LiveConnection>, String> {
        self.state.borrow().clone().map_err(|outage| outage.why)
    }

    /// Waits until this connection is lost, and returns why.
    pub(super) async fn lost(&self, live: &Arc<LiveConnection>) -> String {
        let lost = self.wait_for(|state| !state.as_ref().is_ok_and(|known| Arc::ptr_eq(known, live)));
        lost.await.map_or_else(|outage| outage.why, |_| "the connection was made anew".into())
    }

    /// Why nothing can be sent or received now, for the operator; none while the first attempt is in progress.
    pub(super) fn problem(&self) -> Option<String> {
        match &*self.state.borrow() {
            Ok(live) => live.blocked(),
            Err(outage) if outage.is_new => None,
            Err(outage) => Some(outage.why.clone()),
        }
    }

    /// Notifies of each change of `problem`, and of others.
    pub(super) fn changes(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// The most bytes of one frame, as agreed with the broker; the library's own limit while there is no connection.
    pub(super) fn frame_bytes_max(&self) -> usize {
        self.state.borrow().as_ref().map_or(FRAME_BYTES_MAX, |live| live.frame_bytes_max())
    }

    /// Opens a channel in confirm mode, with these exchanges declared on it.
    ///
    /// # Errors
    /// Why there is no such channel at the deadline.
    pub(super) async fn publishing_channel(
        &self,
        exchanges: &[ExchangeDeclaration],
        deadline: Deadline,
    ) -> Result<(Channel, Arc<LiveConnection>), String> {
        let (channel, live) = self.channel(deadline).await?;
        let ready = async {
            declare_exchanges(exchanges, &channel).await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(|error| error.to_string())
        };
        match tokio::time::timeout_at(deadline.instant(), ready).await {
            Ok(ready) => ready.map(|()| (channel, live)),
            Err(_) => Err("the broker does not answer".to_owned()),
        }
    }

    /// Opens a channel, once there is a connection.
    ///
    /// # Errors
    /// Why there is none at the deadline; at once, if the broker refuses the connection for good.
    pub(super) async fn channel(&self, deadline: Deadline) -> Result<(Channel, Arc<LiveConnection>), String> {
        let made = async {
            loop {
                let live = self.live_or_refused().await.map_err(|outage| outage.why)?;
                match live.connection.create_channel().await {
                    Ok(channel) => return Ok((channel, live)),
                    Err(error) if live.is_up() => return Err(error.to_string()),
                    // The connection was lost just now.
                    Err(_) => tokio::time::sleep(PAUSE_FIRST).await,
                }
            }
        };
        match tokio::time::timeout_at(deadline.instant(), made).await {
            Ok(made) => made,
            Err(_) => Err(match &*self.state.borrow() {
                Err(outage) => outage.why.clone(),
                Ok(live) => live.blocked().unwrap_or_else(|| "the broker does not answer".to_owned()),
            }),
        }
    }
}

impl LiveConnection {
    pub(super) fn is_up(&self) -> bool {
        self.connection.status().connected() && !self.ended.is_cancelled()
    }

    /// Returns whether a channel of this connection can be used.
    pub(super) fn is_open(&self, channel: &Channel) -> bool {
        self.is_up() && channel.status().connected()
    }

    /// Why the guard withheld the message with these properties; none if it did not.
    pub(super) fn withheld_reason(&self, properties: &BasicProperties) -> Option<WithheldReason> {
        self.mark.withheld_reason(properties)
    }

    /// The most bytes of one frame, as agreed with the broker.
    pub(super) fn frame_bytes_max(&self) -> usize {
        let agreed = self.connection.configuration().frame_max();
        usize::try_from(agreed).unwrap_or(FRAME_BYTES_MAX).min(FRAME_BYTES_MAX)
    }

    /// A text that says why the broker accepts no messages now; none if it does.
    pub(super) fn blocked(&self) -> Option<String> {
        self.blocked.borrow().as_ref().map(|why| format!("the broker takes no messages now: {why}"))
    }

    /// Waits until the broker accepts messages or the connection is lost. The client library would keep whatever is
    /// sent before in memory.
    pub(super) async fn unblocked(&self) {
        // This cannot fail: `self` holds the sender.
        let _ = self.blocked.subscribe().wait_for(Option::is_none).await;
    }
}

/// Ends the library's tasks, which may still be reading from the connection.
impl Drop for LiveConnection {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

/// Connects for ever, and starts again after a panic: all users of the link depend on this task.
async fn keep(broker: Broker, purpose: Purpose, cage: String, state: watch::Sender<LinkState>) {
    let events = LinkEvents::new(cage, broker.to_string(), purpose);
    loop {
        if let Err(panic) = catch_panic_async(keep_connected(&broker, purpose, &events, &state)).await {
            events.panicked(&panic);
            let why = format!("the host {panic}");
            state.send_modify(|state| *state = Err(Outage { why, is_final: false, is_new: false }));
            tokio::time::sleep(PAUSE_LONGEST).await;
        }
    }
}

async fn keep_connected(broker: &Broker, purpose: Purpose, events: &LinkEvents, state: &watch::Sender<LinkState>) {
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_LONGEST);
    loop {
        match connect(broker, purpose, events).await {
            Ok(live) => {
                backoff.reset();
                events.connected();
                let live = Arc::new(live);
                state.send_modify(|state| *state = Ok(live.clone()));
                let why = watch_over(&live, events, state).await;
                events.lost(&why);
                let why = format!("the connection was lost: {why}");
                state.send_modify(|state| *state = Err(Outage { why, is_final: false, is_new: false }));
                live.blocked.send_replace(None);
            }
            Err(outage) => {
                events.unreachable(&outage.why);
                state.send_modify(|state| *state = Err(outage));
            }
        }
        tokio::time::sleep(backoff.pause().mul_f64(1.0 + fastrand::f64() / 2.0)).await;
    }
}

async fn connect(broker: &Broker, purpose: Purpose, events: &LinkEvents) -> Result<LiveConnection, Outage> {
    let outage = |why: String, is_final: bool| Outage { why, is_final, is_new: false };
    let mark = Mark::new().map_err(|error| outage(error.to_string(), false))?;
    let (mark, ended) = (Arc::new(mark), CancellationToken::new());
    let stream = {
        let (broker, mark, ended) = (broker.clone(), mark.clone(), ended.clone());
        async move |_, _| Ok(AsyncTcpStream::Plain(stream::connect(&broker, mark.clone(), ended.clone()).await?))
    };
    let name = format!("{} {purpose:?}", events.cage);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let connected = Connection::connector(broker.uri(), stream::runtime(), stream, properties);
    match tokio::time::timeout(GREETING_TIMEOUT, connected).await {
        Ok(Ok(connection)) => Ok(LiveConnection { connection, mark, blocked: watch::Sender::new(None), ended }),
        Ok(Err(error)) => {
            let is_final = match error.kind() {
                ErrorKind::ProtocolError(error) => FINAL_REPLIES.contains(&error.get_id()),
                _ => false,
            };
            Err(outage(error.to_string(), is_final))
        }
        Err(_) => {
            ended.cancel();
            Err(outage("the broker does not answer".to_owned(), false))
        }
    }
}

/// Passes the connection's events on until it is lost, and returns why.
async fn watch_over(live: &LiveConnection, events: &LinkEvents, state: &watch::Sender<LinkState>) -> String {
    let mut connection_events = live.connection.events_listener();
    let mut polls = tokio::time::interval(POLL_INTERVAL);
    loop {
        tokio::select! {
            event = connection_events.next() => match event {
                Some(Event::ConnectionBlocked(why)) => {
                    events.blocked(&why);
                    live.blocked.send_replace(Some(why));
                    // Wakes those who report `problem`.
                    state.send_modify(|_| ());
                }
                Some(Event::ConnectionUnblocked) => {
                    live.blocked.send_replace(None);
                    events.unblocked();
                    state.send_modify(|_| ());
                }
                Some(Event::Error(error)) if !live.connection.status().connected() => return error.to_string(),
                // The error of a single channel is its user's concern; other events are of no interest.
                Some(_) => {}
                None => return "closed".to_owned(),
            },
            _ = polls.tick() => {
                if !live.connection.status().connected() {
                    return "closed".to_owned();
                }
            }
        }
    }
}
