//! Publishing with confirms: what is said to be published is at the broker, in a queue when it is mandatory.

use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, ErrorKind};

use super::link::Live;
use super::operation::Outgoing;
use crate::request::Deadline;
use crate::resource::{Phase, ResourceError};

/// A message that no queue was there for.
pub(super) const UNROUTABLE: &str = "unroutable";
/// The broker has no room: nothing was sent.
const BLOCKED: &str = "blocked";
/// The broker said no.
const NOT_TAKEN: &str = "not-taken";

/// Publishes all as soon as the broker takes messages, then waits until it has confirmed all.
///
/// # Errors
/// `blocked` when it took none until the deadline, `unroutable`, `not-taken`, `timed-out`, `disconnected`, or `amqp-CODE` when the broker closed the channel.
pub(super) async fn publish(
    channel: &Channel,
    live: &Live,
    messages: &[Outgoing],
    deadline: Deadline,
    phase: Phase,
) -> Result<(), ResourceError> {
    if tokio::time::timeout_at(deadline.instant(), live.unblocked()).await.is_err() {
        let why = live.blocked().unwrap_or_else(|| "the broker takes messages again, too late".into());
        return Err(ResourceError::harmless(phase, BLOCKED, why));
    }
    let published = async {
        let mut confirms = Vec::new();
        for message in messages {
            for (exchange, key) in &message.targets {
                let options = BasicPublishOptions { mandatory: message.mandatory, immediate: false };
                let (to, by, properties) = (exchange.as_str().into(), key.as_str().into(), message.properties.clone());
                let confirm = channel.basic_publish(to, by, options, &message.body, properties).await;
                confirms.push(confirm.map_err(|error| failed(&error, phase))?);
            }
        }
        let count = confirms.len();
        let (mut returned, mut refused) = (Vec::new(), 0);
        for confirm in confirms {
            match confirm.await.map_err(|error| failed(&error, phase))? {
                Confirmation::Ack(None) | Confirmation::NotRequested => {}
                Confirmation::Ack(Some(message)) => returned.push(message),
                Confirmation::Nack(_) => refused += 1,
            }
        }
        let error = match (returned.first(), refused) {
            (None, 0) => return Ok(()),
            (_, 1..) => ResourceError::harmless(phase, NOT_TAKEN, "the broker did not take it"),
            (Some(message), _) => {
                let (exchange, key) = (&message.delivery.exchange, &message.delivery.routing_key);
                let text =
                    format!("no queue is bound to exchange {exchange:?} with key {key:?}: {}", message.reply_text);
                ResourceError::harmless(phase, UNROUTABLE, text)
            }
        };
        // What went well cannot be taken back.
        Err(ResourceError { recoverable: returned.len() + refused == count, ..error })
    };
    match tokio::time::timeout_at(deadline.instant(), published).await {
        Ok(result) => result,
        Err(_) => {
            let text = live.blocked().unwrap_or_else(|| "the broker did not confirm in time".into());
            Err(ResourceError::fatal(phase, ResourceError::TIMED_OUT, text))
        }
    }
}

/// Of a channel or connection that is of no more use.
pub(super) fn failed(error: &lapin::Error, phase: Phase) -> ResourceError {
    let code = match error.kind() {
        ErrorKind::ProtocolError(error) => format!("amqp-{}", error.get_id()),
        _ => ResourceError::DISCONNECTED.to_owned(),
    };
    ResourceError::fatal(phase, code, error.to_string())
}
