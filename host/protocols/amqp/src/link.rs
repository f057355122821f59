//! A connection to a broker that is kept: made again with growing pauses when it is lost. One for publishing and one for
//! consuming, for each broker and cage; interfaces and resources share them, each with channels of its own.

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
use super::guard::{Mark, Refusal};
use super::stream;
use super::topology::{Exchange, declare_exchanges};
use super::value::FRAME_BYTES_MAX;
use wasmcage_core::backoff::Backoff;
use wasmcage_core::request::Deadline;
use wasmcage_core::task::catch_panic_async;

/// Pauses between attempts begin with the first and double up to the last, each with up to half of it by chance.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);
/// For the whole greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Between looks at a connection whose end nobody told.
const LOOK: Duration = Duration::from_millis(250);
/// Replies of a broker that will say the same to the next attempt: access refused, and not allowed, such as a virtual host
/// that is not there.
const FINAL_REPLIES: [u16; 2] = [403, 530];

/// What a connection is for. A broker that has no room blocks those that publish; consuming goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    Publish,
    Consume,
}

/// One connection while it lasts.
pub(super) struct Live {
    connection: Connection,
    mark: Arc<Mark>,
    /// Why the broker takes no messages now.
    blocked: watch::Sender<Option<String>>,
    ended: CancellationToken,
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) struct Absence {
    pub(super) why: String,
    /// The broker has said no, as it will to the next attempt: nobody who has a deadline waits for that.
    is_final: bool,
    /// The first attempt is still under way.
    is_new: bool,
}

/// The connection, or why there is none.
pub(super) type State = Result<Arc<Live>, Absence>;

/// Kept as long as somebody holds it.
pub(super) struct Link {
    state: watch::Receiver<State>,
    _kept: AbortOnDropHandle<()>,
}

type Known = Mutex<HashMap<(PathBuf, String, Purpose), Weak<Link>>>;
static LINKS: LazyLock<Known> = LazyLock::new(Known::default);

impl Link {
    /// The cage's connection to that broker for that purpose; made by a task of `runtime`.
    pub(super) fn of(cage_directory: &Path, broker: &Broker, purpose: Purpose, runtime: &Handle) -> Arc<Self> {
        let key = (cage_directory.to_owned(), broker.key(), purpose);
        let mut links = LINKS.lock();
        links.retain(|_, link| link.strong_count() > 0);
        if let Some(link) = links.get(&key).and_then(Weak::upgrade) {
            return link;
        }
        let cage = cage_directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let not_yet = Absence { why: "not connected yet".into(), is_final: false, is_new: true };
        let (state_tx, state) = watch::channel(Err(not_yet));
        let kept = runtime.spawn(keep(broker.clone(), purpose, cage, state_tx));
        let link = Arc::new(Self { state, _kept: AbortOnDropHandle::new(kept) });
        links.insert(key, Arc::downgrade(&link));
        link
    }

    /// The connection, as soon as there is one.
    pub(super) async fn live(&self) -> Arc<Live> {
        loop {
            if let Ok(live) = self.wait_for(|state| state.as_ref().is_ok_and(|live| live.is_up())).await {
                return live;
            }
        }
    }

    /// The connection, as soon as there is one, or why there will be none.
    async fn live_or_refused(&self) -> State {
        self.wait_for(|state| state.as_ref().map_or_else(|absence| absence.is_final, |live| live.is_up())).await
    }

    async fn wait_for(&self, fits: impl FnMut(&State) -> bool) -> State {
        let mut state = self.state.clone();
        let found = state.wait_for(fits).await.map(|state| state.clone());
        match found {
            Ok(state) => state,
            // The keeper runs as long as `self`; only the end of its runtime ends it.
            Err(_) => std::future::pending().await,
        }
    }

