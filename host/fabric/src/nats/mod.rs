//! Fabric `nats`: calls over NATS servers that exist already, for those who outgrow one machine or subnet.
//!
//! | subject | who listens | what for |
//! |---|---|---|
//! | `wasmcage.FLOCK.call.CAGE.MODULE.CALLER` | every copy of CAGE, `MODULE` and `CALLER` as `*`, in queue group `CAGE` | a call of any copy |
//! | `wasmcage.FLOCK.copy.CAGE.COPY.CALLER` | that copy, `CALLER` as `*` | a call of this copy; parts, grants, cancels |
//! | `wasmcage.FLOCK.cancel.CAGE.CALLER` | every copy of CAGE | a caller left before it knew who took its call |
//! | `wasmcage.FLOCK.beat.CAGE` | every cage | heartbeats |
//! | `wasmcage.FLOCK.ask` | every copy that serves | a cage that joins asks for heartbeats |
//! | `_INBOX.ID.LANE.NUMBER` | the caller, `NUMBER` as `*` | answers to a call |
//! | `_INBOX.ID.probe.COPY` | the caller, `COPY` as `*` | the server's word that nobody listens for a copy |
//!
//! What is in the messages is in `packet.rs`. The module is a part of the subject, so that the queue groups are per cage
//! and module: a listener may be in the group for some modules only, and the server's permissions may name modules.
//!
//! A call is published (`caller.rs`) and answered by whichever copy got it (`callee.rs`). A copy that works for longer than
//! a moment says that it has the call, so that its death can be told from its slowness. No responders: the call surely
//! did not run. Members are known by heartbeats (`members.rs`).
//!
//! # What differs from fabric `lan`
//!
//! - **Who calls is what the server vouches for.** A caller's name is the last token of the subject that it publishes on. A
//!   server without permissions believes everyone. To bind names, give each cage a user that may publish
//!   `wasmcage.FLOCK.call.*.*.NAME`, `wasmcage.FLOCK.copy.*.*.NAME`, `wasmcage.FLOCK.cancel.*.NAME`,
//!   `wasmcage.FLOCK.beat.NAME`, `wasmcage.FLOCK.ask` and its callers' inboxes, and may subscribe `wasmcage.FLOCK.call.NAME.>`,
//!   `wasmcage.FLOCK.copy.NAME.>`, `wasmcage.FLOCK.cancel.NAME.>`, `wasmcage.FLOCK.beat.*`, `wasmcage.FLOCK.ask` and
//!   inboxes of its own (key `inbox`): whoever can read or write another's inbox reads or makes its answers.
//! - **A dead copy** is noticed within half a second when the server has closed its connection, and by its missing
//!   heartbeats after 2.5 s otherwise; it is avoided after 1.2 s. A call that nobody said to have taken within 2.5 s is
//!   lost, too. One that may run twice is tried elsewhere after `attempt_timeout_ms`.
//! - **A caller that dies** ends its calls at their deadlines only.
//! - **While the server is away** calls wait for it for up to a second, then fail as `Unreachable`. Calls in flight when the
//!   connection breaks are lost: an answer may have been published meanwhile. It is connected again for ever.
//! - **A draining copy** stays for a quarter of a second, to send late callers elsewhere.

