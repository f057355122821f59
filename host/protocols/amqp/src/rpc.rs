//! Asking for a reply: sent again when none comes, within the caller's deadline. Each request has a reply queue of its own, as in
//! Postage: most programs repeat no correlation id, so that nothing but the queue tells whose a reply is. Replies come over the
//! broker's direct reply-to; to a queue where the broker has no such thing; or through an exchange.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};

use super::guard::Refusal;
use super::link::Live;
use super::operation::Outgoing;
use super::producer::{failed, publish};
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Phase, ResourceError};

const DIRECT: &str = "amq.rabbitmq.reply-to";

/// Where the replies of a resource come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReplyPlace {
    /// Over the broker's direct reply-to: it makes up a name at each beginning, and forgets it at the end.
    Direct,
    /// To a queue that is declared for one request.
    Queue,
    /// To such a queue, through this exchange, whose key is the queue's name.
    Exchange(ShortString),
}

/// Where the replies to one request come. Ended, whatever still comes for it goes nowhere.
pub(super) struct ReplyQueue {
    name: ShortString,
    replies: Consumer,
    correlation: ShortString,
}

impl ReplyQueue {
    /// `number` tells the requests of a channel apart.
    ///
    /// # Errors
    /// The broker's; the channel is then closed.
    pub(super) async fn open(channel: &Channel, place: &ReplyPlace, number: u64) -> lapin::Result<Self> {
        let name = match place {
            ReplyPlace::Direct => DIRECT.into(),
            ReplyPlace::Queue | ReplyPlace::Exchange(_) => declare(channel, place).await?,
        };
        let is_direct = *place == ReplyPlace::Direct;
        // Whether the broker has direct reply-to is seen at the first request of a channel.
        let nowait = is_direct && number > 1;
        let options = BasicConsumeOptions { no_ack: true, exclusive: !is_direct, nowait, ..Default::default() };
        let tag = format!("reply-{number}").into();
        let replies = channel.basic_consume(name.clone(), tag, options, FieldTable::default()).await?;
        Ok(Self { name, replies, correlation: number.to_string().into() })
    }

    /// Takes no reply any more. A queue goes with its last consumer.
    pub(super) async fn end(self, channel: &Channel) -> lapin::Result<()> {
        channel.basic_cancel(self.replies.tag(), BasicCancelOptions { nowait: true }).await
    }

    /// # Errors
    /// `unroutable` and others of publishing; `timed-out` when no reply came to any try; `too-large`.
    pub(super) async fn ask(
        &mut self,
        channel: &Channel,
        live: &Live,
        request: Outgoing,
        timeout: Duration,
        retries: u32,
        deadline: Deadline,
    ) -> Result<Delivery, ResourceError> {
        let properties = request.properties.with_reply_to(self.name.clone());
        let properties = properties.with_correlation_id(self.correlation.clone());
        let request = [Outgoing { properties, ..request }];
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

    async fn next(&mut self, live: &Live, deadline: Deadline) -> Result<Option<Delivery>, ResourceError> {
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
            // The queue is this request's alone; a reply that names another one is somebody's mistake.
            if delivery.properties.correlation_id().as_ref().is_none_or(|id| *id == self.correlation) {
                return Ok(Some(delivery));
            }
        }
    }
}

/// A queue for replies that goes with its connection, and with its last consumer.
pub(super) async fn declare(channel: &Channel, place: &ReplyPlace) -> lapin::Result<ShortString> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let name = channel.queue_declare("".into(), options, FieldTable::default()).await?.name().clone();
    if let ReplyPlace::Exchange(exchange) = place {
        let options = QueueBindOptions::default();
        channel.queue_bind(name.clone(), exchange.clone(), name.clone(), options, FieldTable::default()).await?;
    }
    Ok(name)
}

/// # Errors
/// `too-large`: the guard kept it out.
pub(super) fn check_length(live: &Live, delivery: &Delivery) -> Result<(), ResourceError> {
    let text = match live.refusal(&delivery.properties) {
        None => return Ok(()),
        Some(Refusal::TooLong { bytes }) => format!("the reply has {bytes} bytes, which is more than max_body_bytes"),
        Some(Refusal::Unreadable) => "the reply's properties cannot be read".to_owned(),
    };
    Err(ResourceError::fatal(Phase::Execute, ResourceError::TOO_LARGE, text))
}
