//! Publishing with confirms: what is said to be published is at the broker, in a queue when it is mandatory.

use futures_util::FutureExt as _;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;

use lapin::{Channel, Confirmation, ErrorKind, PublisherConfirm};

use super::link::Live;
use super::operation::Outgoing;
use super::value::check_frame;
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Phase, ResourceError};

/// A longer message goes on a channel of its own. A broker closes the channel over one that is too long for it, which would
/// leave what others sent on it in doubt.
pub(super) const ALONE_BYTES: usize = 1 << 20;
/// A message that no queue was there for.
pub(super) const UNROUTABLE: &str = "unroutable";
/// The broker has no room: nothing was sent.
pub(super) const BLOCKED: &str = "blocked";
/// The broker said no.
const NOT_TAKEN: &str = "not-taken";

/// Publishes all on a channel that nobody else publishes on, as soon as the broker takes messages, then waits until it has
/// confirmed all.
///
/// # Errors
/// `too-large` when the properties of one do not fit into a frame, `blocked` when the broker took none until the deadline,
/// `unroutable`, `not-taken`, `timed-out`, `disconnected`, or `amqp-CODE` when the broker closed the channel.
pub(super) async fn publish(
    channel: &Channel,
    live: &Live,
    messages: &[Outgoing],
    deadline: Deadline,
    phase: Phase,
) -> Result<(), ResourceError> {
    check_frames(messages, live.frame_bytes_max(), phase)?;
    if tokio::time::timeout_at(deadline.instant(), live.unblocked()).await.is_err() {
        let why = live.blocked().unwrap_or_else(|| "the broker takes messages again, too late".into());
        return Err(ResourceError::harmless(phase, BLOCKED, why));
    }
    let published = async {
        let (mut sent, mut returned) = (Sent::send(channel, messages).await, Vec::new());
        sent.confirmed(&mut returned).await;
        sent.judged(messages, &mut returned, phase)
    };
    match tokio::time::timeout_at(deadline.instant(), published).await {
        Ok(result) => result,
        Err(_) => Err(unconfirmed(live, phase)),
    }
}

/// # Errors
/// `too-large`, and nothing was sent.
pub(super) fn check_frames(messages: &[Outgoing], frame_bytes_max: usize, phase: Phase) -> Result<(), ResourceError> {
    let fits = messages.iter().try_for_each(|message| check_frame(&message.properties, frame_bytes_max));
    fits.map_err(|text| ResourceError::harmless(phase, ResourceError::TOO_LARGE, text))
}

/// Of messages that may have arrived, or will.
pub(super) fn unconfirmed(live: &Live, phase: Phase) -> ResourceError {
    let text = live.blocked().unwrap_or_else(|| "the broker did not confirm in time".into());
    ResourceError::fatal(phase, ResourceError::TIMED_OUT, text)
}

/// Messages of one participant that were sent, and what the broker has said of them.
#[derive(Default)]
pub(super) struct Sent {
    count: usize,
    /// Those that are still to come.
    confirms: Vec<PublisherConfirm>,
    refused: usize,
    failure: Option<lapin::Error>,
}

impl Sent {
    /// One after the other, as far as the channel lives.
    pub(super) async fn send(channel: &Channel, messages: &[Outgoing]) -> Self {
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

    /// Waits for all confirms; can be cancelled and called again. The library gives a returned message to whatever is
    /// confirmed next on its channel, so that they are collected for all who publish on it.
    pub(super) async fn confirmed(&mut self, returned: &mut Vec<BasicReturnMessage>) {
        while let Some(confirm) = self.confirms.last_mut() {
            let confirmation = confirm.await;
            self.confirms.pop();
            self.note(confirmation, returned);
        }
    }

    /// Takes the confirms that are there.
    pub(super) fn look(&mut self, returned: &mut Vec<BasicReturnMessage>) {
        for mut confirm in std::mem::take(&mut self.confirms) {
            match (&mut confirm).now_or_never() {
                Some(confirmation) => self.note(confirmation, returned),
                None => self.confirms.push(confirm),
            }
        }
    }

    fn note(&mut self, confirmation: lapin::Result<Confirmation>, returned: &mut Vec<BasicReturnMessage>) {
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

    /// What became of these messages. Those of `returned` that are among them are taken out of it.
    pub(super) fn judged(
        &self,
        messages: &[Outgoing],
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
        // What went well cannot be taken back.
        Err(ResourceError { recoverable: own.len() + self.refused == self.count, ..error })
    }
}

/// Takes what came back of a message out of `returned`. Of two that are the same in everything it does not matter which is
/// meant.
fn taken_back(message: &Outgoing, returned: &mut Vec<BasicReturnMessage>) -> Vec<BasicReturnMessage> {
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

/// Of a channel or connection that is of no more use.
pub(super) fn failed(error: &lapin::Error, phase: Phase) -> ResourceError {
    let code = match error.kind() {
        ErrorKind::ProtocolError(error) => format!("amqp-{}", error.get_id()),
        _ => ResourceError::DISCONNECTED.to_owned(),
    };
    ResourceError::fatal(phase, code, error.to_string())
}
