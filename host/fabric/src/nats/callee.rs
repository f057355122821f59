//! The callee's side: takes calls from the cage's queue group and from this copy's own subject, has the service run them,
//! and publishes their answers. Called by `mod.rs`. Everything a caller can make it hold is bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message as Received, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::super::envelope::{self, Message};
use super::super::fabric::{CopyId, Service};
use super::super::places::{Place, Places};
use super::Shared;
use super::body::{Incoming, Outgoing};
use super::members::BEAT_INTERVAL;
use super::packet::{Content, Life, Opening, Packet, WINDOW_BYTES, WINDOW_MESSAGES, last_token};
use wasmcage_config::is_name;
use wasmcage_core::call::Call;
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_core::task;
use wasmcage_protocol::InterfaceError;

/// A call that is not answered by then is said to be taken.
const TAKEN_AFTER: Duration = Duration::from_millis(20);
/// Whoever sends or reads a body must go on within this time.
const PART_WITHIN: Duration = Duration::from_secs(10);
/// Of all calls together whose bodies are not whole yet. Beyond it they are refused as overload.
const UNFINISHED_BYTES_MAX: usize = 256 << 20;
/// What unfinished bodies are counted in.
const UNIT_BYTES: usize = 1 << 10;
/// A copy that stops is heard by all callers within this time.
const FAREWELL: Duration = Duration::from_millis(250);
const BEAT_TIMEOUT: Duration = Duration::from_millis(100);
/// The last messages reach the server within this time, or it is not there.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// A call is named by its caller's cage and copy, and by the caller's number of it.
type Key = (Arc<str>, CopyId, u64);

struct Served {
    shared: Arc<Shared>,
    service: Arc<dyn Service>,
    work: Mutex<HashMap<Key, Work>>,
    peers: Arc<Places<(Arc<str>, CopyId)>>,
    unfinished: Semaphore,
}

/// A call in work.
struct Work {
    arrivals: mpsc::Sender<Content>,
    cancel: CancellationToken,
}

/// A call as it came.
struct Taken {
    key: Key,
    reply: Subject,
    opening: Opening,
    arrivals: mpsc::Receiver<Content>,
    cancel: CancellationToken,
    _place: Place<(Arc<str>, CopyId)>,
}

struct Subscriptions {
    calls: Subscriber,
    copy: Subscriber,
    cancels: Subscriber,
    asks: Subscriber,
}

pub(super) async fn advertise(
    shared: &Arc<Shared>,
    service: Arc<dyn Service>,
    drain: Drain,
) -> Result<(), InterfaceError> {
    let Some(mut subscriptions) = subscribe(shared).await else {
        // The client has ended: so has the cage.
        return Ok(());
    };
    let served = Arc::new(Served {
        shared: shared.clone(),
        service,
        work: Mutex::default(),
        peers: Places::new(shared.limits.calls_per_peer_max),
        unfinished: Semaphore::new(UNFINISHED_BYTES_MAX.max(shared.limits.body_bytes_max) / UNIT_BYTES + 1),
    });
    let subject = shared.subjects.call(&shared.local.cage, "*", "*");
    *shared.addresses.lock() = vec![format!("{} {subject}", shared.servers)];
    let _addresses = NoAddresses(shared);
    let answered_all = served.run(&mut subscriptions, &drain).await;
    // Without a server nobody waits for this any more.
    let _ = timeout(FAREWELL_TIMEOUT, served.leave(subscriptions, answered_all)).await;
    Ok(())
}

async fn subscribe(shared: &Shared) -> Option<Subscriptions> {
    let (client, subjects, local) = (&shared.client, &shared.subjects, &shared.local);
    let calls = subjects.call(&local.cage, "*", "*");
    Some(Subscriptions {
        calls: client.queue_subscribe(calls, local.cage.to_string()).await.ok()?,
        copy: client.subscribe(subjects.copy(&local.cage, local.copy, "*")).await.ok()?,
        cancels: client.subscribe(subjects.cancel(&local.cage, "*")).await.ok()?,
        asks: client.subscribe(subjects.ask()).await.ok()?,
    })
}

struct NoAddresses<'a>(&'a Shared);

impl Drop for NoAddresses<'_> {
    fn drop(&mut self) {
        self.0.addresses.lock().clear();
    }
}

