//! Publishing with confirms: a message counts as published when the broker has confirmed it; a mandatory one is then in
//! a queue.

use futures_util::FutureExt as _;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, ErrorKind, PublisherConfirm};

use super::link::LiveConnection;
use super::operation::OutgoingMessage;
use super::value::check_frame;
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Phase, ResourceError};

/// A longer message is published on a channel of its own: a broker closes the channel over a message that is too long
/// for it, and the outcome of the others on that channel would be unknown.
pub(super) const ALONE_BYTES: usize = 1 << 20;
/// The error code when no queue is bound for a message.
pub(super) const UNROUTABLE: &str = "unroutable";
/// The error code when the broker has no room. Nothing was sent.
pub(super) const BLOCKED: &str = "blocked";
/// The error code when the broker refused a message.
const NOT_TAKEN: &str = "not-taken";

/// Publishes the messages on a channel that nobody else publishes on, once the broker accepts messages, and waits until
/// it has confirmed all of them.
///
/// # Errors
/// `too-large` if the properties of one do not fit into a frame, `blocked` if the broker accepted none until the
/// deadline, `unroutable`, `not-taken`, `timed-out`, `disconnected`, or `amqp-CODE` if the broker closed the channel.
pub(super) async fn publish(
    channel: &Channel,
    live: &LiveConnection,
    messages: &[OutgoingMessage],
    deadline: Deadline,
    phase: Phase,
) -> Result<(), ResourceError> {
    check_frames(messages, live.frame_bytes_max(), phase)?;
    if tokio::time::timeout_at(deadline.instant(), live.unblocked()).await.is_err() {
        let why = live.blocked().unwrap_or_else(|| "the broker takes messages again, too late".into());
        return Err(ResourceError::harmless(phase, BLOCKED, why));
    }
    let published = async {
        let (mut sent, mut returned) = (PendingConfirms::send(channel, messages).await, Vec::new());
        sent.wait(&mut returned).await;
        sent.result(messages, &mut returned, phase)
    };
    match tokio::time::timeout_at(deadline.instant(), published).await {
        Ok(result) => result,
        Err(_) => Err(unconfirmed(live, phase)),
    }
}

/// # Errors
/// `too-large`, and nothing was sent.
pub(super) fn check_frames(
    messages: &[OutgoingMessage],
    frame_bytes_max: usize,
    phase: Phase,
) -> Result<(), ResourceError> {
    let fits = messages.iter().try_for_each(|message| check_frame(&message.properties, frame_bytes_max));
    fits.map_err(|text| ResourceError::harmless(phase, ResourceError::TOO_LARGE, text))
}

/// The error for messages that were sent and may have arrived, or still will.
pub(super) fn unconfirmed(live: &LiveConnection, phase: Phase) -> ResourceError {
    let text = live.blocked().unwrap_or_else(|| "the broker did not confirm in time".into());
    ResourceError::fatal(phase, ResourceError::TIMED_OUT, text)
}

/// The messages of one participant that were sent, and what the broker has confirmed of them.
#[derive(Default)]
pub(super) struct PendingConfirms {
    count: usize,
    /// The confirms that are still to come.
    confirms: Vec<PublisherConfirm>,
    refused: usize,
    failure: Option<lapin::Error>,
}

impl PendingConfirms {
    /// Sends the messages one after the other, until the channel fails.
    pub(super) async fn send(channel: &Channel, messages: &[OutgoingMessage]) -> Self {
        let mut sent = Self::default();
        for message in messages {
            for (exchange, key) in &message.targets {
                let options = BasicPublishOptions { mandatory: message.mandatory, immediate: false };
                let (to, by, properties) = (exchange.clone(), key.clone(), message.properties.clone());
                match channel.basic_publish(to, by, options, &message.body, properties).await {
                    Ok(confirm) => sent.confirms.push(confirm),
                    Err(error) => {
                        sent.failure = Some(error);
                        return sent;
                    }
                }
                sent.count += 1;
            }
        }
        sent
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.confirms.is_empty()
    }

    /// Waits for all confirms; can be cancelled and called again. The library hands a returned message out with
    /// whatever is confirmed next on the channel, so `returned` collects them for all who publish on it.
    pub(super) async fn wait(&mut self, returned: &mut Vec<BasicReturnMessage>) {
        while let Some(confirm) = self.confirms.last_mut() {
            let confirmation = confirm.await;
            self.confirms.pop();
            self.record(confirmation, returned);
        }
    }

    /// Takes the confirms that have arrived, without waiting.
    pub(super) fn poll(&mut self, returned: &mut Vec<BasicReturnMessage>) {
        for mut confirm in std::mem::take(&mut self.confirms) {
            match (&mut confirm).now_or_never() {
                Some(confirmation) => self.record(confirmation, returned),
                None => self.confirms.push(confirm),
            }
        }
    }

    fn record(&mut self, confirmation: lapin::Result<Confirmation>, returned: &mut Vec<BasicReturnMessage>) {
        match confirmation {
            Ok(Confirmation::Ack(message)) => returned.extend(message),
            Ok(Confirmation::Nack(message)) => {
                self.refused += 1;
                returned.extend(message);
            }
            Ok(Confirmation::NotRequested) => {}
            Err(error) => self.failure = Some(error),
        }
    }

    /// The participant's result. Its own messages are taken out of `returned`.
    pub(super) fn result(
        &self,
        messages: &[OutgoingMessage],
        returned: &mut Vec<BasicReturnMessage>,
        phase: Phase,
    ) -> Result<(), ResourceError> {
        let own: Vec<_> = messages.iter().flat_map(|message| taken_back(message, returned)).collect();
        if let Some(error) = &self.failure {
            return Err(failed(error, phase));
        }
        let error = match (own.first(), self.refused) {
            (None, 0) => return Ok(()),
            (_, 1..) => ResourceError::harmless(phase, NOT_TAKEN, "the broker did not take it"),
            (Some(message), _) => {
                let (exchange, key) = (message.delivery.exchange.as_str(), message.delivery.routing_key.as_str());
                let text =
                    format!("no queue is bound to exchange {exchange:?} with key {key:?}: {}", message.reply_text);
                ResourceError::harmless(phase, UNROUTABLE, text)
            }
        };
        // Messages that a queue has got cannot be undone.
        Err(ResourceError { recoverable: own.len() + self.refused == self.count, ..error })
    }
}

/// Takes the returned copies of a message out of `returned`. If two messages are equal in everything, it does not
/// matter which of them was meant.
fn taken_back(message: &OutgoingMessage, returned: &mut Vec<BasicReturnMessage>) -> Vec<BasicReturnMessage> {
    let mut found = Vec::new();
    for (exchange, key) in message.targets.iter().filter(|_| message.mandatory) {
        let is_it = |back: &BasicReturnMessage| {
            let back = &back.delivery;
            back.exchange == *exchange && back.routing_key == *key && back.data == message.body
        };
        if let Some(index) = returned.iter().position(is_it) {
            found.push(returned.swap_remove(index));
        }
    }
    found
}

/// The error of a channel or connection that has failed.
pub(super) fn failed(error: &lapin::Error, phase: Phase) -> ResourceError {
    let code = match error.kind() {
        ErrorKind::ProtocolError(error) => format!("amqp-{}", error.get_id()),
        _ => ResourceError::DISCONNECTED.to_owned(),
    };
    ResourceError::fatal(phase, code, error.to_string())
}
