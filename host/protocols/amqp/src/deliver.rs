//! What one delivery comes to: read, given to its handlers, replied to, and settled last. The outcome of a request decides
//! the verdict in `verdict` and nowhere else.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::mpsc;

use super::answer::Answer;
use super::config::{AmqpConfig, Format};
use super::events::Events;
use super::handlers::{Function, Handler};
use super::interface::Command;
use super::link::Live;
use super::message::{Incoming, Outcome};
use super::raw::{facts_of, properties_of, raw_reply};
use super::replies::{NotSent, Replies};
use super::settle::Verdict;
use super::value::check_frame;
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings;
use wasmcage_core::request::{Deadline, Facts, Payload, Reply, Request, RequestContext};
use wasmcage_core::task::Panic;
use wasmcage_protocol::InterfaceContext;

/// Before a message goes back to its queue through no fault of its own: without a pause it would be here again at once.
const RETURN_PAUSE: Duration = Duration::from_millis(500);
/// In a raw reply, the code of the error that kept the request from being answered.
const ERROR_HEADER: &str = "error";
/// That code, when a module's reply cannot be sent.
const INVALID_REPLY: &str = "invalid-reply";

/// The interface, as its deliveries see it.
pub(super) struct Receiver {
    pub(super) config: AmqpConfig,
    pub(super) cx: InterfaceContext,
    pub(super) events: Events,
    replies: Replies,
    pub(super) commands: mpsc::Sender<Command>,
    /// Those that the application is in now.
    pub(super) groups: Mutex<BTreeSet<String>>,
}

/// The one table of outcomes. `tries` counts those before and this one, as far as the broker tells.
fn verdict(error: &DispatchError, tries: u64, tries_max: u64) -> Verdict {
    match error {
        DispatchError::BadRequest(_)
        | DispatchError::NoSuchCage(_)
        | DispatchError::NotPermitted(_)
        | DispatchError::Refused(_) => Verdict::Reject,
        DispatchError::Failed(_)
        | DispatchError::Trap(_)
        | DispatchError::DeadlineExceeded(_)
        | DispatchError::Lost(_) => match tries < tries_max {
            true => Verdict::Requeue,
            false => Verdict::Reject,
        },
        // The configuration names module and function, not the sender: both may come.
        DispatchError::NoSuchModule(_)
        | DispatchError::NoSuchFunction(_)
        | DispatchError::Unreachable(_)
        | DispatchError::Overloaded(_)
        | DispatchError::Draining
        | DispatchError::Host(_) => Verdict::Return,
    }
}

/// What a requester is told, unless the request is to be answered by another try.
fn told(error: &DispatchError, context: &RequestContext) -> Option<Outcome> {
    let text = format!("{} ({})", error.public_text(), context.id);
    match error {
        DispatchError::Refused(_) | DispatchError::BadRequest(_) => Some(Outcome::Error(text)),
        DispatchError::NoSuchCage(_)
        | DispatchError::NotPermitted(_)
        | DispatchError::Failed(_)
        | DispatchError::Trap(_)
        | DispatchError::DeadlineExceeded(_)
        | DispatchError::Lost(_)
        | DispatchError::Host(_) => Some(Outcome::Exception { name: error.code().into(), text }),
        DispatchError::NoSuchModule(_)
        | DispatchError::NoSuchFunction(_)
        | DispatchError::Unreachable(_)
        | DispatchError::Overloaded(_)
        | DispatchError::Draining => None,
    }
}

impl Receiver {
    pub(super) fn new(
        config: AmqpConfig,
        cx: InterfaceContext,
        events: Events,
        replies: Replies,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        let groups = config.application.as_ref().map(|application| application.groups.clone()).unwrap_or_default();
        Self { config, cx, events, replies, commands, groups: Mutex::new(groups) }
    }

    /// A bug of the host's at a message of this queue.
    pub(super) fn panicked(&self, queue: &str, panic: &Panic) {
        let part = format!("interface {}, queue {queue}", self.cx.endpoint.interface);
        self.cx.tasks.report(&part, panic);
    }

