//! Fabric `nats`: calls over existing NATS servers, for flocks that outgrow one machine or subnet.
//!
//! | subject | subscribers | purpose |
//! |---|---|---|
//! | `wasmcage.FLOCK.call.CAGE.MODULE.CALLER` | every copy of CAGE, `MODULE` and `CALLER` as `*`, in queue group `CAGE` | a call of any copy |
//! | `wasmcage.FLOCK.call.CAGE.$retried.CALLER` | the same | a retried call that CALLER hands over |
//! | `wasmcage.FLOCK.copy.CAGE.COPY.CALLER` | that copy, `CALLER` as `*` | a call of this copy; parts, grants and cancellations of its calls |
//! | `wasmcage.FLOCK.cancel.CAGE.CALLER` | every copy of CAGE | cancels a call when the caller does not know which copy took it |
//! | `wasmcage.FLOCK.beat.CAGE` | every cage | heartbeats |
//! | `wasmcage.FLOCK.ask` | every copy that serves | a cage that joins asks for heartbeats |
//! | `_INBOX.ID.LANE.NUMBER` | the caller, `NUMBER` as `*` | answers to a call |
//! | `_INBOX.ID.probe.COPY` | the caller, `COPY` as `*` | the server's reply that nobody listens for a copy |
//!
//! `packet.rs` describes the messages. The module is a part of the subject, so that the queue groups are per cage and
//! module: a listener may be in the group for some modules only, and the server's permissions may name modules.
//!
//! A call is published (`caller.rs`) and answered by the copy that got it (`callee.rs`). A copy that does not answer at
//! once acknowledges the call, so that the caller can distinguish a slow copy from a dead one. When the server reports
//! no responders, the call surely did not run. Members are known by heartbeats (`members.rs`).
//!
//! # What differs from fabric `lan`
//!
//! - **The server vouches for the caller's name**, which is the last token of the subject that it publishes on. On a server
//!   without permissions a cage can use any name. To bind names, give each cage a user that may publish
//!   `wasmcage.FLOCK.call.*.*.NAME`, `wasmcage.FLOCK.copy.*.*.NAME`, `wasmcage.FLOCK.cancel.*.NAME`,
//!   `wasmcage.FLOCK.beat.NAME`, `wasmcage.FLOCK.ask` and its callers' inboxes, and may subscribe `wasmcage.FLOCK.call.NAME.>`,
//!   `wasmcage.FLOCK.copy.NAME.>`, `wasmcage.FLOCK.cancel.NAME.>`, `wasmcage.FLOCK.beat.*`, `wasmcage.FLOCK.ask` and
//!   inboxes of its own (key `inbox`): whoever may read or write another cage's inbox can read or forge its answers.
//! - **A dead copy** is noticed within half a second when the server has closed its connection, and by its missing
//!   heartbeats after 2.5 s otherwise; it is avoided after 1.2 s. A call that no copy has acknowledged within 2.5 s is lost,
//!   too. An idempotent call is tried at another copy after `attempt_timeout_ms`.
//! - **The calls of a caller that dies** run until they end or their deadlines pass.
//! - **Without a server** calls wait for up to a second, then fail as `Unreachable`. Calls in flight when the connection
//!   breaks are lost: an answer may have been published meanwhile. Reconnecting is tried for ever.
//! - **A draining copy** stays for a quarter of a second, to refuse late calls so that they are tried elsewhere.

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

use self::caller::{AnswerSubscription, CallFailure, PendingCall};
pub use self::config::NatsConfig;
use self::events::Events;
use self::members::{BeatOutcome, Members, SILENCE_MAX};
use self::packet::{MESSAGE_BYTES_MAX, Packet, PacketContent, Subjects, last_token};
use super::fabric::{CallHandler, CallLimits, CopyId, Fabric, LocalCopy};
use super::keyed_limit::KeyedLimit;
use wasmcage_core::call::{Call, Member, Remote};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_core::task::Tasks;
use wasmcage_protocol::InterfaceError;

/// Interval at which calls in flight and silent members are checked.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// Messages in the outbox; further ones are dropped, so that a callee whose caller left may run until the deadline.
const OUTBOX_MAX: usize = 4_096;
/// Denials of the server that were not handled yet; further ones are dropped.
const DENIALS_MAX: usize = 1_024;
/// A call that has waited for this time has its copy probed.
const PROBE_AFTER: Duration = Duration::from_millis(250);

/// A cage on NATS. Dropping it closes the connection at once.
pub struct Nats {
    shared: Arc<NatsShared>,
    _end: DropGuard,
}

