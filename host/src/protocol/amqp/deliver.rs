//! What one delivery comes to: read, given to its handlers, replied to, and settled last. The outcome of a request decides
//! the verdict in `verdict` and nowhere else.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::Value;
use tokio::sync::mpsc;

use super::config::{AmqpConfig, Format};
use super::events::Events;
use super::handlers::{Function, Handler};
use super::interface::Command;
use super::link::Live;
use super::message::{Incoming, Outcome};
use super::replies::Replies;
use super::settle::Verdict;
use crate::dispatcher::DispatchError;
use crate::protocol::InterfaceContext;
use crate::readings;
use crate::request::{Facts, Payload, Reply, Request, RequestContext};

/// Before a message goes back to its queue through no fault of its own: without a pause it would be here again at once.
const RETURN_PAUSE: Duration = Duration::from_millis(500);
/// A reply's header that names the exception of a reply with a status of 500 or more.
const EXCEPTION_HEADER: &str = "exception";
/// In a raw reply, the code of the error that kept the request from being answered.
const ERROR_HEADER: &str = "error";

/// The interface, as its deliveries see it.
pub(super) struct Receiver {
    pub(super) config: AmqpConfig,
    pub(super) cx: InterfaceContext,
    pub(super) events: Events,
    replies: Replies,
    commands: mpsc::Sender<Command>,
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
        Self { config, cx, events, replies, commands }
    }

    /// The delivery's tag, and what becomes of it.
    pub(super) async fn receive(
        self: Arc<Self>,
        queue: Arc<str>,
        delivery: Delivery,
        channel: u16,
        live: Arc<Live>,
    ) -> (u64, Verdict) {
        let tag = delivery.delivery_tag;
        if let Some(refusal) = live.refused.take(channel, tag) {
            self.events.message_refused(&queue, refusal, self.config.broker.body_bytes_max);
            self.count(readings::Outcome::BadRequest);
            return (tag, Verdict::Reject);
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
        (tag, verdict)
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
        let (reply, body) = match result {
            Ok(reply) => raw_reply(reply),
            // Tried again, it will be answered then.
            Err(_) if matches!(verdict, Verdict::Requeue | Verdict::Return) => return verdict,
            Err(error) => {
                let mut table = FieldTable::default();
                table.insert(ERROR_HEADER.into(), AMQPValue::LongString(error.code().into()));
                let text = format!("{} ({})", error.public_text(), context.id);
                (BasicProperties::default().with_content_type("text/plain".into()).with_headers(table), text.into())
            }
        };
        self.reply(properties, reply, &body, &context, verdict).await
    }

    async fn postage(&self, delivery: Delivery) -> Verdict {
        let message = match Incoming::read(&delivery.data) {
            Ok(message) => message,
            Err(why) => {
                self.events.malformed(&why, &delivery.data);
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
            Some(handler) => {
                self.call(&context, handler, delivery, message).await.map(|value| value.map(Outcome::Success))
            }
            None => {
                self.handle_message_in(context.clone(), delivery, message).await.map(|reply| Some(outcome_of(reply)))
            }
        };
        let (outcome, verdict) = match result {
            Ok(Some(outcome)) => (outcome, Verdict::Ack),
            // A filter kept it from its handler.
            Ok(None) => return Verdict::Ack,
            Err(error) => match told(&error, &context) {
                Some(outcome) => (outcome, Verdict::Reject),
                None => return Verdict::Return,
            },
        };
        self.reply_with(outcome, &delivery.properties, &context, verdict).await
    }

    /// What every Postage program, or every GenericApplication, does by itself. None: not such a command.
    async fn own(&self, key: &str, message: &Incoming<'_>, properties: &BasicProperties) -> Option<Verdict> {
        let command = match key {
            "message/command/quit" if self.config.defaults => Command::Quit,
            "message/command/restart" if self.config.defaults => Command::Restart,
            "rpc/command/ping" if self.config.application.is_some() => {
                let fingerprint = serde_json::to_value(&self.config.fingerprint).unwrap_or_default();
                let context = self.context(properties);
                return Some(self.reply_with(Outcome::Success(fingerprint), properties, &context, Verdict::Ack).await);
            }
            "message/command/join_group" if self.config.application.is_some() => Command::Join(group_of(message)?),
            "message/command/leave_group" if self.config.application.is_some() => Command::Leave(group_of(message)?),
            _ => return None,
        };
        self.events.told_to(key);
        // The interface is ending when nobody takes it.
        let _ = self.commands.send(command).await;
        Some(Verdict::Ack)
    }

    /// By the functions of a handler: its filters, then the function itself. None: a filter kept the message from it.
    async fn call(
        &self,
        context: &Arc<RequestContext>,
        handler: &Handler,
        delivery: &Delivery,
        message: &Incoming<'_>,
    ) -> Result<Option<Value>, DispatchError> {
        let given = match self.config.whole {
            true => String::from_utf8_lossy(&delivery.data),
            false => Cow::Borrowed(message.content.get()),
        };
        let mut given = given.into_owned();
        for filter in &handler.filters {
            match self.function(context, filter, &given).await {
                Ok(changed) => given = changed,
                Err(error) if verdict(&error, 0, 0) == Verdict::Return => return Err(error),
                Err(error) => {
                    self.events.filter_failed(&filter.to_string(), &error);
                    return Ok(None);
                }
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
        let InterfaceContext { dispatcher, endpoint, .. } = &self.cx;
        match dispatcher.call_for(endpoint, context.clone(), &function.module, &function.name, arguments).await? {
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
        let InterfaceContext { dispatcher, endpoint, .. } = &self.cx;
        let Some(route) = endpoint.route()? else {
            self.events.no_module(&endpoint.module);
            self.count(readings::Outcome::NotFound);
            return Err(DispatchError::NoSuchModule(endpoint.module.to_string()));
        };
        let request = Request { context, action: action.to_owned(), target, headers, body, body_room: None };
        dispatcher.handle(endpoint, route, request).await
    }

    async fn reply_with(
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
        mut reply: BasicProperties,
        body: &[u8],
        context: &RequestContext,
        verdict: Verdict,
    ) -> Verdict {
        let Some(reply_to) = request.reply_to() else { return verdict };
        if let Some(correlation) = request.correlation_id() {
            reply = reply.with_correlation_id(correlation.clone());
        }
        // As durable as the request.
        if let Some(mode) = request.delivery_mode() {
            reply = reply.with_delivery_mode(*mode);
        }
        // The request may have used up its own time.
        let deadline = context.deadline.max(crate::request::Deadline::after(RETURN_PAUSE));
        match self.replies.send(reply_to, reply, body, deadline).await {
            Ok(()) => verdict,
            Err(why) => {
                self.events.reply_failed(&why);
                Verdict::Return
            }
        }
    }

    fn context(&self, properties: &BasicProperties) -> Arc<RequestContext> {
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
    fn count(&self, outcome: readings::Outcome) {
        let readings = &self.cx.endpoint.readings;
        readings.begin();
        readings.end(outcome, Duration::ZERO, Duration::ZERO);
    }
}

fn group_of(message: &Incoming<'_>) -> Option<String> {
    let content: Value = serde_json::from_str(message.content.get()).ok()?;
    content["parameters"]["group_name"].as_str().map(str::to_owned)
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
    1 + counted.unwrap_or_else(|| delivery.redelivered.into())
}

fn facts_of(delivery: &Delivery) -> Vec<(String, String)> {
    let mut headers = vec![
        ("exchange".to_owned(), delivery.exchange.to_string()),
        ("routing-key".to_owned(), delivery.routing_key.to_string()),
    ];
    if delivery.redelivered {
        headers.push(("redelivered".into(), "true".into()));
    }
    headers
}

/// A raw message's properties; its own headers as `header.NAME`.
fn properties_of(properties: &BasicProperties) -> Vec<(String, String)> {
    let texts = [
        ("content-type", properties.content_type()),
        ("content-encoding", properties.content_encoding()),
        ("correlation-id", properties.correlation_id()),
        ("reply-to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("message-id", properties.message_id()),
        ("type", properties.kind()),
        ("user-id", properties.user_id()),
        ("app-id", properties.app_id()),
    ];
    let texts = texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.as_ref()?.to_string())));
    let numbers = [
        ("delivery-mode", properties.delivery_mode().map(u64::from)),
        ("priority", properties.priority().map(u64::from)),
        ("timestamp", *properties.timestamp()),
    ];
    let numbers = numbers.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_string())));
    let own = properties.headers().iter().flat_map(|headers| headers.inner());
    let own = own.map(|(name, value)| (format!("header.{}", name.as_str().to_lowercase()), text_of(value)));
    texts.chain(numbers).chain(own).collect()
}

