//! The callee's side: receives calls on the cage's queue group and on this copy's own subject, runs them with the
//! handler, and publishes their answers. Called by `mod.rs`. Everything that a caller can make it keep is bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message as NatsMessage, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::super::envelope::{self, Message};
use super::super::fabric::{CallHandler, CopyId};
use super::super::keyed_limit::{KeyedLimit, KeyedPermit};
use super::NatsShared;
use super::body::{IncomingBody, OutgoingBody};
use super::members::BEAT_INTERVAL;
use super::packet::{BeatState, Opening, Packet, PacketContent, WINDOW_BYTES, WINDOW_MESSAGES, last_token};
use wasmcage_config::is_name;
use wasmcage_core::call::Call;
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_core::task;
use wasmcage_protocol::InterfaceError;

/// A call that is not answered within this time is acknowledged.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(20);
/// Timeout for the next part of a body, or for the next grant.
const PART_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of all incomplete bodies together; further calls with a long body are refused as overload.
const UNFINISHED_BYTES_MAX: usize = 256 << 20;
/// Unit in which incomplete bodies are counted.
const UNIT_BYTES: usize = 1 << 10;
/// How long a stopping copy stays, so that all callers receive its heartbeat.
const LEAVING_PERIOD: Duration = Duration::from_millis(250);
const BEAT_TIMEOUT: Duration = Duration::from_millis(100);
/// Timeout for the last messages to reach the server.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Identifies a call: cage and copy of its caller, and the caller's number of the call.
type CallKey = (Arc<str>, CopyId, u64);

struct Callee {
    shared: Arc<NatsShared>,
    handler: Arc<dyn CallHandler>,
    active: Mutex<HashMap<CallKey, ActiveCall>>,
    peers: Arc<KeyedLimit<(Arc<str>, CopyId)>>,
    unfinished: Semaphore,
}

/// A call in flight.
struct ActiveCall {
    incoming: mpsc::Sender<PacketContent>,
    cancel: CancellationToken,
}

/// A call that was received and passed the limits.
struct AcceptedCall {
    key: CallKey,
    reply: Subject,
    opening: Opening,
    incoming: mpsc::Receiver<PacketContent>,
    cancel: CancellationToken,
    _permit: KeyedPermit<(Arc<str>, CopyId)>,
}

struct Subscriptions {
    calls: Subscriber,
    copy: Subscriber,
    cancels: Subscriber,
    asks: Subscriber,
}

pub(super) async fn advertise(
    shared: &Arc<NatsShared>,
    handler: Arc<dyn CallHandler>,
    drain: Drain,
) -> Result<(), InterfaceError> {
    let Some(mut subscriptions) = subscribe(shared).await else {
        // The client has ended, and so has the cage.
        return Ok(());
    };
    let callee = Arc::new(Callee {
        shared: shared.clone(),
        handler,
        active: Mutex::default(),
        peers: KeyedLimit::new(shared.limits.calls_per_peer_max),
        unfinished: Semaphore::new(UNFINISHED_BYTES_MAX.max(shared.limits.body_bytes_max) / UNIT_BYTES + 1),
    });
    let subject = shared.subjects.calls(&shared.local.cage);
    *shared.addresses.lock() = vec![format!("{} {subject}", shared.servers)];
    let _addresses = AddressGuard(shared);
    let answered_all = callee.run(&mut subscriptions, &drain).await;
    // On a timeout the server is not there, and nobody waits for these messages.
    let _ = timeout(FLUSH_TIMEOUT, callee.leave(subscriptions, answered_all)).await;
    Ok(())
}

async fn subscribe(shared: &NatsShared) -> Option<Subscriptions> {
    let (client, subjects, local) = (&shared.client, &shared.subjects, &shared.local);
    let calls = subjects.calls(&local.cage);
    Some(Subscriptions {
        calls: client.queue_subscribe(calls, local.cage.to_string()).await.ok()?,
        copy: client.subscribe(subjects.copy(&local.cage, local.copy, "*")).await.ok()?,
        cancels: client.subscribe(subjects.cancel(&local.cage, "*")).await.ok()?,
        asks: client.subscribe(subjects.ask()).await.ok()?,
    })
}

