//! Requests that wait for a reply. A request is sent again if no reply comes in time, until the caller's deadline. Each
//! has a reply queue of its own, as in Postage: most programs do not repeat a correlation id, so only the queue tells
//! whose a reply is. Replies come over the broker's direct reply-to, to a queue if the broker has no direct reply-to,
//! or through an exchange.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};

use super::guard::WithheldReason;
use super::link::LiveConnection;
use super::operation::OutgoingMessage;
use super::producer::{failed, publish};
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Phase, ResourceError};

const DIRECT: &str = "amq.rabbitmq.reply-to";

/// How replies reach a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReplyAddress {
    /// Replies come over the broker's direct reply-to, a pseudo-queue that exists as long as its consumer.
    Direct,
    /// Replies come to a queue that is declared for one request.
    Queue,
    /// Replies come to such a queue through this exchange, to which the queue is bound by its name.
    Exchange(ShortString),
}

/// The replies to one request. Those that come after `close` are lost.
pub(super) struct ReplyQueue {
    name: ShortString,
    replies: Consumer,
    correlation: ShortString,
}

impl ReplyQueue {
    /// Opens the reply queue of a channel's request with this number.
    ///
    /// # Errors
    /// The broker refuses the queue, and closes the channel.
    pub(super) async fn open(channel: &Channel, address: &ReplyAddress, number: u64) -> lapin::Result<Self> {
        let name = match address {
            ReplyAddress::Direct => DIRECT.into(),
            ReplyAddress::Queue | ReplyAddress::Exchange(_) => declare(channel, address).await?,
        };
        let is_direct = *address == ReplyAddress::Direct;
        // The first request of a channel waits for the answer, to learn whether the broker has direct reply-to.
        let nowait = is_direct && number > 1;
        let options = BasicConsumeOptions { no_ack: true, exclusive: !is_direct, nowait, ..Default::default() };
        let tag = format!("reply-{number}").into();
        let replies = channel.basic_consume(name.clone(), tag, options, FieldTable::default()).await?;
        Ok(Self { name, replies, correlation: number.to_string().into() })
    }

    /// Cancels the consumer. The broker deletes a queue with its last consumer.
    pub(super) async fn close(self, channel: &Channel) -> lapin::Result<()> {
        channel.basic_cancel(self.replies.tag(), BasicCancelOptions { nowait: true }).await
    }

    /// Sends the request up to `retries + 1` times and returns the first reply.
    ///
    /// # Errors
    /// Those of `producer::publish`; `timed-out` if no attempt got a reply; `too-large`.
    pub(super) async fn request(
        &mut self,
        channel: &Channel,
        live: &LiveConnection,
        request: OutgoingMessage,
        timeout: Duration,
        retries: u32,
        deadline: Deadline,
    ) -> Result<Delivery, ResourceError> {
        let properties = request.properties.with_reply_to(self.name.clone());
        let properties = properties.with_correlation_id(self.correlation.clone());
        let request = [OutgoingMessage { properties, ..request }];
        for _ in 0..=retries {
            publish(channel, live, &request, deadline, Phase::Execute).await?;
            match self.next(live, deadline.within(timeout)).await? {
                Some(delivery) => return Ok(delivery),
                None if deadline.passed() => break,
                None => {}
            }
        }
        let text =
            format!("TimeoutError: no reply came, {} tries of {} ms", u64::from(retries) + 1, timeout.as_millis());
        Err(ResourceError::fatal(Phase::Execute, ResourceError::TIMED_OUT, text))
    }

    async fn next(&mut self, live: &LiveConnection, deadline: Deadline) -> Result<Option<Delivery>, ResourceError> {
        loop {
            let next = tokio::time::timeout_at(deadline.instant(), self.replies.next()).await;
            let delivery = match next {
                Err(_) => return Ok(None),
                Ok(Some(Ok(delivery))) => delivery,
                Ok(Some(Err(error))) => return Err(failed(&error, Phase::Execute)),
                Ok(None) => {
                    let text = "the reply queue is gone";
                    return Err(ResourceError::fatal(Phase::Execute, ResourceError::DISCONNECTED, text));
                }
            };
            check_length(live, &delivery)?;
            // No other request uses this queue, so a reply with another correlation id was sent by mistake.
            if delivery.properties.correlation_id().as_ref().is_none_or(|id| *id == self.correlation) {
                return Ok(Some(delivery));
            }
        }
    }
}

/// Declares a reply queue. The broker deletes it with its connection, or with its last consumer.
pub(super) async fn declare(channel: &Channel, address: &ReplyAddress) -> lapin::Result<ShortString> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let name = channel.queue_declare("".into(), options, FieldTable::default()).await?.name().clone();
    if let ReplyAddress::Exchange(exchange) = address {
        let options = QueueBindOptions::default();
        channel.queue_bind(name.clone(), exchange.clone(), name.clone(), options, FieldTable::default()).await?;
    }
    Ok(name)
}

/// # Errors
/// `too-large`: the guard withheld the reply.
pub(super) fn check_length(live: &LiveConnection, delivery: &Delivery) -> Result<(), ResourceError> {
    let text = match live.withheld_reason(&delivery.properties) {
        None => return Ok(()),
        Some(WithheldReason::TooLong { bytes }) => {
            format!("the reply has {bytes} bytes, which is more than max_body_bytes")
        }
        Some(WithheldReason::Unreadable) => "the reply's properties cannot be read".to_owned(),
    };
    Err(ResourceError::fatal(Phase::Execute, ResourceError::TOO_LARGE, text))
}