fn text_of(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::Void => String::new(),
        AMQPValue::ByteArray(_) | AMQPValue::DecimalValue(_) | AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) => {
            serde_json::to_string(value).unwrap_or_default()
        }
    }
}

/// A module's answer to an rpc: by its status a value, an error or an exception.
fn outcome_of(reply: Reply) -> Outcome {
    let text = || String::from_utf8_lossy(&reply.body).into_owned();
    match reply.status {
        400..=499 => Outcome::Error(text()),
        500.. => {
            let name = reply.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(EXCEPTION_HEADER));
            Outcome::Exception { name: name.map_or_else(|| "Error".into(), |(_, name)| name.clone()), text: text() }
        }
        _ if reply.body.is_empty() => Outcome::Success(Value::Null),
        _ => Outcome::Success(serde_json::from_slice(&reply.body).unwrap_or_else(|_| text().into())),
    }
}

fn raw_reply(reply: Reply) -> (BasicProperties, Bytes) {
    let (mut properties, mut table) = (BasicProperties::default(), FieldTable::default());
    for (name, value) in reply.headers {
        match name.eq_ignore_ascii_case("content-type") {
            true => properties = properties.with_content_type(short(&value)),
            false => {
                table.insert(short(&name), AMQPValue::LongString(value.into()));
            }
        }
    }
    if reply.status != 200 {
        table.insert("status".into(), AMQPValue::LongLongInt(reply.status.into()));
    }
    (properties.with_headers(table), reply.body)
}

/// Short strings have at most 255 bytes; the rest is cut.
fn short(text: &str) -> ShortString {
    text[..text.floor_char_boundary(255)].into()
}