/// Clears the addresses of this copy when it is dropped.
struct AddressGuard<'a>(&'a NatsShared);

impl Drop for AddressGuard<'_> {
    fn drop(&mut self) {
        self.0.addresses.lock().clear();
    }
}

impl Callee {
    /// Runs until the drain is complete. Returns false when calls were dropped.
    async fn run(self: &Arc<Self>, subscriptions: &mut Subscriptions, drain: &Drain) -> bool {
        let mut tasks = JoinSet::new();
        let mut beats = tokio::time::interval(BEAT_INTERVAL);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // When this copy may leave; set once it refuses new calls.
        let mut farewell: Option<Instant> = None;
        let mut connection = self.shared.connection.clone();
        let Subscriptions { calls, copy, cancels, asks } = subscriptions;
        loop {
            while tasks.try_join_next().is_some() {}
            if tasks.is_empty() && farewell.is_some_and(|until| until <= Instant::now()) {
                return true;
            }
            let leaving = farewell.is_some();
            let life = if leaving { BeatState::Leaving } else { BeatState::Serving };
            // The order matters: a call is read before its cancellation, which was published later.
            tokio::select! {
                biased;
                () = self.shared.end.cancelled() => return false,
                () = drain.forcing() => return tasks.is_empty(),
                () = drain.stopping(), if !leaving => {
                    farewell = Some(Instant::now() + LEAVING_PERIOD);
                    self.send_beat(BeatState::Leaving).await;
                }
                Ok(()) = connection.changed() => beats.reset_immediately(),
                _ = beats.tick() => self.send_beat(life).await,
                Some(message) = calls.next() => self.receive(message, leaving, &mut tasks),
                Some(message) = copy.next() => self.receive(message, leaving, &mut tasks),
                Some(message) = cancels.next() => self.receive(message, leaving, &mut tasks),
                Some(_) = asks.next() => {
                    self.send_beat(life).await;
                    // One heartbeat answers all that ask at the same time.
                    while asks.next().now_or_never().flatten().is_some() {}
                }
                Some(_) = tasks.join_next() => {}
                () = sleep_until(farewell.unwrap_or_else(Instant::now)), if leaving && tasks.is_empty() => {}
                else => return false,
            }
        }
    }

    async fn leave(&self, subscriptions: Subscriptions, answered_all: bool) {
        let Subscriptions { calls, copy, cancels, asks } = subscriptions;
        for mut subscriber in [calls, copy, cancels, asks] {
            // An error means that the client, and the subscription with it, has ended.
            let _ = subscriber.unsubscribe().await;
        }
        // This comes after the server has removed the subscriptions: a caller that receives it, and whose call here has
        // no answer, can be sure that the call did not run.
        if answered_all {
            self.send_beat(BeatState::Gone).await;
        }
        // If this fails, callers notice the missing answers themselves.
        let _ = self.shared.client.flush().await;
    }

    async fn send_beat(&self, state: BeatState) {
        let (node, version) = (self.shared.local.node.to_string(), env!("CARGO_PKG_VERSION").to_owned());
        let subject = self.shared.subjects.beat(&self.shared.local.cage);
        let beat = self.shared.packet(0, PacketContent::Beat { state, node, version });
        // A heartbeat that cannot be sent at once is left out; the next one follows.
        if self.shared.connection.borrow().connected {
            let _ = timeout(BEAT_TIMEOUT, self.shared.client.publish(subject, beat)).await;
        }
    }