mod body;
mod callee;
mod caller;
mod config;
mod events;
mod members;
mod packet;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_nats::{Client, Event, StatusCode, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::caller::{Lane, Pending, Told};
pub use self::config::NatsConfig;
use self::events::Events;
use self::members::{Heard as Beat, Members, SILENCE_MAX};
use self::packet::{Content, MESSAGE_BYTES_MAX, Packet, Subjects, last_token};
use super::fabric::{CopyId, Fabric, Limits, Local, Service};
use super::places::Places;
use wasmcage_core::call::{Call, Member, Remote};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_core::task::Tasks;
use wasmcage_protocol::InterfaceError;

/// How often calls in flight are looked after.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// Messages to be published that nobody waits for. Beyond them callees whose callers left run on to their deadlines.
const OUTBOX_MAX: usize = 4_096;
/// Refusals of the server that nobody has read yet.
const REFUSALS_MAX: usize = 1_024;
/// A call that has waited for so long is worth asking whether its copy is there.
const PROBED_AFTER: Duration = Duration::from_millis(250);

/// A cage on NATS. Dropping it ends its connection without a farewell.
pub struct Nats {
    shared: Arc<Shared>,
    _end: DropGuard,
}

/// What the tasks of one cage share.
struct Shared {
    local: Local,
    limits: Limits,
    client: Client,
    subjects: Subjects,
    servers: String,
    /// Prefix of the subjects that answers come on.
    inbox: String,
    /// Times that the connection was lost, and whether it is there.
    link: watch::Receiver<Link>,
    cages: Arc<Places<String>>,
    pending: Mutex<HashMap<u64, Pending>>,
    next_number: AtomicU64,
    /// Those that no call uses now.
    lanes: Mutex<Vec<Lane>>,
    next_lane: AtomicU64,
    outbox: mpsc::Sender<Outgoing>,
    members: Mutex<Members>,
    /// Of this copy, while it is advertised.
    addresses: Mutex<Vec<String>>,
    events: Arc<Events>,
    attempt_timeout: Duration,
    /// Watches everything that is spawned.
    tasks: Tasks,
    end: CancellationToken,
}

/// What the outbox publishes.
struct Outgoing {
    subject: String,
    reply: Option<String>,
    payload: Bytes,
}

/// What `Shared::listen` reads.
struct Heard {
    probes: Subscriber,
    beats: Subscriber,
    refused: mpsc::Receiver<Refusal>,
    /// Of the connection, as far as its calls were told.
    losses: u64,
}

/// A subject that the server does not let this cage use.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refusal {
    Publish(String),
    Subscribe(String),
}