    /// The connection as it is now.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn current(&self) -> Result<Arc<Live>, String> {
        self.state.borrow().clone().map_err(|absence| absence.why)
    }

    /// Resolves when this connection is lost, and says why.
    pub(super) async fn lost(&self, live: &Arc<Live>) -> String {
        let lost = self.wait_for(|state| !state.as_ref().is_ok_and(|known| Arc::ptr_eq(known, live)));
        lost.await.map_or_else(|absence| absence.why, |_| "the connection was made anew".into())
    }

    /// What keeps it from working now, for an operator; none while the first attempt is under way.
    pub(super) fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            Ok(live) => live.blocked(),
            Err(absence) if absence.is_new => None,
            Err(absence) => Some(absence.why.clone()),
        }
    }

    /// Tells each change of `trouble`, and perhaps more.
    pub(super) fn changes(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Bytes of one frame, as the broker takes them now.
    pub(super) fn frame_bytes_max(&self) -> usize {
        self.state.borrow().as_ref().map_or(FRAME_BYTES_MAX, |live| live.frame_bytes_max())
    }

    /// A channel whose messages are confirmed, with these exchanges declared.
    ///
    /// # Errors
    /// Why there is none at the deadline.
    pub(super) async fn publishing_channel(
        &self,
        exchanges: &[Exchange],
        deadline: Deadline,
    ) -> Result<(Channel, Arc<Live>), String> {
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

    /// A channel, waiting for the connection if need be, and if there is hope.
    ///
    /// # Errors
    /// Why there is none at the deadline; at once, when the broker does not let this user in.
    pub(super) async fn channel(&self, deadline: Deadline) -> Result<(Channel, Arc<Live>), String> {
        let made = async {
            loop {
                let live = self.live_or_refused().await.map_err(|absence| absence.why)?;
                match live.connection.create_channel().await {
                    Ok(channel) => return Ok((channel, live)),
                    Err(error) if live.is_up() => return Err(error.to_string()),
                    // It was lost in this moment.
                    Err(_) => tokio::time::sleep(PAUSE_FIRST).await,
                }
            }
        };
        match tokio::time::timeout_at(deadline.instant(), made).await {
            Ok(made) => made,
            Err(_) => Err(match &*self.state.borrow() {
                Err(absence) => absence.why.clone(),
                Ok(live) => live.blocked().unwrap_or_else(|| "the broker does not answer".to_owned()),
            }),
        }
    }
}

impl Live {
    pub(super) fn is_up(&self) -> bool {
        self.connection.status().connected() && !self.ended.is_cancelled()
    }

    /// Whether a channel of this connection is of use.
    pub(super) fn carries(&self, channel: &Channel) -> bool {
        self.is_up() && channel.status().connected()
    }

    /// Why the message with these properties was not let through; none if it was.
    pub(super) fn refusal(&self, properties: &BasicProperties) -> Option<Refusal> {
        self.mark.refusal(properties)
    }

    /// Of one frame, as was agreed with the broker.
    pub(super) fn frame_bytes_max(&self) -> usize {
        let agreed = self.connection.configuration().frame_max();
        usize::try_from(agreed).unwrap_or(FRAME_BYTES_MAX).min(FRAME_BYTES_MAX)
    }

    /// That the broker takes no messages now, and why.
    pub(super) fn blocked(&self) -> Option<String> {
        self.blocked.borrow().as_ref().map(|why| format!("the broker takes no messages now: {why}"))
    }

    /// Resolves when the broker takes messages, or the connection is lost. What is sent before, the client library keeps.
    pub(super) async fn unblocked(&self) {
        // The sender is `self`'s.
        let _ = self.blocked.subscribe().wait_for(Option::is_none).await;
    }
}

/// Ends what the library may still be waiting for.
impl Drop for Live {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

/// Goes on whatever happens: everybody who uses the connection waits for it.
async fn keep(broker: Broker, purpose: Purpose, cage: String, state: watch::Sender<State>) {
    let events = LinkEvents::new(cage, broker.to_string(), purpose);
    loop {
        if let Err(panic) = catch_panic_async(keep_connected(&broker, purpose, &events, &state)).await {
            events.panicked(&panic);
            let why = format!("the host {panic}");
            state.send_modify(|state| *state = Err(Absence { why, is_final: false, is_new: false }));
            tokio::time::sleep(PAUSE_LONGEST).await;
        }
    }
}

async fn keep_connected(broker: &Broker, purpose: Purpose, events: &LinkEvents, state: &watch::Sender<State>) {
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
                state.send_modify(|state| *state = Err(Absence { why, is_final: false, is_new: false }));
                live.blocked.send_replace(None);
            }
            Err(absence) => {
                events.unreachable(&absence.why);
                state.send_modify(|state| *state = Err(absence));
            }
        }
        tokio::time::sleep(backoff.pause().mul_f64(1.0 + fastrand::f64() / 2.0)).await;
    }
}

async fn connect(broker: &Broker, purpose: Purpose, events: &LinkEvents) -> Result<Live, Absence> {
    let absence = |why: String, is_final: bool| Absence { why, is_final, is_new: false };
    let mark = Mark::new().map_err(|error| absence(error.to_string(), false))?;
    let (mark, ended) = (Arc::new(mark), CancellationToken::new());
    let stream = {
        let (broker, mark, ended) = (broker.clone(), mark.clone(), ended.clone());
        async move |_, _| Ok(AsyncTcpStream::Plain(stream::connect(&broker, mark.clone(), ended.clone()).await?))
    };
    let name = format!("{} {purpose:?}", events.cage);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let connected = Connection::connector(broker.uri(), stream::runtime(), stream, properties);
    match tokio::time::timeout(GREETING_TIMEOUT, connected).await {
        Ok(Ok(connection)) => Ok(Live { connection, mark, blocked: watch::Sender::new(None), ended }),
        Ok(Err(error)) => {
            let is_final = match error.kind() {
                ErrorKind::ProtocolError(error) => FINAL_REPLIES.contains(&error.get_id()),
                _ => false,
            };
            Err(absence(error.to_string(), is_final))
        }
        Err(_) => {
            ended.cancel();
            Err(absence("the broker does not answer".to_owned(), false))
        }
    }
}

/// Resolves when the connection is lost, and says why.
async fn watch_over(live: &Live, events: &LinkEvents, state: &watch::Sender<State>) -> String {
    let mut told = live.connection.events_listener();
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            event = told.next() => match event {
                Some(Event::ConnectionBlocked(why)) => {
                    events.blocked(&why);
                    live.blocked.send_replace(Some(why));
                    // Whoever tells of troubles looks again.
                    state.send_modify(|_| ());
                }
                Some(Event::ConnectionUnblocked) => {
                    live.blocked.send_replace(None);
                    events.unblocked();
                    state.send_modify(|_| ());
                }
                Some(Event::Error(error)) if !live.connection.status().connected() => return error.to_string(),
                // An error of one channel is its user's; other events are of no interest.
                Some(_) => {}
                None => return "closed".to_owned(),
            },
            _ = looks.tick() => {
                if !live.connection.status().connected() {
                    return "closed".to_owned();
                }
            }
        }
    }
}