    fn receive(self: &Arc<Self>, message: NatsMessage, leaving: bool, tasks: &mut JoinSet<()>) {
        let caller = last_token(&message.subject);
        let packet = match Packet::decode(message.payload) {
            Ok(packet) => packet,
            Err(error) => return self.shared.events.malformed(&message.subject, &error),
        };
        if !is_name(caller) {
            return;
        }
        let key = (Arc::from(caller), packet.copy, packet.number);
        match packet.content {
            PacketContent::Call(opening) => {
                let Some(reply) = message.reply else { return };
                let post = |content| self.shared.enqueue(reply.to_string(), None, packet.number, content);
                if leaving {
                    return post(PacketContent::Away);
                }
                match self.accept(key, &reply, opening) {
                    Ok(Some(accepted)) => {
                        let work =
                            self.shared.tasks.run_once("nats: a call from elsewhere", self.clone().run_call(accepted));
                        drop(tasks.spawn(async move { work.await.unwrap_or_default() }));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        let Message { head, body } = envelope::encode_answer(Err(error), 0);
                        post(PacketContent::Answer(Opening { head, body_bytes: 0, body }));
                    }
                }
            }
            content @ (PacketContent::Part { .. } | PacketContent::Granted { .. }) => {
                let active = self.active.lock();
                let Some(call) = active.get(&key) else { return };
                if call.incoming.try_send(content).is_err() {
                    // The caller sent more than it was granted.
                    call.cancel.cancel();
                }
            }
            PacketContent::Cancel => {
                if let Some(call) = self.active.lock().get(&key) {
                    call.cancel.cancel();
                }
            }
            PacketContent::Answer(_) | PacketContent::Away | PacketContent::Probe | PacketContent::Beat { .. } => {}
        }
    }

    /// Checks the limits of a new call. Returns none when the caller has used the number already.
    fn accept(&self, key: CallKey, reply: &Subject, opening: Opening) -> Result<Option<AcceptedCall>, DispatchError> {
        let (bytes, max) = (opening.body_bytes as usize, self.shared.limits.body_bytes_max);
        if bytes > max {
            return Err(DispatchError::BadRequest(format!("the arguments have {bytes} bytes, more than {max}")));
        }
        let Some(permit) = self.peers.try_acquire((key.0.clone(), key.1)) else {
            return Err(DispatchError::Overloaded(format!(
                "{} calls of this copy of cage {} have no answer yet",
                self.peers.max(),
                key.0
            )));
        };
        let mut all = self.active.lock();
        if all.contains_key(&key) {
            return Ok(None);
        }
        let (sender, incoming) = mpsc::channel(WINDOW_MESSAGES);
        let cancel = CancellationToken::new();
        all.insert(key.clone(), ActiveCall { incoming: sender, cancel: cancel.clone() });
        Ok(Some(AcceptedCall { key, reply: reply.clone(), opening, incoming, cancel, _permit: permit }))
    }