impl Served {
    /// Until the drain is complete; false when work was dropped, as dropping this does.
    async fn run(self: &Arc<Self>, subscriptions: &mut Subscriptions, drain: &Drain) -> bool {
        let mut tasks = JoinSet::new();
        let mut beats = tokio::time::interval(BEAT_INTERVAL);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // When this copy may go, once it takes nothing new.
        let mut farewell: Option<Instant> = None;
        let mut link = self.shared.link.clone();
        let Subscriptions { calls, copy, cancels, asks } = subscriptions;
        loop {
            while tasks.try_join_next().is_some() {}
            if tasks.is_empty() && farewell.is_some_and(|until| until <= Instant::now()) {
                return true;
            }
            let leaving = farewell.is_some();
            let life = if leaving { Life::Leaving } else { Life::Serving };
            // A call is read before the message that cancels it, which was published later.
            tokio::select! {
                biased;
                () = self.shared.end.cancelled() => return false,
                () = drain.forcing() => return tasks.is_empty(),
                () = drain.stopping(), if !leaving => {
                    farewell = Some(Instant::now() + FAREWELL);
                    self.beat(Life::Leaving).await;
                }
                Ok(()) = link.changed() => beats.reset_immediately(),
                _ = beats.tick() => self.beat(life).await,
                Some(message) = calls.next() => self.came(message, leaving, &mut tasks),
                Some(message) = copy.next() => self.came(message, leaving, &mut tasks),
                Some(message) = cancels.next() => self.came(message, leaving, &mut tasks),
                Some(_) = asks.next() => {
                    self.beat(life).await;
                    // Many may ask at once; one heartbeat answers them all.
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
            // The client may have ended, and the subscription with it.
            let _ = subscriber.unsubscribe().await;
        }
        // After the server knows that nobody listens here: whoever hears this, and has a call here without an answer, may
        // be sure that it did not run.
        if answered_all {
            self.beat(Life::Gone).await;
        }
        // Whoever waits for an answer finds out when it is not sent.
        let _ = self.shared.client.flush().await;
    }

    async fn beat(&self, state: Life) {
        let (node, version) = (self.shared.local.node.to_string(), env!("CARGO_PKG_VERSION").to_owned());
        let subject = self.shared.subjects.beat(&self.shared.local.cage);
        let beat = self.shared.packet(0, Content::Beat { state, node, version });
        // One that a busy or missing connection keeps waiting is left out: the next follows.
        if self.shared.link.borrow().connected {
            let _ = timeout(BEAT_TIMEOUT, self.shared.client.publish(subject, beat)).await;
        }
    }

    fn came(self: &Arc<Self>, message: Received, leaving: bool, tasks: &mut JoinSet<()>) {
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
            Content::Call(opening) => {
                let Some(reply) = message.reply else { return };
                let post = |content| self.shared.post(reply.to_string(), None, packet.number, content);
                if leaving {
                    return post(Content::Away);
                }
                match self.take(key, &reply, opening) {
                    Ok(Some(taken)) => {
                        let work = self.shared.tasks.run_once("nats: a call from elsewhere", self.clone().work(taken));
                        drop(tasks.spawn(async move { work.await.unwrap_or_default() }));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        let Message { head, body } = envelope::encode_answer(Err(error), 0);
                        post(Content::Answer(Opening { head, body_bytes: 0, body }));
                    }
                }
            }
            content @ (Content::Part { .. } | Content::Granted { .. }) => {
                let work = self.work.lock();
                let Some(work) = work.get(&key) else { return };
                if work.arrivals.try_send(content).is_err() {
                    // More than it was granted.
                    work.cancel.cancel();
                }
            }
            Content::Cancel => {
                if let Some(work) = self.work.lock().get(&key) {
                    work.cancel.cancel();
                }
            }
            Content::Answer(_) | Content::Away | Content::Probe | Content::Beat { .. } => {}
        }
    }

    /// Checks the bounds. None when the caller has used the number already.
    fn take(&self, key: Key, reply: &Subject, opening: Opening) -> Result<Option<Taken>, DispatchError> {
        let (bytes, max) = (opening.body_bytes as usize, self.shared.limits.body_bytes_max);
        if bytes > max {
            return Err(DispatchError::BadRequest(format!("the arguments have {bytes} bytes, more than {max}")));
        }
        let Some(place) = self.peers.enter((key.0.clone(), key.1)) else {
            return Err(DispatchError::Overloaded(format!(
                "{} calls of this copy of cage {} have no answer yet",
                self.peers.max(),
                key.0
            )));
        };
        let mut all = self.work.lock();
        if all.contains_key(&key) {
            return Ok(None);
        }
        let (sender, arrivals) = mpsc::channel(WINDOW_MESSAGES);
        let cancel = CancellationToken::new();
        all.insert(key.clone(), Work { arrivals: sender, cancel: cancel.clone() });
        Ok(Some(Taken { key, reply: reply.clone(), opening, arrivals, cancel, _place: place }))
    }

    async fn work(self: Arc<Self>, mut taken: Taken) {
        let _forgotten = Forgotten(&self, taken.key.clone());
        let cancel = taken.cancel.clone();
        let work = async {
            if let Some(answer) = self.answer(&mut taken).await {
                self.send_answer(&mut taken, answer).await;
            } else {
                self.reply(taken.reply.clone(), taken.key.2, Content::Away).await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = work => {}
        }
    }

    /// None when the arguments did not come: then nothing has run.
    async fn answer(&self, taken: &mut Taken) -> Option<Message> {
        let max = self.shared.limits.body_bytes_max;
        let caller = taken.key.0.clone();
        let malformed = |error: envelope::MalformedMessage| {
            self.shared.events.malformed(&caller, &error);
            envelope::encode_answer(Err(DispatchError::BadRequest(error.to_string())), max)
        };
        // The time left counts from now on, whenever the body is there.
        let Opening { head, body, .. } = taken.opening.clone();
        let call = match envelope::decode_call(Message { head: head.clone(), body }, &caller) {
            Ok(call) => call,
            Err(error) => return Some(malformed(error)),
        };
        let call = if taken.opening.is_whole() {
            call
        } else {
            let deadline = call.context.deadline;
            let Ok(_unfinished) = self.unfinished.try_acquire_many(units(taken.opening.body_bytes)) else {
                let text = "too many large calls are on their way".to_owned();
                return Some(envelope::encode_answer(Err(DispatchError::Overloaded(text)), max));
            };
            let body = self.receive(taken).await?;
            match envelope::decode_call(Message { head, body }, &caller) {
                Ok(call) => Call { context: Arc::new(call.context.with_deadline(deadline)), ..call },
                Err(error) => return Some(malformed(error)),
            }
        };
        Some(envelope::encode_answer(self.serve(taken, call).await, max))
    }

    /// The parts of a body that came after its head. None when one is missing.
    async fn receive(&self, taken: &mut Taken) -> Option<Bytes> {
        let mut incoming = Incoming::new(taken.opening.body_bytes);
        let mut grant = Some(incoming.granted());
        loop {
            if let Some(upto) = grant.take() {
                self.reply(taken.reply.clone(), taken.key.2, Content::Granted { upto }).await;
            }
            let content = timeout(PART_WITHIN, taken.arrivals.recv()).await.ok().flatten()?;
            if let Content::Part { offset, bytes } = content {
                grant = incoming.take(offset, &bytes).ok()?;
                if let Some(body) = incoming.whole() {
                    return Some(body);
                }
            }
        }
    }

    async fn serve(&self, taken: &Taken, call: Call) -> Result<Payload, DispatchError> {
        let deadline = call.context.deadline.instant();
        let serving = task::catch_panic_async(self.service.serve(call));
        tokio::pin!(serving);
        let soon = deadline.min(Instant::now() + TAKEN_AFTER);
        let result = match timeout_at(soon, &mut serving).await {
            Ok(result) => Ok(result),
            Err(_) => {
                let upto = taken.opening.body_bytes;
                self.reply(taken.reply.clone(), taken.key.2, Content::Granted { upto }).await;
                timeout_at(deadline, serving).await
            }
        };
        match result {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(DispatchError::Host(panic.to_string())),
            Err(_) => Err(DispatchError::DeadlineExceeded("it ran into its deadline".into())),
        }
    }

    async fn send_answer(&self, taken: &mut Taken, message: Message) {
        let max = self.shared.message_bytes_max();
        let opening = Opening::new(&message, max);
        let whole = opening.is_whole();
        self.reply(taken.reply.clone(), taken.key.2, Content::Answer(opening)).await;
        if whole {
            return;
        }
        let mut body = Outgoing::new(message.body, 0, WINDOW_BYTES);
        loop {
            while let Some((offset, bytes)) = body.next_part(max) {
                self.reply(taken.reply.clone(), taken.key.2, Content::Part { offset, bytes }).await;
            }
            if body.is_sent() {
                return;
            }
            match timeout(PART_WITHIN, taken.arrivals.recv()).await {
                Ok(Some(Content::Granted { upto })) => body.grant(upto),
                Ok(Some(_)) => {}
                // Its caller is gone, or reads no more.
                Ok(None) | Err(_) => return,
            }
        }
    }

    async fn reply(&self, reply: Subject, number: u64, content: Content) {
        // A client that has ended has no caller either.
        let _ = self.shared.client.publish(reply, self.shared.packet(number, content)).await;
    }
}

fn units(bytes: u32) -> u32 {
    bytes / UNIT_BYTES as u32 + 1
}

/// A call that is no longer in work.
struct Forgotten<'a>(&'a Served, Key);

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        self.0.work.lock().remove(&self.1);
    }
}
