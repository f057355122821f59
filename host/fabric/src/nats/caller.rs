//! The caller's side: sends a call to a copy in one message or several, and receives the answer on an inbox. `mod.rs`
//! reports failures to the calls in flight. Dropping the future of a call cancels it at the callee.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::super::envelope::{self, Message};
use super::super::fabric::CopyId;
use super::NatsShared;
use super::body::{IncomingBody, OutgoingBody};
use super::members::CallRecipient;
use super::packet::{OVERHEAD_BYTES, Opening, Packet, PacketContent, last_token};
use wasmcage_config::is_name;
use wasmcage_core::call::{Call, CallAction};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;

/// Copies that one call tries.
const ATTEMPTS_MAX: usize = 5;
/// Subscriptions to answers that are kept for later calls.
const IDLE_SUBSCRIPTIONS_MAX: usize = 256;
/// How long a call waits for the connection to a server.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// A call in flight, as `mod.rs` sees it.
pub(super) struct PendingCall {
    pub(super) cage: Arc<str>,
    /// The copy that has it; none if the server chose the copy and that one has not acknowledged the call yet.
    pub(super) copy: Option<CopyId>,
    /// Subject on which it was published.
    pub(super) subject: String,
    pub(super) since: Instant,
    failure: Arc<FailureSlot>,
}

/// Passes a failure to the future of a call.
#[derive(Default)]
struct FailureSlot {
    value: Mutex<Option<CallFailure>>,
    notify: Notify,
}

/// Why a call will get no answer, as noticed by `mod.rs`.
#[derive(Clone, Copy, Debug)]
pub(super) enum CallFailure {
    /// The call may have run.
    Lost(&'static str),
    /// The copy has left, and surely did not run the call.
    NotRun(CopyId),
    /// The server denied this cage to publish the call, or to read its answer.
    NotPermitted(&'static str),
}

impl PendingCall {
    pub(super) fn fail(&self, failure: CallFailure) {
        self.failure.value.lock().get_or_insert(failure);
        self.failure.notify.notify_one();
    }
}

/// A subscription to answers. It is used by one call at a time, so that answers need not be passed on to their callers.
pub(super) struct AnswerSubscription {
    answers: Subscriber,
    /// Prefix of its subjects, which end with the number of the call.
    prefix: String,
    failure: Arc<FailureSlot>,
}

impl AnswerSubscription {
    async fn open(shared: &NatsShared) -> Result<Self, DispatchError> {
        let subscription = shared.next_subscription.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}.{subscription}.", shared.inbox);
        let answers = shared.client.subscribe(format!("{prefix}*")).await;
        let answers = answers.map_err(|error| DispatchError::Host(format!("cannot subscribe to NATS: {error}")))?;
        Ok(Self { answers, prefix, failure: Arc::default() })
    }
}

/// The next input of a call in flight.
enum CallInput {
    Packet(CopyId, PacketContent),
    /// The server reports that nobody subscribes to the subject.
    NoResponders,
    Failure(CallFailure),
}

/// Outcome of a call at one copy.
enum AttemptOutcome {
    Answered(Result<Payload, DispatchError>),
    /// The call surely did not run there.
    NotRun(Option<CopyId>, DispatchError),
    /// The call may have run.
    Lost(Option<CopyId>, DispatchError),
}

pub(super) async fn call(shared: &Arc<NatsShared>, call: Call, copy: Option<&str>) -> Result<Payload, DispatchError> {
    let (bytes, max) = (envelope::body_bytes(&call.arguments), shared.limits.body_bytes_max);
    if bytes > max {
        return Err(DispatchError::BadRequest(format!("the arguments have {bytes} bytes, more than {max}")));
    }
    // Names are parts of subjects.
    if !is_name(&call.cage) {
        return Err(DispatchError::NoSuchCage(format!("{:?} is not the name of a cage", call.cage)));
    }
    if let CallAction::Run { module, .. } = &call.action
        && !is_name(module)
    {
        return Err(DispatchError::NoSuchModule(format!("{module:?} is not the name of a module")));
    }
    let copy = match copy {
        None => None,
        Some(text) => match CopyId::parse(text) {
            Some(copy) => Some(copy),
            None => return Err(DispatchError::NoSuchCage(format!("{text:?} is not the name of a copy"))),
        },
    };
    let Some(_place) = shared.cages.try_acquire(call.cage.clone()) else {
        let text = format!("{} calls to cage {} have no answer yet", shared.cages.max(), call.cage);
        return Err(DispatchError::Overloaded(text));
    };
    let late = || DispatchError::DeadlineExceeded(format!("cage {} did not answer in time", call.cage));
    let deadline = call.context.deadline;
    if deadline.passed() {
        return Err(late());
    }
    timeout_at(deadline.instant(), attempts(shared, &call, copy)).await.unwrap_or_else(|_| Err(late()))
}

async fn attempts(shared: &Arc<NatsShared>, call: &Call, copy: Option<CopyId>) -> Result<Payload, DispatchError> {
    let mut tried = Vec::new();
    let mut failure = DispatchError::Unreachable(format!("no copy of cage {} can be reached", call.cage));
    let mut again = false;
    for _ in 0..ATTEMPTS_MAX {
        let target = match copy {
            Some(copy) if tried.is_empty() => Some(CallRecipient::Copy(copy)),
            Some(_) => None,
            None => shared.members.lock().target(Instant::now(), &call.cage, &tried, again),
        };
        let Some(target) = target else { break };
        let outcome = match connected(shared).await {
            Ok(()) => attempt_in_time(shared, call, target, copy.is_none() && has_others(shared, call, &tried)).await?,
            Err(error) => AttemptOutcome::NotRun(None, error),
        };
        match outcome {
            AttemptOutcome::Answered(answer) => return answer,
            AttemptOutcome::NotRun(copy, error) => {
                // If the call may have run in an earlier attempt, that error stays.
                if !matches!(failure, DispatchError::Lost(_)) {
                    failure = error;
                }
                // Without a copy's name, the server found nobody in the whole queue group.
                let Some(copy) = copy else { break };
                tried.push(copy);
            }
            AttemptOutcome::Lost(copy, error) => {
                failure = error;
                if !call.idempotent {
                    break;
                }
                tried.extend(copy);
                again = true;
            }
        }
    }
    Err(failure)
}

fn has_others(shared: &NatsShared, call: &Call, tried: &[CopyId]) -> bool {
    call.idempotent && shared.members.lock().has_others(&call.cage, tried)
}

/// Makes an attempt; with `elsewhere`, within `attempt_timeout`, so that another copy can be tried.
async fn attempt_in_time(
    shared: &Arc<NatsShared>,
    call: &Call,
    target: CallRecipient,
    elsewhere: bool,
) -> Result<AttemptOutcome, DispatchError> {
    if !elsewhere {
        return attempt(shared, call, target).await;
    }
    let late = || {
        let copy = match target {
            CallRecipient::Copy(copy) => Some(copy),
            CallRecipient::Group => None,
        };
        let text = format!("cage {} gave no answer within {} ms", call.cage, shared.attempt_timeout.as_millis());
        Ok(AttemptOutcome::Lost(copy, DispatchError::Lost(text)))
    };
    timeout(shared.attempt_timeout, attempt(shared, call, target)).await.unwrap_or_else(|_| late())
}

async fn connected(shared: &NatsShared) -> Result<(), DispatchError> {
    if shared.connection.borrow().connected {
        return Ok(());
    }
    let mut connection = shared.connection.clone();
    let waiting = connection.wait_for(|state| state.connected);
    match timeout(CONNECTION_TIMEOUT, waiting).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) | Err(_) => {
            Err(DispatchError::Unreachable(format!("no NATS server is connected ({})", shared.servers)))
        }
    }
}