    async fn run_call(self: Arc<Self>, mut accepted: AcceptedCall) {
        let _guard = ActiveCallGuard(&self, accepted.key.clone());
        let cancel = accepted.cancel.clone();
        let work = async {
            if let Some(answer) = self.answer(&mut accepted).await {
                self.send_answer(&mut accepted, answer).await;
            } else {
                self.reply(accepted.reply.clone(), accepted.key.2, PacketContent::Away).await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = work => {}
        }
    }

    /// Runs a call and returns its answer; none when the arguments were not received, and so nothing has run.
    async fn answer(&self, accepted: &mut AcceptedCall) -> Option<Message> {
        let max = self.shared.limits.body_bytes_max;
        let caller = accepted.key.0.clone();
        let malformed = |error: envelope::MalformedMessage| {
            self.shared.events.malformed(&caller, &error);
            envelope::encode_answer(Err(DispatchError::BadRequest(error.to_string())), max)
        };
        // The deadline counts from now, not from the end of the body.
        let Opening { head, body, .. } = accepted.opening.clone();
        let call = match envelope::decode_call(Message { head: head.clone(), body }, &caller) {
            Ok(call) => call,
            Err(error) => return Some(malformed(error)),
        };
        let call = if accepted.opening.is_whole() {
            call
        } else {
            let deadline = call.context.deadline;
            let Ok(_unfinished) = self.unfinished.try_acquire_many(units(accepted.opening.body_bytes)) else {
                let text = "too many large calls are in flight".to_owned();
                return Some(envelope::encode_answer(Err(DispatchError::Overloaded(text)), max));
            };
            let body = self.receive_body(accepted).await?;
            match envelope::decode_call(Message { head, body }, &caller) {
                Ok(call) => Call { context: Arc::new(call.context.with_deadline(deadline)), ..call },
                Err(error) => return Some(malformed(error)),
            }
        };
        Some(envelope::encode_answer(self.serve(accepted, call).await, max))
    }

    /// Receives the parts of a body; none when one is missing.
    async fn receive_body(&self, accepted: &mut AcceptedCall) -> Option<Bytes> {
        let mut incoming = IncomingBody::new(accepted.opening.body_bytes);
        let mut grant = Some(incoming.granted());
        loop {
            if let Some(upto) = grant.take() {
                self.reply(accepted.reply.clone(), accepted.key.2, PacketContent::Granted { upto }).await;
            }
            let content = timeout(PART_TIMEOUT, accepted.incoming.recv()).await.ok().flatten()?;
            if let PacketContent::Part { offset, bytes } = content {
                grant = incoming.take(offset, &bytes).ok()?;
                if let Some(body) = incoming.whole() {
                    return Some(body);
                }
            }
        }
    }

    async fn serve(&self, accepted: &AcceptedCall, call: Call) -> Result<Payload, DispatchError> {
        let deadline = call.context.deadline.instant();
        let serving = task::catch_panic_async(self.handler.serve(call));
        tokio::pin!(serving);
        let soon = deadline.min(Instant::now() + ACKNOWLEDGE_AFTER);
        let result = match timeout_at(soon, &mut serving).await {
            Ok(result) => Ok(result),
            Err(_) => {
                let upto = accepted.opening.body_bytes;
                self.reply(accepted.reply.clone(), accepted.key.2, PacketContent::Granted { upto }).await;
                timeout_at(deadline, serving).await
            }
        };
        match result {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(DispatchError::Host(panic.to_string())),
            Err(_) => Err(DispatchError::DeadlineExceeded("it ran into its deadline".into())),
        }
    }

    async fn send_answer(&self, accepted: &mut AcceptedCall, message: Message) {
        let max = self.shared.message_bytes_max();
        let opening = Opening::new(&message, max);
        let whole = opening.is_whole();
        self.reply(accepted.reply.clone(), accepted.key.2, PacketContent::Answer(opening)).await;
        if whole {
            return;
        }
        let mut body = OutgoingBody::new(message.body, 0, WINDOW_BYTES);
        loop {
            while let Some((offset, bytes)) = body.next_part(max) {
                self.reply(accepted.reply.clone(), accepted.key.2, PacketContent::Part { offset, bytes }).await;
            }
            if body.is_sent() {
                return;
            }
            match timeout(PART_TIMEOUT, accepted.incoming.recv()).await {
                Ok(Some(PacketContent::Granted { upto })) => body.grant(upto),
                Ok(Some(_)) => {}
                // The caller has left, or does not read any more.
                Ok(None) | Err(_) => return,
            }
        }
    }

    async fn reply(&self, reply: Subject, number: u64, content: PacketContent) {
        // An error means that the client has ended, and with it the caller's connection.
        let _ = self.shared.client.publish(reply, self.shared.packet(number, content)).await;
    }
}

fn units(bytes: u32) -> u32 {
    bytes / UNIT_BYTES as u32 + 1
}

/// Removes a call from the table when it is dropped.
struct ActiveCallGuard<'a>(&'a Callee, CallKey);

impl Drop for ActiveCallGuard<'_> {
    fn drop(&mut self) {
        self.0.active.lock().remove(&self.1);
    }
}
