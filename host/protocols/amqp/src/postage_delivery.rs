//! Deliveries of format "postage": each message goes to the functions that the table `handlers` names for its key, or
//! to the interface's `handler` module if there is no such table. An RPC is answered by its only handler.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use serde_json::Value;

use super::answer::HandlerAnswer;
use super::deliver::DeliveryReceiver;
use super::handlers::{Handler, ModuleFunction};
use super::message::{PostageMessage, ReplyContent};
use super::raw::delivery_headers;
use super::verdict::{DeliveryVerdict, attempt, error_reply};
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings;
use wasmcage_core::request::{Payload, Reply, RequestContext};

impl DeliveryReceiver {
    pub(super) async fn receive_postage(&self, delivery: Delivery) -> DeliveryVerdict {
        let message = match PostageMessage::read(&delivery.data) {
            Ok(message) => message,
            Err(why) => {
                self.events.malformed(&why, delivery.data.len());
                self.count(readings::Outcome::BadRequest);
                return DeliveryVerdict::Reject;
            }
        };
        let key = message.key();
        let handlers = self.config.handlers.as_ref().map(|handlers| handlers.of(&key)).unwrap_or_default();
        if handlers.is_empty()
            && let Some(verdict) = self.builtin_command(&key, &message, &delivery.properties).await
        {
            return verdict;
        }
        let is_known =
            matches!(&*message.category, "message" | "rpc") && (!message.is_rpc() || message.kind == "command");
        if !is_known || (handlers.is_empty() && self.config.handlers.is_some()) {
            self.events.unknown(&key);
            self.count(readings::Outcome::NotFound);
            return DeliveryVerdict::Ack;
        }
        match message.is_rpc() {
            true => self.handle_rpc(&delivery, &message, handlers).await,
            false => self.handle_message(&delivery, &message, handlers).await,
        }
    }

    /// Has all handlers handle the message, one after the other, whatever the ones before returned.
    async fn handle_message(
        &self,
        delivery: &Delivery,
        message: &PostageMessage<'_>,
        handlers: &[Handler],
    ) -> DeliveryVerdict {
        let may_retry = attempt(delivery) < self.config.attempts;
        let verdict = |result: Result<(), DispatchError>| {
            result.map_or_else(|error| DeliveryVerdict::on_error(&error, may_retry), |()| DeliveryVerdict::Ack)
        };
        if self.config.handlers.is_none() {
            let context = self.context(&delivery.properties);
            return verdict(self.call_module(context, delivery, message).await.map(drop));
        }
        let mut worst = DeliveryVerdict::Ack;
        for handler in handlers {
            let context = self.context(&delivery.properties);
            let result = self.call_handler(&context, handler, delivery, message).await.map(drop);
            if let Err(error) = &result
                && handlers.len() > 1
            {
                self.events.fan_out_failed(&handler.function.to_string(), error);
            }
            worst = verdict(result).max(worst);
        }
        worst
    }

    async fn handle_rpc(
        &self,
        delivery: &Delivery,
        message: &PostageMessage<'_>,
        handlers: &[Handler],
    ) -> DeliveryVerdict {
        let context = self.context(&delivery.properties);
        let result = match handlers.last() {
            Some(handler) => {
                let value = self.call_handler(&context, handler, delivery, message).await;
                value.map(|value| value.map(HandlerAnswer::of_value))
            }
            None => {
                let reply = self.call_module(context.clone(), delivery, message).await;
                reply.map(|reply| Some(HandlerAnswer::of_reply(reply)))
            }
        };
        let answer = match result {
            Ok(Some(answer)) => answer.map_err(DispatchError::Failed),
            // A filter refused the message.
            Ok(None) => return DeliveryVerdict::Ack,
            Err(error) => Err(error),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                return match error_reply(&error, &context) {
                    Some(content) => {
                        self.reply_with(content, &delivery.properties, &context, DeliveryVerdict::Reject).await
                    }
                    None => DeliveryVerdict::Return,
                };
            }
        };
        let verdict = self.reply_with(answer.content, &delivery.properties, &context, DeliveryVerdict::Ack).await;
        match answer.follow_up {
            Some((function, argument)) if verdict == DeliveryVerdict::Ack => {
                self.follow_up(&context, &function, &argument).await
            }
            _ => verdict,
        }
    }

    /// Calls the function that a handler named to be called after its reply. The requester has that reply already, so a
    /// failure only shows in the log and among the dead letters.
    async fn follow_up(
        &self,
        context: &Arc<RequestContext>,
        function: &ModuleFunction,
        argument: &Value,
    ) -> DeliveryVerdict {
        match self.call_function(context, function, &argument.to_string()).await {
            Ok(_) => DeliveryVerdict::Ack,
            // The module named the function: another attempt would send a second reply and fail in the same way.
            Err(DispatchError::NoSuchModule(_) | DispatchError::NoSuchFunction(_)) => DeliveryVerdict::Reject,
            Err(error) => DeliveryVerdict::on_error(&error, false),
        }
    }

    /// Calls a handler's filters, then its function, and returns the function's result; none if a filter refused the
    /// message.
    async fn call_handler(
        &self,
        context: &Arc<RequestContext>,
        handler: &Handler,
        delivery: &Delivery,
        message: &PostageMessage<'_>,
    ) -> Result<Option<Value>, DispatchError> {
        let argument = match handler.whole {
            true => String::from_utf8_lossy(&delivery.data),
            false => Cow::Borrowed(message.content.get()),
        };
        let mut argument = argument.into_owned();
        for filter in &handler.filters {
            match self.call_function(context, filter, &argument).await {
                Ok(changed) => argument = changed,
                // Only this error is a filter's answer about the message; any other is a failure of the handler.
                Err(error @ DispatchError::Refused(_)) => {
                    self.events.filter_refused(&filter.to_string(), &error);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        let result = self.call_function(context, &handler.function, &argument).await?;
        serde_json::from_str(&result).map(Some).map_err(|error| {
            DispatchError::Failed(format!("{} returned something that is no JSON: {error}", handler.function))
        })
    }

    /// Calls a function with one JSON argument and returns its result as JSON.
    async fn call_function(
        &self,
        context: &Arc<RequestContext>,
        function: &ModuleFunction,
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

    /// Calls the interface's `handler` module.
    async fn call_module(
        &self,
        context: Arc<RequestContext>,
        delivery: &Delivery,
        message: &PostageMessage<'_>,
    ) -> Result<Reply, DispatchError> {
        let mut headers = delivery_headers(delivery);
        headers.push(("type".into(), message.kind.to_string()));
        headers.push(("content-type".into(), "application/json".into()));
        for (name, value) in &message.fingerprint {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            headers.push((format!("fingerprint.{}", name.to_lowercase()), value));
        }
        let body = Bytes::copy_from_slice(message.content.get().as_bytes());
        self.handle(context, &message.category, message.name.to_string(), headers, body).await
    }

    /// Sends a Postage reply; see `reply`.
    pub(super) async fn reply_with(
        &self,
        content: ReplyContent,
        request: &BasicProperties,
        context: &RequestContext,
        verdict: DeliveryVerdict,
    ) -> DeliveryVerdict {
        let body = content.message(&self.config.fingerprint);
        let json = BasicProperties::default().with_content_type("application/json".into());
        self.reply(request, json, &body, context, verdict).await
    }
}