/// State shared by the tasks of one cage.
struct NatsShared {
    local: LocalCopy,
    limits: CallLimits,
    client: Client,
    subjects: Subjects,
    servers: String,
    /// Prefix of the subjects of answers.
    inbox: String,
    connection: watch::Receiver<ConnectionState>,
    cages: Arc<KeyedLimit<String>>,
    pending: Mutex<HashMap<u64, PendingCall>>,
    next_number: AtomicU64,
    /// Subscriptions to answers that no call uses now.
    idle_subscriptions: Mutex<Vec<AnswerSubscription>>,
    next_subscription: AtomicU64,
    outbox: mpsc::Sender<OutboxMessage>,
    members: Mutex<Members>,
    /// Addresses of this copy, while it is advertised.
    addresses: Mutex<Vec<String>>,
    events: Arc<Events>,
    attempt_timeout: Duration,
    /// Counts the panics of everything that is spawned.
    tasks: Tasks,
    end: CancellationToken,
}

/// A message that the outbox publishes.
struct OutboxMessage {
    subject: String,
    reply: Option<String>,
    payload: Bytes,
}

/// The inputs of `NatsShared::listen`.
struct ListenInputs {
    probes: Subscriber,
    beats: Subscriber,
    denied: mpsc::Receiver<DeniedSubject>,
    /// Number of lost connections whose calls have been ended.
    losses: u64,
}

/// A subject for which the server denied this cage the permission.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DeniedSubject {
    Publish(String),
    Subscribe(String),
}

