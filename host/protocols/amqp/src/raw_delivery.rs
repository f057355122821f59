//! Deliveries of format "raw": the message is one request to the interface's `handler` module, and the module's reply
//! goes to `reply_to`. The mapping of properties and headers is in `raw.rs`.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};

use super::deliver::DeliveryReceiver;
use super::raw::{delivery_headers, property_headers, raw_reply};
use super::verdict::{DeliveryVerdict, attempt};
use wasmcage_core::request::RequestContext;

/// The header of a raw reply with the code of the error that kept the request from being answered.
const ERROR_HEADER: &str = "error";
/// The code when a module's reply cannot be sent.
const INVALID_REPLY: &str = "invalid-reply";

impl DeliveryReceiver {
    pub(super) async fn receive_raw(&self, delivery: Delivery) -> DeliveryVerdict {
        let may_retry = attempt(&delivery) < self.config.attempts;
        let properties = &delivery.properties;
        let context = self.context(properties);
        let action = if properties.reply_to().is_some() { "rpc" } else { "message" };
        let mut headers = delivery_headers(&delivery);
        headers.extend(property_headers(properties));
        let target = delivery.routing_key.to_string();
        let result = self.handle(context.clone(), action, target, headers, delivery.data.into()).await;
        let verdict =
            result.as_ref().map_or_else(|error| DeliveryVerdict::on_error(error, may_retry), |_| DeliveryVerdict::Ack);
        let (verdict, (reply, body)) = match result {
            Ok(_) if properties.reply_to().is_none() => return verdict,
            Ok(reply) => {
                match raw_reply(reply).and_then(|(reply, body)| Ok((self.checked_reply(properties, reply)?, body))) {
                    Ok(sendable) => (verdict, sendable),
                    // Another attempt would most likely return the same reply.
                    Err(why) => {
                        self.events.invalid_reply(&why, &context.tail());
                        (DeliveryVerdict::Reject, raw_error(INVALID_REPLY, "the server failed", &context))
                    }
                }
            }
            // The next attempt answers the requester.
            Err(_) if matches!(verdict, DeliveryVerdict::Requeue | DeliveryVerdict::Return) => return verdict,
            Err(error) => (verdict, raw_error(error.code(), error.public_text(), &context)),
        };
        self.reply(properties, reply, &body, &context, verdict).await
    }
}

/// A raw reply that reports an error.
fn raw_error(code: &str, text: &str, context: &RequestContext) -> (BasicProperties, Bytes) {
    let mut table = FieldTable::default();
    table.insert(ERROR_HEADER.into(), AMQPValue::LongString(code.into()));
    let properties = BasicProperties::default().with_content_type("text/plain".into()).with_headers(table);
    (properties, format!("{text} ({})", context.id).into())
}