    /// What becomes of the delivery.
    pub(super) async fn receive(&self, queue: &str, delivery: Delivery, live: &Live) -> Verdict {
        if let Some(refusal) = live.refusal(&delivery.properties) {
            self.events.message_refused(queue, refusal, self.config.broker.body_bytes_max);
            self.count(readings::Outcome::BadRequest);
            return Verdict::Reject;
        }
        let verdict = match self.config.format {
            Format::Raw => self.raw(delivery).await,
            Format::Postage => self.postage(delivery).await,
        };
        if verdict == Verdict::Return {
            tokio::select! {
                () = tokio::time::sleep(RETURN_PAUSE) => {}
                () = self.cx.drain.stopping() => {}
            }
        }
        verdict
    }

    async fn raw(&self, delivery: Delivery) -> Verdict {
        let tries = tries(&delivery);
        let properties = &delivery.properties;
        let context = self.context(properties);
        let action = if properties.reply_to().is_some() { "rpc" } else { "message" };
        let mut headers = facts_of(&delivery);
        headers.extend(properties_of(properties));
        let target = delivery.routing_key.to_string();
        let result = self.handle(context.clone(), action, target, headers, delivery.data.into()).await;
        let verdict =
            result.as_ref().map_or_else(|error| verdict(error, tries, self.config.attempts), |_| Verdict::Ack);
        let (verdict, (reply, body)) = match result {
            // Nobody wants its headers.
            Ok(_) if properties.reply_to().is_none() => return verdict,
            Ok(reply) => {
                match raw_reply(reply).and_then(|(reply, body)| Ok((self.checked(properties, reply)?, body))) {
                    Ok(sendable) => (verdict, sendable),
                    // It would be the same the next time.
                    Err(why) => {
                        self.events.invalid_reply(&why, &context.tail());
                        (Verdict::Reject, raw_error(INVALID_REPLY, "the server failed", &context))
                    }
                }
            }
            // Tried again, it will be answered then.
            Err(_) if matches!(verdict, Verdict::Requeue | Verdict::Return) => return verdict,
            Err(error) => (verdict, raw_error(error.code(), error.public_text(), &context)),
        };
        self.reply(properties, reply, &body, &context, verdict).await
    }

    fn checked(&self, request: &BasicProperties, reply: BasicProperties) -> Result<BasicProperties, String> {
        let reply = addressed(request, reply);
        check_frame(&reply, self.replies.frame_bytes_max()).map(|()| reply)
    }

    async fn postage(&self, delivery: Delivery) -> Verdict {
        let message = match Incoming::read(&delivery.data) {
            Ok(message) => message,
            Err(why) => {
                self.events.malformed(&why, delivery.data.len());
                self.count(readings::Outcome::BadRequest);
                return Verdict::Reject;
            }
        };
        let key = message.key();
        let handlers = self.config.handlers.as_ref().map(|handlers| handlers.of(&key)).unwrap_or_default();
        if handlers.is_empty()
            && let Some(verdict) = self.own(&key, &message, &delivery.properties).await
        {
            return verdict;
        }
        let is_known =
            matches!(&*message.category, "message" | "rpc") && (!message.is_rpc() || message.kind == "command");
        if !is_known || (handlers.is_empty() && self.config.handlers.is_some()) {
            self.events.unknown(&key);
            self.count(readings::Outcome::NotFound);
            return Verdict::Ack;
        }
        match message.is_rpc() {
            true => self.postage_rpc(&delivery, &message, handlers).await,
            false => self.postage_message(&delivery, &message, handlers).await,
        }
    }

    async fn postage_message(&self, delivery: &Delivery, message: &Incoming<'_>, handlers: &[Handler]) -> Verdict {
        let tries = tries(delivery);
        let judge = |result: Result<(), DispatchError>| {
            result.map_or_else(|error| verdict(&error, tries, self.config.attempts), |()| Verdict::Ack)
        };
        if self.config.handlers.is_none() {
            return judge(self.handle_message(delivery, message).await.map(drop));
        }
        let mut worst = Verdict::Ack;
        for handler in handlers {
            let context = self.context(&delivery.properties);
            let result = self.call(&context, handler, delivery, message).await.map(drop);
            if let Err(error) = &result
                && handlers.len() > 1
            {
                self.events.fan_out_failed(&handler.function.to_string(), error);
            }
            worst = judge(result).max(worst);
        }
        worst
    }