impl Refusal {
    /// From the server's words, such as `Permissions Violation for Publish to "a.b"`.
    fn read(error: &str) -> Option<Self> {
        let (what, rest) = error.split_once('"')?;
        let (subject, _) = rest.split_once('"')?;
        let what = what.to_ascii_lowercase();
        if what.contains("violation for publish to") {
            Some(Self::Publish(subject.to_owned()))
        } else if what.contains("violation for subscription to") {
            Some(Self::Subscribe(subject.to_owned()))
        } else {
            None
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Link {
    connected: bool,
    losses: u64,
}

impl Nats {
    /// Begins to connect, and goes on for ever: this does not wait for a server.
    ///
    /// # Errors
    /// A file of the configuration cannot be used.
    pub async fn start(
        config: &NatsConfig,
        interface: Arc<str>,
        local: Local,
        limits: Limits,
        tasks: Tasks,
    ) -> Result<Self, InterfaceError> {
        let events = Arc::new(Events::new(local.cage.clone(), interface.clone(), config.servers()));
        let (link_tx, link) = watch::channel(Link::default());
        let options = config.options(&interface, format!("wasmcage {}/{} {}", local.flock, local.cage, local.copy))?;
        let (refusals, refused) = mpsc::channel(REFUSALS_MAX);
        let options = options.event_callback(told(events.clone(), link_tx, refusals));
        let failed = |text: &str, source| InterfaceError::Setup {
            interface: interface.to_string(),
            text: text.to_owned(),
            source: Some(source),
        };
        let client = options.connect(config.servers.clone()).await;
        let client = client.map_err(|source| failed("cannot begin to connect to NATS", Box::new(source)))?;
        let (outbox, outgoing) = mpsc::channel(OUTBOX_MAX);
        let shared = Arc::new(Shared {
            subjects: Subjects::new(&local.flock),
            servers: config.servers(),
            inbox: client.new_inbox(),
            link,
            cages: Places::new(limits.calls_per_cage_max),
            pending: Mutex::default(),
            next_number: AtomicU64::new(1),
            lanes: Mutex::default(),
            next_lane: AtomicU64::new(1),
            outbox,
            members: Mutex::default(),
            addresses: Mutex::default(),
            events,
            attempt_timeout: config.attempt_timeout,
            tasks,
            end: CancellationToken::new(),
            local,
            limits,
            client,
        });
        let subscribe = async |subject: String| shared.client.subscribe(subject).await;
        let probes = subscribe(format!("{}.probe.*", shared.inbox)).await;
        let beats = subscribe(shared.subjects.beat("*")).await;
        let (Ok(probes), Ok(beats)) = (probes, beats) else {
            return Err(failed("cannot subscribe to NATS", "its client ended".into()));
        };
        let heard = Arc::new(tokio::sync::Mutex::new(Heard { probes, beats, refused, losses: 0 }));
        let listen = {
            let shared = shared.clone();
            move || shared.clone().listen(heard.clone())
        };
        tokio::spawn(shared.tasks.keep_running("nats: heartbeats", listen));
        let outgoing = Arc::new(tokio::sync::Mutex::new(outgoing));
        let publish = {
            let shared = shared.clone();
            move || shared.clone().publish_all(outgoing.clone())
        };
        tokio::spawn(shared.tasks.keep_running("nats: outbox", publish));
        Ok(Self { _end: shared.end.clone().drop_guard(), shared })
    }
}

/// What to do with events of the client.
fn told(
    events: Arc<Events>,
    link: watch::Sender<Link>,
    refusals: mpsc::Sender<Refusal>,
) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + 'static {
    move |event| {
        match event {
            Event::Connected => {
                link.send_modify(|link| link.connected = true);
                events.connected();
            }
            Event::Disconnected => {
                link.send_modify(|link| *link = Link { connected: false, losses: link.losses + 1 });
                events.disconnected();
            }
            Event::SlowConsumer(_) => events.messages_dropped(),
            Event::ServerError(error) => {
                events.refused_by_server(&error);
                // What is left out costs its callers the time until they give up.
                let _ = Refusal::read(&error.to_string()).map(|refusal| refusals.try_send(refusal));
            }
            Event::ClientError(error) => events.unreachable(&error),
            Event::LameDuckMode | Event::Draining | Event::Closed => {}
        }
        std::future::ready(())
    }
}

#[async_trait]
impl Remote for Nats {
    async fn call(&self, call: Call, copy: Option<&str>) -> Result<Payload, DispatchError> {
        caller::call(&self.shared, call, copy).await
    }

    fn copies(&self, cage: &str) -> Vec<String> {
        self.shared.members.lock().copies(cage)
    }

    fn members(&self) -> Vec<Member> {
        let shared = &self.shared;
        shared.members.lock().list(Instant::now(), |cage, copy| shared.subjects.copy(cage, copy, "*"))
    }
}

#[async_trait]
impl Fabric for Nats {
    async fn advertise(&self, service: Arc<dyn Service>, drain: Drain) -> Result<(), InterfaceError> {
        callee::advertise(&self.shared, service, drain).await
    }

    fn addresses(&self) -> Vec<String> {
        match self.shared.link.borrow().connected {
            true => self.shared.addresses.lock().clone(),
            false => Vec::new(),
        }
    }
}

impl Shared {
    fn packet(&self, number: u64, content: Content) -> Bytes {
        Packet { copy: self.local.copy, number, content }.encode()
    }

    /// Of one message, with what is around its bytes.
    fn message_bytes_max(&self) -> usize {
        self.client.max_payload().min(MESSAGE_BYTES_MAX)
    }

    /// Has published what nobody waits for, and what may be left out when there is too much of it.
    fn post(&self, subject: String, reply: Option<String>, number: u64, content: Content) {
        let payload = self.packet(number, content);
        let _ = self.outbox.try_send(Outgoing { subject, reply, payload });
    }

    /// Reads heartbeats, and looks after the calls in flight.
    async fn listen(self: Arc<Self>, heard: Arc<tokio::sync::Mutex<Heard>>) {
        let mut heard = heard.lock().await;
        let Heard { probes, beats, refused, losses } = &mut *heard;
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut link = self.link.clone();
        loop {
            tokio::select! {
                biased;
                () = self.end.cancelled() => return,
                Ok(()) = link.changed() => {
                    let now = *link.borrow_and_update();
                    if std::mem::replace(losses, now.losses) != now.losses {
                        self.lose_all("the connection to NATS broke");
                    }
                    if now.connected {
                        self.members.lock().excuse(Instant::now());
                        self.post(self.subjects.ask(), None, 0, Content::Probe);
                    }
                }
                Some(refusal) = refused.recv() => self.refuse(&refusal),
                Some(message) = probes.next() => self.probe_answered(&message),
                Some(message) = beats.next() => self.beat_came(message),
                _ = sweep.tick() => self.sweep(),
                else => return,
            }
        }
    }

    fn probe_answered(&self, message: &async_nats::Message) {
        // Only the server answers probes.
        if message.status != Some(StatusCode::NO_RESPONDERS) {
            return;
        }
        if let Some(copy) = CopyId::parse(last_token(&message.subject)) {
            let _ = self.members.lock().died(copy);
            self.lose_calls_of(copy);
        }
    }

    fn beat_came(&self, message: async_nats::Message) {
        let cage = last_token(&message.subject);
        let packet = match Packet::decode(message.payload) {
            Ok(packet) => packet,
            Err(error) => return self.events.malformed(&message.subject, &error),
        };
        let Content::Beat { state, node, version } = packet.content else { return };
        if packet.copy == self.local.copy || !wasmcage_config::is_name(cage) {
            return;
        }
        let heard = self.members.lock().beat(Instant::now(), cage, packet.copy, state, node, version);
        match heard {
            Beat::Gone => self.give_back_calls_of(packet.copy),
            Beat::New | Beat::Known | Beat::Ignored => {}
        }
    }

    fn sweep(&self) {
        let now = Instant::now();
        // Nothing can be heard without a server.
        if !self.link.borrow().connected {
            return;
        }
        let dead = self.members.lock().sweep(now);
        dead.into_iter().for_each(|copy| self.lose_calls_of(copy));
        let mut asked = HashMap::new();
        for call in self.pending.lock().values() {
            match (call.copy, now.saturating_duration_since(call.since)) {
                (None, waited) if waited > SILENCE_MAX => call.tell(Told::Lost("no copy said that it took it")),
                (Some(copy), waited) if waited > PROBED_AFTER => drop(asked.insert(copy, call.cage.clone())),
                (None | Some(_), _) => {}
            }
        }
        for (copy, cage) in asked {
            let subject = self.subjects.copy(&cage, copy, &self.local.cage);
            self.post(subject, Some(format!("{}.probe.{copy}", self.inbox)), 0, Content::Probe);
        }
    }

    fn lose_calls_of(&self, copy: CopyId) {
        let pending = self.pending.lock();
        let calls = pending.values().filter(|call| call.copy == Some(copy));
        calls.for_each(|call| call.tell(Told::Lost("the copy is gone")));
    }

    /// The server took no call on that subject, or gives nobody what comes on it.
    fn refuse(&self, refusal: &Refusal) {
        let pending = self.pending.lock();
        match refusal {
            Refusal::Publish(subject) => pending
                .values()
                .filter(|call| call.subject == *subject)
                .for_each(|call| call.tell(Told::NotPermitted("publish this call: see its permissions"))),
            Refusal::Subscribe(subject) if subject.starts_with(&self.inbox) => pending
                .values()
                .for_each(|call| call.tell(Told::NotPermitted("subscribe to its inbox: see its permissions"))),
            Refusal::Subscribe(_) => {}
        }
    }

    /// It has answered all that it took.
    fn give_back_calls_of(&self, copy: CopyId) {
        let pending = self.pending.lock();
        pending.values().filter(|call| call.copy == Some(copy)).for_each(|call| call.tell(Told::NotRun(copy)));
    }

    fn lose_all(&self, why: &'static str) {
        self.pending.lock().values().for_each(|call| call.tell(Told::Lost(why)));
    }

    /// The outbox: a future that is dropped cannot wait for the client itself.
    async fn publish_all(self: Arc<Self>, outgoing: Arc<tokio::sync::Mutex<mpsc::Receiver<Outgoing>>>) {
        let publishing = async {
            let mut outgoing = outgoing.lock().await;
            while let Some(Outgoing { subject, reply, payload }) = outgoing.recv().await {
                let result = match reply {
                    Some(reply) => self.client.publish_with_reply(subject, reply, payload).await,
                    None => self.client.publish(subject, payload).await,
                };
                if result.is_err() {
                    // The client has ended.
                    return;
                }
            }
        };
        tokio::select! {
            () = self.end.cancelled() => {}
            () = publishing => {}
        }
    }
}