async fn attempt(
    shared: &Arc<NatsShared>,
    call: &Call,
    target: CallRecipient,
) -> Result<AttemptOutcome, DispatchError> {
    let message = envelope::encode_call(call)?;
    let max = shared.message_bytes_max();
    if message.head.len() + OVERHEAD_BYTES > max {
        return Err(DispatchError::BadRequest(format!(
            "{} bytes of names, callers and facts, more than the NATS server takes ({max})",
            message.head.len()
        )));
    }
    let opening = Opening::new(&message, max);
    let body = OutgoingBody::new(message.body, opening.body.len(), 0);
    let idle = shared.idle_subscriptions.lock().pop();
    let subscription = match idle {
        Some(subscription) => subscription,
        None => AnswerSubscription::open(shared).await?,
    };
    let (mut open, subject) = OpenCall::new(shared, subscription, call, target, body);
    open.publish(subject, PacketContent::Call(opening)).await?;
    loop {
        let ended = match open.next_input().await {
            CallInput::NoResponders => Some(open.no_responders()),
            CallInput::Failure(CallFailure::Lost(why)) => Some(open.lost(why)),
            CallInput::Failure(CallFailure::NotRun(copy)) => Some(open.refused_by(copy)),
            CallInput::Failure(CallFailure::NotPermitted(what)) => Some(open.not_permitted(what)),
            CallInput::Packet(copy, content) if open.assign(copy) => open.handle_packet(copy, content).await?,
            // Another copy has acknowledged the call before.
            CallInput::Packet(..) => None,
        };
        if let Some(attempt) = ended {
            return Ok(attempt);
        }
    }
}

