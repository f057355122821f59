//! A program at the other end of a broker, by the client library alone: it publishes, asks and looks into queues.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};

use crate::RabbitMq;

const REPLY_WITHIN: Duration = Duration::from_secs(30);

/// One channel of one connection.
pub struct Peer {
    pub channel: Channel,
    _connection: Connection,
}

impl Peer {
    pub async fn of(broker: &RabbitMq) -> Self {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(&broker.url(), properties).await.expect("the broker takes a client");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { channel, _connection: connection }
    }

    /// Publishes a message, and returns when the broker has confirmed it.
    pub async fn publish(&self, exchange: &str, key: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions::default();
        let sent = self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await;
        sent.expect("it is sent").await.expect("it is confirmed");
    }

    /// Sends a Postage command.
    pub async fn command(&self, exchange: &str, key: &str, name: &str, parameters: Value) {
        self.publish(exchange, key, &postage("message", name, parameters), BasicProperties::default()).await;
    }

    /// Sends a Postage rpc; returns the content of its reply, and the correlation id that came with it.
    pub async fn ask(&self, exchange: &str, key: &str, name: &str, parameters: Value) -> (Value, Option<String>) {
        let reply = self.ask_raw(exchange, key, &postage("rpc", name, parameters), BasicProperties::default()).await;
        let body: Value = serde_json::from_slice(&reply.data).expect("a reply in JSON");
        assert_eq!((&body["type"], &body["version"]), (&json!("result"), &json!("2")));
        (body["content"].clone(), reply.properties.correlation_id().as_ref().map(ToString::to_string))
    }

    pub async fn ask_raw(&self, exchange: &str, key: &str, body: &[u8], properties: BasicProperties) -> Delivery {
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = self.channel.queue_declare("".into(), options, FieldTable::default()).await.expect("a reply queue");
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumed =
            self.channel.basic_consume(queue.name().clone(), "".into(), options, FieldTable::default()).await;
        let mut replies = consumed.expect("replies can be consumed");
        let properties = properties.with_reply_to(queue.name().clone()).with_correlation_id("7".into());
        self.publish(exchange, key, body, properties).await;
        let reply = tokio::time::timeout(REPLY_WITHIN, replies.next()).await;
        reply.expect("a reply within the time").expect("a reply").expect("a reply")
    }

    /// Takes the next message of a queue, if there is one.
    pub async fn take(&self, queue: &str) -> Option<Delivery> {
        let got = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await;
        got.expect("the queue is there").map(|message| message.delivery)
    }

    /// Takes the next message of a queue as soon as there is one.
    pub async fn next(&self, queue: &str) -> Delivery {
        loop {
            if let Some(message) = self.take(queue).await {
                return message;
            }
        }
    }

    /// The number of messages in a queue; none when there is no such queue, and then this peer's channel is closed.
    pub async fn waiting(&self, queue: &str) -> Option<u32> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = self.channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        declared.ok().map(|queue| queue.message_count())
    }

    pub async fn queue(&self, name: &str, arguments: FieldTable) {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(name.into(), options, arguments).await.expect("a queue");
    }

    /// A durable direct exchange, and the queue bound to it.
    pub async fn bound(&self, exchange: &str, queue: &str, key: &str) {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let declared =
            self.channel.exchange_declare(exchange.into(), ExchangeKind::Direct, options, FieldTable::default());
        declared.await.expect("an exchange");
        self.queue(queue, FieldTable::default()).await;
        let options = QueueBindOptions::default();
        let bound = self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
        bound.await.expect("a binding");
    }
}

/// A command as Postage writes it.
pub fn postage(category: &str, name: &str, parameters: Value) -> Vec<u8> {
    let fingerprint = json!({"name": "peer", "type": "test", "pid": "1", "host": "h", "user": "u", "vhost": "/"});
    let message = json!({
        "type": "command", "name": name, "category": category, "version": "2", "fingerprint": fingerprint,
        "content": {"parameters": parameters}, "_reserved": {},
    });
    message.to_string().into_bytes()
}