impl DeniedSubject {
    /// Parses the server's error, such as `Permissions Violation for Publish to "a.b"`.
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
struct ConnectionState {
    connected: bool,
    losses: u64,
}

impl Nats {
    /// Starts to connect, and retries for ever. Does not wait for a server.
    ///
    /// # Errors
    /// A file named in the configuration cannot be used.
    pub async fn start(
        config: &NatsConfig,
        interface: Arc<str>,
        local: LocalCopy,
        limits: CallLimits,
        tasks: Tasks,
    ) -> Result<Self, InterfaceError> {
        let events = Arc::new(Events::new(local.cage.clone(), interface.clone(), config.servers()));
        let (connection_tx, connection) = watch::channel(ConnectionState::default());
        let options = config.options(&interface, format!("wasmcage {}/{} {}", local.flock, local.cage, local.copy))?;
        let (denials, denied) = mpsc::channel(DENIALS_MAX);
        let options = options.event_callback(handle_client_events(events.clone(), connection_tx, denials));
        let failed = |text: &str, source| InterfaceError::Setup {
            interface: interface.to_string(),
            text: text.to_owned(),
            source: Some(source),
        };
        let client = options.connect(config.servers.clone()).await;
        let client = client.map_err(|source| failed("cannot begin to connect to NATS", Box::new(source)))?;
        let (outbox, outgoing) = mpsc::channel(OUTBOX_MAX);
        let shared = Arc::new(NatsShared {
            subjects: Subjects::new(&local.flock),
            servers: config.servers(),
            inbox: client.new_inbox(),
            connection,
            cages: KeyedLimit::new(limits.calls_per_cage_max),
            pending: Mutex::default(),
            next_number: AtomicU64::new(1),
            idle_subscriptions: Mutex::default(),
            next_subscription: AtomicU64::new(1),
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
        let inputs = Arc::new(tokio::sync::Mutex::new(ListenInputs { probes, beats, denied, losses: 0 }));
        let listen = {
            let shared = shared.clone();
            move || shared.clone().listen(inputs.clone())
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

/// Returns the callback that handles the client's events.
fn handle_client_events(
    events: Arc<Events>,
    connection: watch::Sender<ConnectionState>,
    denials: mpsc::Sender<DeniedSubject>,
) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + 'static {
    move |event| {
        match event {
            Event::Connected => {
                connection.send_modify(|state| state.connected = true);
                events.connected();
            }
            Event::Disconnected => {
                connection.send_modify(|state| *state = ConnectionState { connected: false, losses: state.losses + 1 });
                events.disconnected();
            }
            Event::SlowConsumer(_) => events.messages_dropped(),
            Event::ServerError(error) => {
                events.refused_by_server(&error);
                // If the channel is full, the affected calls wait until their deadlines.
                let _ = DeniedSubject::read(&error.to_string()).map(|denial| denials.try_send(denial));
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
    async fn advertise(&self, handler: Arc<dyn CallHandler>, drain: Drain) -> Result<(), InterfaceError> {
        callee::advertise(&self.shared, handler, drain).await
    }

    fn addresses(&self) -> Vec<String> {
        match self.shared.connection.borrow().connected {
            true => self.shared.addresses.lock().clone(),
            false => Vec::new(),
        }
    }
}

impl NatsShared {
    fn packet(&self, number: u64, content: PacketContent) -> Bytes {
        Packet { copy: self.local.copy, number, content }.encode()
    }

    /// Returns the largest size of a packet.
    fn message_bytes_max(&self) -> usize {
        self.client.max_payload().min(MESSAGE_BYTES_MAX)
    }

    /// Gives the outbox a message for which nobody waits. It is dropped when the outbox is full.
    fn enqueue(&self, subject: String, reply: Option<String>, number: u64, content: PacketContent) {
        let payload = self.packet(number, content);
        let _ = self.outbox.try_send(OutboxMessage { subject, reply, payload });
    }

    /// Handles heartbeats and denials, and ends calls in flight that cannot be answered any more.
    async fn listen(self: Arc<Self>, inputs: Arc<tokio::sync::Mutex<ListenInputs>>) {
        let mut inputs = inputs.lock().await;
        let ListenInputs { probes, beats, denied, losses } = &mut *inputs;
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connection = self.connection.clone();
        loop {
            tokio::select! {
                biased;
                () = self.end.cancelled() => return,
                Ok(()) = connection.changed() => {
                    let now = *connection.borrow_and_update();
                    if std::mem::replace(losses, now.losses) != now.losses {
                        self.lose_all("the connection to NATS broke");
                    }
                    if now.connected {
                        self.members.lock().reset_silence(Instant::now());
                        self.enqueue(self.subjects.ask(), None, 0, PacketContent::Probe);
                    }
                }
                Some(denial) = denied.recv() => self.fail_denied_calls(&denial),
                Some(message) = probes.next() => self.probe_failed(&message),
                Some(message) = beats.next() => self.receive_beat(message),
                _ = sweep.tick() => self.sweep(),
                else => return,
            }
        }
    }

    fn probe_failed(&self, message: &async_nats::Message) {
        // Only the server answers probes.
        if message.status != Some(StatusCode::NO_RESPONDERS) {
            return;
        }
        if let Some(copy) = CopyId::parse(last_token(&message.subject)) {
            let _ = self.members.lock().mark_dead(copy);
            self.lose_calls_of(copy);
        }
    }

    fn receive_beat(&self, message: async_nats::Message) {
        let cage = last_token(&message.subject);
        let packet = match Packet::decode(message.payload) {
            Ok(packet) => packet,
            Err(error) => return self.events.malformed(&message.subject, &error),
        };
        let PacketContent::Beat { state, node, version } = packet.content else { return };
        if packet.copy == self.local.copy || !wasmcage_config::is_name(cage) {
            return;
        }
        let outcome = self.members.lock().record_beat(Instant::now(), cage, packet.copy, state, node, version);
        match outcome {
            BeatOutcome::Gone => self.fail_unrun_calls_of(packet.copy),
            BeatOutcome::New | BeatOutcome::Known | BeatOutcome::Ignored => {}
        }
    }

    fn sweep(&self) {
        let now = Instant::now();
        // Without a server all members are silent.
        if !self.connection.borrow().connected {
            return;
        }
        let dead = self.members.lock().sweep(now);
        dead.into_iter().for_each(|copy| self.lose_calls_of(copy));
        let mut to_probe = HashMap::new();
        for call in self.pending.lock().values() {
            match (call.copy, now.saturating_duration_since(call.since)) {
                (None, waited) if waited > SILENCE_MAX => call.fail(CallFailure::Lost("no copy said that it took it")),
                (Some(copy), waited) if waited > PROBE_AFTER => drop(to_probe.insert(copy, call.cage.clone())),
                (None | Some(_), _) => {}
            }
        }
        for (copy, cage) in to_probe {
            let subject = self.subjects.copy(&cage, copy, &self.local.cage);
            self.enqueue(subject, Some(format!("{}.probe.{copy}", self.inbox)), 0, PacketContent::Probe);
        }
    }

    fn lose_calls_of(&self, copy: CopyId) {
        let pending = self.pending.lock();
        let calls = pending.values().filter(|call| call.copy == Some(copy));
        calls.for_each(|call| call.fail(CallFailure::Lost("the copy is gone")));
    }

    /// Ends the calls that cannot succeed since the server denied their subject.
    fn fail_denied_calls(&self, denial: &DeniedSubject) {
        let pending = self.pending.lock();
        match denial {
            DeniedSubject::Publish(subject) => pending
                .values()
                .filter(|call| call.subject == *subject)
                .for_each(|call| call.fail(CallFailure::NotPermitted("publish this call: see its permissions"))),
            DeniedSubject::Subscribe(subject) if subject.starts_with(&self.inbox) => pending
                .values()
                .for_each(|call| call.fail(CallFailure::NotPermitted("subscribe to its inbox: see its permissions"))),
            DeniedSubject::Subscribe(_) => {}
        }
    }

    /// Ends the calls that have no answer from a copy that has left: it answered all that it took, so they did not run.
    fn fail_unrun_calls_of(&self, copy: CopyId) {
        let pending = self.pending.lock();
        pending.values().filter(|call| call.copy == Some(copy)).for_each(|call| call.fail(CallFailure::NotRun(copy)));
    }

    fn lose_all(&self, why: &'static str) {
        self.pending.lock().values().for_each(|call| call.fail(CallFailure::Lost(why)));
    }

    /// Publishes the outbox: destructors use it since they cannot wait for the client.
    async fn publish_all(self: Arc<Self>, outgoing: Arc<tokio::sync::Mutex<mpsc::Receiver<OutboxMessage>>>) {
        let publishing = async {
            let mut outgoing = outgoing.lock().await;
            while let Some(OutboxMessage { subject, reply, payload }) = outgoing.recv().await {
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