    async fn postage_rpc(&self, delivery: &Delivery, message: &Incoming<'_>, handlers: &[Handler]) -> Verdict {
        let context = self.context(&delivery.properties);
        let result = match handlers.last() {
            Some(handler) => self.call(&context, handler, delivery, message).await.map(|value| value.map(Answer::read)),
            None => {
                self.handle_message_in(context.clone(), delivery, message).await.map(|reply| Some(Answer::of(reply)))
            }
        };
        let answer = match result {
            Ok(Some(answer)) => answer.map_err(DispatchError::Failed),
            // A filter kept it from its handler.
            Ok(None) => return Verdict::Ack,
            Err(error) => Err(error),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                return match told(&error, &context) {
                    Some(outcome) => self.reply_with(outcome, &delivery.properties, &context, Verdict::Reject).await,
                    None => Verdict::Return,
                };
            }
        };
        let verdict = self.reply_with(answer.outcome, &delivery.properties, &context, Verdict::Ack).await;
        match answer.then {
            Some((function, argument)) if verdict == Verdict::Ack => self.go_on(&context, &function, &argument).await,
            _ => verdict,
        }
    }

    /// What a module does after its reply. The requester has that, so a failure is for the log, and for the dead letters.
    async fn go_on(&self, context: &Arc<RequestContext>, function: &Function, argument: &Value) -> Verdict {
        match self.function(context, function, &argument.to_string()).await {
            Ok(_) => Verdict::Ack,
            // The module named it: another try would answer once more, and end in the same way.
            Err(DispatchError::NoSuchModule(_) | DispatchError::NoSuchFunction(_)) => Verdict::Reject,
            Err(error) => verdict(&error, 0, 0),
        }
    }

    /// By the functions of a handler: its filters, then the function itself. None: a filter kept the message from it.
    async fn call(
        &self,
        context: &Arc<RequestContext>,
        handler: &Handler,
        delivery: &Delivery,
        message: &Incoming<'_>,
    ) -> Result<Option<Value>, DispatchError> {
        let given = match handler.whole {
            true => String::from_utf8_lossy(&delivery.data),
            false => Cow::Borrowed(message.content.get()),
        };
        let mut given = given.into_owned();
        for filter in &handler.filters {
            match self.function(context, filter, &given).await {
                Ok(changed) => given = changed,
                // What it says of the message; anything else is no word of a filter's, and a failure of its handler.
                Err(error @ DispatchError::Refused(_)) => {
                    self.events.filter_refused(&filter.to_string(), &error);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        let result = self.function(context, &handler.function, &given).await?;
        serde_json::from_str(&result).map(Some).map_err(|error| {
            DispatchError::Failed(format!("{} returned something that is no JSON: {error}", handler.function))
        })
    }

    async fn function(
        &self,
        context: &Arc<RequestContext>,
        function: &Function,
        argument: &str,
    ) -> Result<String, DispatchError> {
        let arguments = Payload::Json(format!("{{\"args\":[{argument}]}}"));
        match self.cx.dispatch.call(context.clone(), &function.module, &function.name, arguments).await? {
            Payload::Json(text) => Ok(text),
            Payload::Bytes(_) | Payload::Values(_) => {
                Err(DispatchError::Failed(format!("{function} returned bytes, where JSON was expected")))
            }
        }
    }

    async fn handle_message(&self, delivery: &Delivery, message: &Incoming<'_>) -> Result<Reply, DispatchError> {
        self.handle_message_in(self.context(&delivery.properties), delivery, message).await
    }

    async fn handle_message_in(
        &self,
        context: Arc<RequestContext>,
        delivery: &Delivery,
        message: &Incoming<'_>,
    ) -> Result<Reply, DispatchError> {
        let mut headers = facts_of(delivery);
        headers.push(("type".into(), message.kind.to_string()));
        headers.push(("content-type".into(), "application/json".into()));
        for (name, value) in &message.fingerprint {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            headers.push((format!("fingerprint.{}", name.to_lowercase()), value));
        }
        let body = Bytes::copy_from_slice(message.content.get().as_bytes());
        self.handle(context, &message.category, message.name.to_string(), headers, body).await
    }

    /// By the interface's module.
    async fn handle(
        &self,
        context: Arc<RequestContext>,
        action: &str,
        target: String,
        headers: Vec<(String, String)>,
        body: Bytes,
    ) -> Result<Reply, DispatchError> {
        let InterfaceContext { dispatch, endpoint, .. } = &self.cx;
        let Some(route) = dispatch.route()? else {
            self.events.no_module(&endpoint.module);
            self.count(readings::Outcome::NotFound);
            return Err(DispatchError::NoSuchModule(endpoint.module.to_string()));
        };
        let request = Request { context, action: action.to_owned(), target, headers, body, body_room: None };
        dispatch.handle(route, request).await
    }

    pub(super) async fn reply_with(
        &self,
        outcome: Outcome,
        request: &BasicProperties,
        context: &RequestContext,
        verdict: Verdict,
    ) -> Verdict {
        let body = outcome.message(&self.config.fingerprint);
        let json = BasicProperties::default().with_content_type("application/json".into());
        self.reply(request, json, &body, context, verdict).await
    }

    /// The verdict, once the reply is at the broker if one was asked for; otherwise the request is to be tried again.
    async fn reply(
        &self,
        request: &BasicProperties,
        reply: BasicProperties,
        body: &[u8],
        context: &RequestContext,
        verdict: Verdict,
    ) -> Verdict {
        let Some(reply_to) = request.reply_to() else { return verdict };
        // The request may have used up its own time.
        let deadline = context.deadline.max(Deadline::after(RETURN_PAUSE));
        match self.replies.send(reply_to, addressed(request, reply), body, deadline).await {
            Ok(()) => verdict,
            Err(NotSent::Never(why)) => {
                self.events.invalid_reply(&why, &context.tail());
                Verdict::Reject
            }
            Err(NotSent::Later(why)) => {
                self.events.reply_failed(&why);
                Verdict::Return
            }
        }
    }

    pub(super) fn context(&self, properties: &BasicProperties) -> Arc<RequestContext> {
        let endpoint = &self.cx.endpoint;
        let mut facts = Facts::default();
        // The broker has checked it.
        if let Some(user) = properties.user_id() {
            facts.set(Facts::USERNAME, user.as_str());
        }
        let interface = endpoint.interface.clone();
        Arc::new(RequestContext::new(interface, endpoint.protocol, endpoint.timeout(), Arc::new(facts)))
    }

    /// A message that no module saw.
    pub(super) fn count(&self, outcome: readings::Outcome) {
        let readings = &self.cx.endpoint.readings;
        readings.begin();
        readings.end(outcome, Duration::ZERO, Duration::ZERO);
    }
}

/// A reply to this request: what it is known by, and as durable.
fn addressed(request: &BasicProperties, mut reply: BasicProperties) -> BasicProperties {
    if let Some(correlation) = request.correlation_id() {
        reply = reply.with_correlation_id(correlation.clone());
    }
    match request.delivery_mode() {
        Some(mode) => reply.with_delivery_mode(*mode),
        None => reply,
    }
}

/// A raw reply that tells why there is no other.
fn raw_error(code: &str, text: &str, context: &RequestContext) -> (BasicProperties, Bytes) {
    let mut table = FieldTable::default();
    table.insert(ERROR_HEADER.into(), AMQPValue::LongString(code.into()));
    let properties = BasicProperties::default().with_content_type("text/plain".into()).with_headers(table);
    (properties, format!("{text} ({})", context.id).into())
}

/// This try and those before it. Quorum queues count; other queues tell whether there was one.
fn tries(delivery: &Delivery) -> u64 {
    let headers = delivery.properties.headers().as_ref();
    let counted = headers.and_then(|headers| headers.inner().get("x-delivery-count")).and_then(|count| match count {
        AMQPValue::LongLongInt(count) => u64::try_from(*count).ok(),
        AMQPValue::LongInt(count) => u64::try_from(*count).ok(),
        AMQPValue::LongUInt(count) => Some((*count).into()),
        AMQPValue::ShortShortUInt(count) => Some((*count).into()),
        _ => None,
    });
    counted.unwrap_or_else(|| delivery.redelivered.into()).saturating_add(1)
}
