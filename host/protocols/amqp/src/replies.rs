//! Sends the interface's replies to requests. They have a channel of their own, and the broker confirms each before its
//! request is acknowledged.

use std::sync::Arc;

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, ErrorKind};
use tokio::sync::Mutex;

use super::link::{BrokerLink, LiveConnection};
use super::producer::ALONE_BYTES;
use super::topology::ExchangeDeclaration;
use wasmcage_core::request::Deadline;

/// The code by which a broker refuses a message for good, such as one that is too long for it.
const PRECONDITION_FAILED: u16 = 406;

pub(super) struct ReplySender {
    link: Arc<BrokerLink>,
    /// The exchange of all replies, and its declaration unless the broker has it anyway.
    exchange: ShortString,
    declarations: Vec<ExchangeDeclaration>,
    channel: Mutex<Option<(Channel, Arc<LiveConnection>)>>,
}

/// Why a reply is not confirmed.
pub(super) enum SendError {
    /// The broker closed the channel because of this very reply, and would do so again.
    Permanent(String),
    /// Another attempt may succeed.
    Temporary(String),
}

impl ReplySender {
    pub(super) fn new(link: Arc<BrokerLink>, exchange: ShortString, exchanges: &[ExchangeDeclaration]) -> Self {
        let declarations = exchanges.iter().filter(|known| known.name == exchange).cloned().collect();
        Self { link, exchange, declarations, channel: Mutex::default() }
    }

    /// The most bytes of the frame with a reply's properties.
    pub(super) fn frame_bytes_max(&self) -> usize {
        self.link.frame_bytes_max()
    }

    /// Sends a reply, and returns when the broker has confirmed it, also if the requester's queue is gone.
    ///
    /// # Errors
    /// Why the reply is not confirmed.
    pub(super) async fn send(
        &self,
        reply_to: &ShortString,
        properties: BasicProperties,
        body: &[u8],
        deadline: Deadline,
    ) -> Result<(), SendError> {
        let is_alone = body.len() > ALONE_BYTES;
        let made = match is_alone {
            true => self.link.publishing_channel(&self.declarations, deadline).await,
            false => self.channel(deadline).await,
        };
        let (channel, live) = made.map_err(SendError::Temporary)?;
        let sent = async {
            live.unblocked().await;
            let options = BasicPublishOptions::default();
            channel.basic_publish(self.exchange.clone(), reply_to.clone(), options, body, properties).await?.await
        };
        match tokio::time::timeout_at(deadline.instant(), sent).await {
            Ok(Ok(Confirmation::Ack(_) | Confirmation::NotRequested)) => Ok(()),
            Ok(Ok(Confirmation::Nack(_))) => Err(SendError::Temporary("the broker did not take it".into())),
            Ok(Err(error)) => match error.kind() {
                ErrorKind::ProtocolError(closed) if is_alone && closed.get_id() == PRECONDITION_FAILED => {
                    Err(SendError::Permanent(error.to_string()))
                }
                _ => Err(SendError::Temporary(error.to_string())),
            },
            Err(_) => {
                let why = live.blocked().unwrap_or_else(|| "the broker did not confirm it in time".into());
                Err(SendError::Temporary(why))
            }
        }
    }

    /// The channel that short replies share. If there is none, one caller opens it and the others wait, each until its
    /// deadline.
    async fn channel(&self, deadline: Deadline) -> Result<(Channel, Arc<LiveConnection>), String> {
        let made = async {
            let mut shared = self.channel.lock().await;
            if let Some(usable) = shared.clone().filter(|(channel, live)| live.is_open(channel)) {
                return Ok(usable);
            }
            let made = self.link.publishing_channel(&self.declarations, deadline).await?;
            *shared = Some(made.clone());
            Ok(made)
        };
        let waited = tokio::time::timeout_at(deadline.instant(), made).await;
        waited.unwrap_or_else(|_| Err(self.link.problem().unwrap_or_else(|| "the broker does not answer".into())))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::AmqpConfig;
    use crate::link::Purpose;
    use wasmcage_config::testing::section;

    #[tokio::test]
    async fn a_reply_waits_for_the_shared_channel_until_its_deadline_only() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let section = section(&format!("host = '127.0.0.1'\nport = {nobody}\nqueues.q = {{}}"));
        section.optional_string("protocol");
        let config = AmqpConfig::read(section).unwrap_or_else(|error| panic!("{error}"));
        let runtime = tokio::runtime::Handle::current();
        let link = BrokerLink::shared(Path::new("/a/cage/of/this/test"), &config.broker, Purpose::Publish, &runtime);
        let replies = ReplySender::new(link, ShortString::default(), &[]);
        let send = async |timeout| {
            let deadline = Deadline::after(timeout);
            replies.send(&"q".into(), BasicProperties::default(), b"", deadline).await
        };
        tokio::select! {
            biased;
            _ = send(Duration::from_secs(600)) => panic!("there is no broker"),
            short = send(Duration::from_millis(50)) => assert!(matches!(short, Err(SendError::Temporary(_)))),
        }
    }
}