/// A call in flight. Dropping it before its end cancels the call at the callee.
struct OpenCall<'a> {
    shared: &'a NatsShared,
    cage: Arc<str>,
    number: u64,
    /// None once it is idle again.
    subscription: Option<AnswerSubscription>,
    begun: Instant,
    copy: Option<CopyId>,
    /// Arguments that are being sent.
    body: OutgoingBody,
    /// Head and body of an answer that is received in parts.
    answer: Option<(Bytes, IncomingBody)>,
    ended: bool,
}

impl<'a> OpenCall<'a> {
    /// Registers the call as pending. Also returns the subject of the target.
    fn new(
        shared: &'a NatsShared,
        subscription: AnswerSubscription,
        call: &Call,
        target: CallRecipient,
        body: OutgoingBody,
    ) -> (Self, String) {
        let number = shared.next_number.fetch_add(1, Ordering::Relaxed);
        let (cage, caller): (Arc<str>, _) = (call.cage.as_str().into(), &shared.local.cage);
        let (copy, subject) = match target {
            CallRecipient::Group => (None, shared.subjects.call(&cage, &call.action, caller)),
            CallRecipient::Copy(copy) => (Some(copy), shared.subjects.copy(&cage, copy, caller)),
        };
        let begun = Instant::now();
        *subscription.failure.value.lock() = None;
        let failure = subscription.failure.clone();
        let pending = PendingCall { cage: cage.clone(), copy: None, subject: subject.clone(), since: begun, failure };
        shared.pending.lock().insert(number, pending);
        let subscription = Some(subscription);
        let mut open = Self { shared, cage, number, subscription, begun, copy: None, body, answer: None, ended: false };
        if let Some(copy) = copy {
            open.assign(copy);
        }
        (open, subject)
    }

