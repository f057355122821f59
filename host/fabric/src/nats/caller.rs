//! The caller's side: a call becomes one message, or several, to a copy, and its answer comes back to an inbox. Called by
//! `mod.rs`, which tells it what arrived. A future that is dropped here ends the call there.

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
use super::Shared;
use super::body::{Incoming, Outgoing};
use super::members::Route;
use super::packet::{Content, OVERHEAD_BYTES, Opening, Packet, last_token};
use wasmcage_config::is_name;
use wasmcage_core::call::{Call, CallAction};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;

/// A call is tried at so many copies at most.
const ATTEMPTS_MAX: usize = 5;
/// Kept for later calls. Each is a subscription.
const LANES_IDLE_MAX: usize = 256;
/// How long a call waits for the server to be connected.
const CONNECTION_WITHIN: Duration = Duration::from_secs(1);

/// A call in flight, as those see it who look after it.
pub(super) struct Pending {
    pub(super) cage: Arc<str>,
    /// Who has it; none while the server chose and nobody has spoken.
    pub(super) copy: Option<CopyId>,
    /// On which it was published.
    pub(super) subject: String,
    pub(super) since: Instant,
    news: Arc<News>,
}

/// What a caller is told that its callee does not say.
#[derive(Default)]
struct News {
    told: Mutex<Option<Told>>,
    notify: Notify,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Told {
    /// It may have run.
    Lost(&'static str),
    /// The copy is gone, and surely did not run it.
    NotRun(CopyId),
    /// The server does not let this cage publish it, or read its answer.
    NotPermitted(&'static str),
}

impl Pending {
    pub(super) fn tell(&self, told: Told) {
        self.news.told.lock().get_or_insert(told);
        self.news.notify.notify_one();
    }
}

/// A subscription that answers come on: for one call at a time, one after the other, so that an answer goes from the
/// connection to its caller without detours.
pub(super) struct Lane {
    answers: Subscriber,
    /// Its subject, up to the call's number.
    prefix: String,
    news: Arc<News>,
}

impl Lane {
    async fn open(shared: &Shared) -> Result<Self, DispatchError> {
        let lane = shared.next_lane.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}.{lane}.", shared.inbox);
        let answers = shared.client.subscribe(format!("{prefix}*")).await;
        let answers = answers.map_err(|error| DispatchError::Host(format!("cannot subscribe to NATS: {error}")))?;
        Ok(Self { answers, prefix, news: Arc::default() })
    }
}

/// What a caller gets to see.
enum Arrival {
    Packet(CopyId, Content),
    /// The server has nobody to give a message to.
    NoResponders,
    Told(Told),
}

/// What became of a call at one copy.
enum Attempt {
    Answered(Result<Payload, DispatchError>),
    /// It surely did not run there.
    Elsewhere(Option<CopyId>, DispatchError),
    /// It may have run.
    Lost(Option<CopyId>, DispatchError),
}

pub(super) async fn call(shared: &Arc<Shared>, call: Call, copy: Option<&str>) -> Result<Payload, DispatchError> {
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
    let Some(_place) = shared.cages.enter(call.cage.clone()) else {
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

async fn attempts(shared: &Arc<Shared>, call: &Call, copy: Option<CopyId>) -> Result<Payload, DispatchError> {
    let mut tried = Vec::new();
    let mut failure = DispatchError::Unreachable(format!("no copy of cage {} can be reached", call.cage));
    let mut again = false;
    for _ in 0..ATTEMPTS_MAX {
        let route = match copy {
            Some(copy) if tried.is_empty() => Some(Route::Copy(copy)),
            Some(_) => None,
            None => shared.members.lock().route(Instant::now(), &call.cage, &tried, again),
        };
        let Some(route) = route else { break };
        let outcome = match connected(shared).await {
            Ok(()) => attempt_in_time(shared, call, route, copy.is_none() && has_others(shared, call, &tried)).await?,
            Err(error) => Attempt::Elsewhere(None, error),
        };
        match outcome {
            Attempt::Answered(answer) => return answer,
            Attempt::Elsewhere(copy, error) => {
                // It may have run in an attempt before, whatever became of this one.
                if !matches!(failure, DispatchError::Lost(_)) {
                    failure = error;
                }
                // The server has nobody: there is nobody else either.
                let Some(copy) = copy else { break };
                tried.push(copy);
            }
            Attempt::Lost(copy, error) => {
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

fn has_others(shared: &Shared, call: &Call, tried: &[CopyId]) -> bool {
    call.idempotent && shared.members.lock().has_others(&call.cage, tried)
}

/// One that is to be tried elsewhere has less time than the call.
async fn attempt_in_time(
    shared: &Arc<Shared>,
    call: &Call,
    route: Route,
    elsewhere: bool,
) -> Result<Attempt, DispatchError> {
    if !elsewhere {
        return attempt(shared, call, route).await;
    }
    let late = || {
        let copy = match route {
            Route::Copy(copy) => Some(copy),
            Route::Group => None,
        };
        let text = format!("cage {} gave no answer within {} ms", call.cage, shared.attempt_timeout.as_millis());
        Ok(Attempt::Lost(copy, DispatchError::Lost(text)))
    };
    timeout(shared.attempt_timeout, attempt(shared, call, route)).await.unwrap_or_else(|_| late())
}

async fn connected(shared: &Shared) -> Result<(), DispatchError> {
    if shared.link.borrow().connected {
        return Ok(());
    }
    let mut link = shared.link.clone();
    let waiting = link.wait_for(|link| link.connected);
    match timeout(CONNECTION_WITHIN, waiting).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) | Err(_) => {
            Err(DispatchError::Unreachable(format!("no NATS server is connected ({})", shared.servers)))
        }
    }
}

async fn attempt(shared: &Arc<Shared>, call: &Call, route: Route) -> Result<Attempt, DispatchError> {
    let message = envelope::encode_call(call)?;
    let max = shared.message_bytes_max();
    if message.head.len() + OVERHEAD_BYTES > max {
        return Err(DispatchError::BadRequest(format!(
            "{} bytes of names, callers and facts, more than the NATS server takes ({max})",
            message.head.len()
        )));
    }
    let opening = Opening::new(&message, max);
    let body = Outgoing::new(message.body, opening.body.len(), 0);
    let idle = shared.lanes.lock().pop();
    let lane = match idle {
        Some(lane) => lane,
        None => Lane::open(shared).await?,
    };
    let (mut open, subject) = Open::new(shared, lane, call, route, body);
    open.publish(subject, Content::Call(opening)).await?;
    loop {
        let ended = match open.arrival().await {
            Arrival::NoResponders => Some(open.nobody()),
            Arrival::Told(Told::Lost(why)) => Some(open.lost(why)),
            Arrival::Told(Told::NotRun(copy)) => Some(open.away(copy)),
            Arrival::Told(Told::NotPermitted(what)) => Some(open.not_permitted(what)),
            Arrival::Packet(copy, content) if open.is_with(copy) => open.came(copy, content).await?,
            // Of a copy that says to have it, too.
            Arrival::Packet(..) => None,
        };
        if let Some(attempt) = ended {
            return Ok(attempt);
        }
    }
}

/// A call in flight. Dropped before its end, it has the callee told.
struct Open<'a> {
    shared: &'a Shared,
    cage: Arc<str>,
    number: u64,
    /// None once it was given back.
    lane: Option<Lane>,
    begun: Instant,
    copy: Option<CopyId>,
    /// Arguments that are on their way.
    body: Outgoing,
    /// Head and body of an answer that comes in parts.
    answer: Option<(Bytes, Incoming)>,
    ended: bool,
}

impl<'a> Open<'a> {
    /// Also the subject that reaches whom the route names.
    fn new(shared: &'a Shared, lane: Lane, call: &Call, route: Route, body: Outgoing) -> (Self, String) {
        let number = shared.next_number.fetch_add(1, Ordering::Relaxed);
        let (cage, caller): (Arc<str>, _) = (call.cage.as_str().into(), &shared.local.cage);
        let (copy, subject) = match route {
            Route::Group => (None, shared.subjects.call(&cage, &call.action, caller)),
            Route::Copy(copy) => (Some(copy), shared.subjects.copy(&cage, copy, caller)),
        };
        let begun = Instant::now();
        *lane.news.told.lock() = None;
        let news = lane.news.clone();
        let pending = Pending { cage: cage.clone(), copy: None, subject: subject.clone(), since: begun, news };
        shared.pending.lock().insert(number, pending);
        let lane = Some(lane);
        let mut open = Self { shared, cage, number, lane, begun, copy: None, body, answer: None, ended: false };
        if let Some(copy) = copy {
            open.is_with(copy);
        }
        (open, subject)
    }

    async fn arrival(&mut self) -> Arrival {
        let Lane { answers, news, .. } = self.lane.as_mut().expect("it is given back at the end");
        loop {
            let message = tokio::select! {
                biased;
                message = answers.next() => message,
                () = news.notify.notified() => {
                    // An answer that came before the news is there, and counts.
                    let before = tokio::task::unconstrained(answers.next()).now_or_never();
                    if before.is_some() {
                        news.notify.notify_one();
                    }
                    match (before, *news.told.lock()) {
                        (Some(message), _) => message,
                        (None, Some(told)) => return Arrival::Told(told),
                        (None, None) => continue,
                    }
                }
            };
            let Some(message) = message else { return Arrival::Told(Told::Lost("the NATS client ended")) };
            // The lane has served other calls before.
            if last_token(&message.subject).parse() != Ok(self.number) {
                continue;
            }
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                return Arrival::NoResponders;
            }
            match Packet::decode(message.payload) {
                Ok(packet) => return Arrival::Packet(packet.copy, packet.content),
                Err(error) => self.shared.events.malformed(&message.subject, &error),
            }
        }
    }

    /// Whether that copy has the call: the first that says so.
    fn is_with(&mut self, copy: CopyId) -> bool {
        if self.copy.is_none() {
            self.copy = Some(copy);
            if let Some(pending) = self.shared.pending.lock().get_mut(&self.number) {
                pending.copy = Some(copy);
            }
            self.shared.members.lock().begun(copy);
        }
        self.copy == Some(copy)
    }

    /// Takes what the copy says that has the call. Returns what became of it, at its end.
    async fn came(&mut self, copy: CopyId, content: Content) -> Result<Option<Attempt>, DispatchError> {
        match content {
            Content::Granted { upto } => self.send_parts(copy, upto).await?,
            Content::Answer(opening) if opening.is_whole() => {
                return Ok(Some(self.answered(copy, Message { head: opening.head, body: opening.body })));
            }
            Content::Answer(opening) => {
                let (bytes, max) = (opening.body_bytes, self.shared.limits.body_bytes_max);
                if bytes as usize > max {
                    let error = DispatchError::Failed(format!("the result has {bytes} bytes, more than {max}"));
                    return Ok(Some(Attempt::Answered(Err(error))));
                }
                self.answer = Some((opening.head, Incoming::new(bytes)));
            }
            Content::Part { offset, bytes } => return self.part_came(copy, offset, &bytes).await,
            Content::Away => return Ok(Some(self.away(copy))),
            Content::Call(_) | Content::Cancel | Content::Probe | Content::Beat { .. } => {}
        }
        Ok(None)
    }

    async fn send_parts(&mut self, copy: CopyId, upto: u32) -> Result<(), DispatchError> {
        self.body.grant(upto);
        while let Some((offset, bytes)) = self.body.next_part(self.shared.message_bytes_max()) {
            let subject = self.shared.subjects.copy(&self.cage, copy, &self.shared.local.cage);
            self.publish(subject, Content::Part { offset, bytes }).await?;
        }
        Ok(())
    }

    async fn part_came(&mut self, copy: CopyId, offset: u32, part: &[u8]) -> Result<Option<Attempt>, DispatchError> {
        let Some((head, incoming)) = &mut self.answer else { return Ok(None) };
        match incoming.take(offset, part) {
            Err(error) => return Ok(Some(self.lost(&error.to_string()))),
            Ok(Some(upto)) => {
                let granted = self.shared.packet(self.number, Content::Granted { upto });
                let subject = self.shared.subjects.copy(&self.cage, copy, &self.shared.local.cage);
                self.shared.client.publish(subject, granted).await.map_err(unsent)?;
            }
            Ok(None) => {}
        }
        let Some(body) = incoming.whole() else { return Ok(None) };
        let message = Message { head: std::mem::take(head), body };
        Ok(Some(self.answered(copy, message)))
    }

    /// The server says on the inbox when there is nobody to get it.
    async fn publish(&self, subject: String, content: Content) -> Result<(), DispatchError> {
        let prefix = &self.lane.as_ref().expect("it is given back at the end").prefix;
        let (reply, payload) = (format!("{prefix}{}", self.number), self.shared.packet(self.number, content));
        self.shared.client.publish_with_reply(subject, reply, payload).await.map_err(unsent)
    }

    fn answered(&mut self, copy: CopyId, message: Message) -> Attempt {
        match envelope::decode_answer(message) {
            Ok(result) => {
                self.ended = true;
                self.shared.members.lock().answered(copy, self.begun.elapsed());
                Attempt::Answered(result)
            }
            Err(error) => self.lost(&error.to_string()),
        }
    }

    fn nobody(&mut self) -> Attempt {
        self.ended = true;
        let error = match self.copy {
            Some(copy) => {
                let text = format!("copy {copy} of cage {} is not on NATS", self.cage);
                match self.shared.members.lock().died(copy) {
                    true => DispatchError::Unreachable(text),
                    false => DispatchError::NoSuchCage(text),
                }
            }
            None => DispatchError::NoSuchCage(format!(
                "no cage {} is on NATS in flock {}",
                self.cage, self.shared.local.flock
            )),
        };
        Attempt::Elsewhere(self.copy, error)
    }

    fn away(&mut self, copy: CopyId) -> Attempt {
        self.ended = true;
        self.shared.members.lock().leaves(copy);
        Attempt::Elsewhere(
            Some(copy),
            DispatchError::Unreachable(format!("copy {copy} of cage {} is stopping", self.cage)),
        )
    }

    fn not_permitted(&self, what: &str) -> Attempt {
        let text = format!("the NATS server does not let cage {} {what}", self.shared.local.cage);
        Attempt::Answered(Err(DispatchError::NotPermitted(text)))
    }

    fn lost(&self, why: &str) -> Attempt {
        let text = match self.copy {
            Some(copy) => format!("copy {copy} of cage {} had it, and may have run it: {why}", self.cage),
            None => format!("a copy of cage {} may have run it: {why}", self.cage),
        };
        Attempt::Lost(self.copy, DispatchError::Lost(text))
    }
}

fn unsent(error: async_nats::PublishError) -> DispatchError {
    DispatchError::Host(format!("cannot publish to NATS: {error}"))
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shared.pending.lock().remove(&self.number);
        if let Some(copy) = self.copy {
            self.shared.members.lock().ended(copy);
        }
        if self.ended {
            let mut lanes = self.shared.lanes.lock();
            if lanes.len() < LANES_IDLE_MAX {
                lanes.extend(self.lane.take());
            }
        } else {
            let (subjects, caller) = (&self.shared.subjects, &self.shared.local.cage);
            let subject = match self.copy {
                Some(copy) => subjects.copy(&self.cage, copy, caller),
                None => subjects.cancel(&self.cage, caller),
            };
            self.shared.post(subject, None, self.number, Content::Cancel);
        }
    }
}
