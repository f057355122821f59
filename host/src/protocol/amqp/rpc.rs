//! Asking for a reply: sent again when none comes, within the caller's deadline. Replies come over the broker's direct
//! reply-to, or to a queue of the channel's own where the broker has no such thing.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};

use super::guard::Refusal;
use super::link::Live;
use super::operation::Outgoing;
use super::producer::{failed, publish};
use crate::request::Deadline;
use crate::resource::{Phase, ResourceError};

pub(super) const DIRECT: &str = "amq.rabbitmq.reply-to";

/// Where a channel's replies come.
pub(super) struct ReplyQueue {
    name: ShortString,
    replies: Consumer,
    /// Requests so far; a late reply to an earlier one is told by its number, where the other side repeats it.
    number: u64,
}

pub(super) struct Answer {
    pub(super) delivery: Delivery,
    /// Sent more than once: further replies may come, and the channel is of no more use.
    pub(super) repeated: bool,
}

impl ReplyQueue {
    /// # Errors
    /// The broker's; the channel is then closed.
    pub(super) async fn open(channel: &Channel, direct: bool) -> lapin::Result<Self> {
        let name = match direct {
            true => DIRECT.into(),
            false => declare(channel).await?,
        };
        let options = BasicConsumeOptions { no_ack: true, exclusive: !direct, ..Default::default() };
        let replies = channel.basic_consume(name.clone(), "".into(), options, FieldTable::default()).await?;
        Ok(Self { name, replies, number: 0 })
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
    ) -> Result<Answer, ResourceError> {
        self.number += 1;
        let correlation: ShortString = self.number.to_string().into();
        let properties = request.properties.with_reply_to(self.name.clone()).with_correlation_id(correlation.clone());
        let request = [Outgoing { properties, ..request }];
        for attempt in 0..=retries {
            publish(channel, live, &request, deadline, Phase::Execute).await?;
            match self.next(channel, live, &correlation, deadline.within(timeout)).await? {
                Some(delivery) => return Ok(Answer { delivery, repeated: attempt > 0 }),
                None if deadline.passed() => break,
                None => {}
            }
        }
        let text =
            format!("TimeoutError: no reply came, {} tries of {} ms", u64::from(retries) + 1, timeout.as_millis());
        Err(ResourceError::fatal(Phase::Execute, ResourceError::TIMED_OUT, text))
    }

    async fn next(
        &mut self,
        channel: &Channel,
        live: &Live,
        correlation: &ShortString,
        deadline: Deadline,
    ) -> Result<Option<Delivery>, ResourceError> {
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
            check_length(channel, live, &delivery)?;
            // Programs that repeat no correlation id answer in order.
            if delivery.properties.correlation_id().as_ref().is_none_or(|id| id == correlation) {
                return Ok(Some(delivery));
            }
        }
    }
}

/// A queue for replies that goes with its connection.
pub(super) async fn declare(channel: &Channel) -> lapin::Result<ShortString> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    Ok(channel.queue_declare("".into(), options, FieldTable::default()).await?.name().clone())
}

/// # Errors
/// `too-large`: the guard kept it out.
pub(super) fn check_length(channel: &Channel, live: &Live, delivery: &Delivery) -> Result<(), ResourceError> {
    let text = match live.refused.take(channel.id(), delivery.delivery_tag) {
        None => return Ok(()),
        Some(Refusal::TooLong { bytes }) => format!("the reply has {bytes} bytes, which is more than max_body_bytes"),
        Some(Refusal::BadHeaders) => "the reply's headers cannot be read".to_owned(),
    };
    Err(ResourceError::fatal(Phase::Execute, ResourceError::TOO_LARGE, text))
}