    async fn next_input(&mut self) -> CallInput {
        let AnswerSubscription { answers, failure, .. } =
            self.subscription.as_mut().expect("it is given back at the end");
        loop {
            let message = tokio::select! {
                biased;
                message = answers.next() => message,
                () = failure.notify.notified() => {
                    // An answer that arrived before the failure counts.
                    let before = tokio::task::unconstrained(answers.next()).now_or_never();
                    if before.is_some() {
                        failure.notify.notify_one();
                    }
                    match (before, *failure.value.lock()) {
                        (Some(message), _) => message,
                        (None, Some(failure)) => return CallInput::Failure(failure),
                        (None, None) => continue,
                    }
                }
            };
            let Some(message) = message else { return CallInput::Failure(CallFailure::Lost("the NATS client ended")) };
            // Answers to earlier calls of this subscription are ignored.
            if last_token(&message.subject).parse() != Ok(self.number) {
                continue;
            }
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                return CallInput::NoResponders;
            }
            match Packet::decode(message.payload) {
                Ok(packet) => return CallInput::Packet(packet.copy, packet.content),
                Err(error) => self.shared.events.malformed(&message.subject, &error),
            }
        }
    }

    /// Assigns the call to the first copy that sends something. Returns whether that is this copy.
    fn assign(&mut self, copy: CopyId) -> bool {
        if self.copy.is_none() {
            self.copy = Some(copy);
            if let Some(pending) = self.shared.pending.lock().get_mut(&self.number) {
                pending.copy = Some(copy);
            }
            self.shared.members.lock().call_begun(copy);
        }
        self.copy == Some(copy)
    }

    /// Handles a packet of the copy that has the call. Returns the outcome once the call has ended.
    async fn handle_packet(
        &mut self,
        copy: CopyId,
        content: PacketContent,
    ) -> Result<Option<AttemptOutcome>, DispatchError> {
        match content {
            PacketContent::Granted { upto } => self.send_parts(copy, upto).await?,
            PacketContent::Answer(opening) if opening.is_whole() => {
                return Ok(Some(self.answered(copy, Message { head: opening.head, body: opening.body })));
            }
            PacketContent::Answer(opening) => {
                let (bytes, max) = (opening.body_bytes, self.shared.limits.body_bytes_max);
                if bytes as usize > max {
                    let error = DispatchError::Failed(format!("the result has {bytes} bytes, more than {max}"));
                    return Ok(Some(AttemptOutcome::Answered(Err(error))));
                }
                self.answer = Some((opening.head, IncomingBody::new(bytes)));
            }
            PacketContent::Part { offset, bytes } => return self.handle_part(copy, offset, &bytes).await,
            PacketContent::Away => return Ok(Some(self.refused_by(copy))),
            PacketContent::Call(_) | PacketContent::Cancel | PacketContent::Probe | PacketContent::Beat { .. } => {}
        }
        Ok(None)
    }

    async fn send_parts(&mut self, copy: CopyId, upto: u32) -> Result<(), DispatchError> {
        self.body.grant(upto);
        while let Some((offset, bytes)) = self.body.next_part(self.shared.message_bytes_max()) {
            let subject = self.shared.subjects.copy(&self.cage, copy, &self.shared.local.cage);
            self.publish(subject, PacketContent::Part { offset, bytes }).await?;
        }
        Ok(())
    }

    async fn handle_part(
        &mut self,
        copy: CopyId,
        offset: u32,
        part: &[u8],
    ) -> Result<Option<AttemptOutcome>, DispatchError> {
        let Some((head, incoming)) = &mut self.answer else { return Ok(None) };
        match incoming.take(offset, part) {
            Err(error) => return Ok(Some(self.lost(&error.to_string()))),
            Ok(Some(upto)) => {
                let granted = self.shared.packet(self.number, PacketContent::Granted { upto });
                let subject = self.shared.subjects.copy(&self.cage, copy, &self.shared.local.cage);
                self.shared.client.publish(subject, granted).await.map_err(unsent)?;
            }
            Ok(None) => {}
        }
        let Some(body) = incoming.whole() else { return Ok(None) };
        let message = Message { head: std::mem::take(head), body };
        Ok(Some(self.answered(copy, message)))
    }

    /// Publishes with a reply subject, where the server reports a missing subscriber.
    async fn publish(&self, subject: String, content: PacketContent) -> Result<(), DispatchError> {
        let prefix = &self.subscription.as_ref().expect("it is given back at the end").prefix;
        let (reply, payload) = (format!("{prefix}{}", self.number), self.shared.packet(self.number, content));
        self.shared.client.publish_with_reply(subject, reply, payload).await.map_err(unsent)
    }

    fn answered(&mut self, copy: CopyId, message: Message) -> AttemptOutcome {
        match envelope::decode_answer(message) {
            Ok(result) => {
                self.ended = true;
                self.shared.members.lock().record_answer(copy, self.begun.elapsed());
                AttemptOutcome::Answered(result)
            }
            Err(error) => self.lost(&error.to_string()),
        }
    }

    fn no_responders(&mut self) -> AttemptOutcome {
        self.ended = true;
        let error = match self.copy {
            Some(copy) => {
                let text = format!("copy {copy} of cage {} is not on NATS", self.cage);
                match self.shared.members.lock().mark_dead(copy) {
                    true => DispatchError::Unreachable(text),
                    false => DispatchError::NoSuchCage(text),
                }
            }
            None => DispatchError::NoSuchCage(format!(
                "no cage {} is on NATS in flock {}",
                self.cage, self.shared.local.flock
            )),
        };
        AttemptOutcome::NotRun(self.copy, error)
    }

    fn refused_by(&mut self, copy: CopyId) -> AttemptOutcome {
        self.ended = true;
        self.shared.members.lock().mark_leaving(copy);
        AttemptOutcome::NotRun(
            Some(copy),
            DispatchError::Unreachable(format!("copy {copy} of cage {} is stopping", self.cage)),
        )
    }

    fn not_permitted(&self, what: &str) -> AttemptOutcome {
        let text = format!("the NATS server does not let cage {} {what}", self.shared.local.cage);
        AttemptOutcome::Answered(Err(DispatchError::NotPermitted(text)))
    }

    fn lost(&self, why: &str) -> AttemptOutcome {
        let text = match self.copy {
            Some(copy) => format!("copy {copy} of cage {} had it, and may have run it: {why}", self.cage),
            None => format!("a copy of cage {} may have run it: {why}", self.cage),
        };
        AttemptOutcome::Lost(self.copy, DispatchError::Lost(text))
    }
}

fn unsent(error: async_nats::PublishError) -> DispatchError {
    DispatchError::Host(format!("cannot publish to NATS: {error}"))
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        self.shared.pending.lock().remove(&self.number);
        if let Some(copy) = self.copy {
            self.shared.members.lock().call_ended(copy);
        }
        if self.ended {
            let mut idle_subscriptions = self.shared.idle_subscriptions.lock();
            if idle_subscriptions.len() < IDLE_SUBSCRIPTIONS_MAX {
                idle_subscriptions.extend(self.subscription.take());
            }
        } else {
            let (subjects, caller) = (&self.shared.subjects, &self.shared.local.cage);
            let subject = match self.copy {
                Some(copy) => subjects.copy(&self.cage, copy, caller),
                None => subjects.cancel(&self.cage, caller),
            };
            self.shared.enqueue(subject, None, self.number, PacketContent::Cancel);
        }
    }
}
