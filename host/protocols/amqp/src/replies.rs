//! Replies to requests: published on a channel of the interface's own, and confirmed before the request is acknowledged.

use std::sync::Arc;

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, ErrorKind};
use tokio::sync::Mutex;

use super::link::{Link, Live};
use super::producer::ALONE_BYTES;
use super::topology::Exchange;
use wasmcage_core::request::Deadline;

/// What a broker answers to a message that it will never take, such as one that is too long for it.
const PRECONDITION_FAILED: u16 = 406;

pub(super) struct Replies {
    link: Arc<Link>,
    /// Where replies go, and its declaration if it is not the broker's own.
    exchange: ShortString,
    declared: Vec<Exchange>,
    channel: Mutex<Option<(Channel, Arc<Live>)>>,
}

/// Why a reply is not known to be at the broker.
pub(super) enum NotSent {
    /// The broker closed the channel over this very reply: the next attempt would end in the same way.
    Never(String),
    Later(String),
}

impl Replies {
    pub(super) fn new(link: Arc<Link>, exchange: ShortString, exchanges: &[Exchange]) -> Self {
        let declared = exchanges.iter().filter(|known| known.name == exchange).cloned().collect();
        Self { link, exchange, declared, channel: Mutex::default() }
    }

    /// Bytes of the frame with a reply's properties.
    pub(super) fn frame_bytes_max(&self) -> usize {
        self.link.frame_bytes_max()
    }

    /// # Errors
    /// Why it is not known to be at the broker. One whose requester is gone is.
    pub(super) async fn send(
        &self,
        reply_to: &ShortString,
        properties: BasicProperties,
        body: &[u8],
        deadline: Deadline,
    ) -> Result<(), NotSent> {
        let is_alone = body.len() > ALONE_BYTES;
        let made = match is_alone {
            true => self.link.publishing_channel(&self.declared, deadline).await,
            false => self.channel(deadline).await,
        };
        let (channel, live) = made.map_err(NotSent::Later)?;
        let sent = async {
            live.unblocked().await;
            let options = BasicPublishOptions::default();
            channel.basic_publish(self.exchange.clone(), reply_to.clone(), options, body, properties).await?.await
        };
        match tokio::time::timeout_at(deadline.instant(), sent).await {
            Ok(Ok(Confirmation::Ack(_) | Confirmation::NotRequested)) => Ok(()),
            Ok(Ok(Confirmation::Nack(_))) => Err(NotSent::Later("the broker did not take it".into())),
            Ok(Err(error)) => match error.kind() {
                ErrorKind::ProtocolError(closed) if is_alone && closed.get_id() == PRECONDITION_FAILED => {
                    Err(NotSent::Never(error.to_string()))
                }
                _ => Err(NotSent::Later(error.to_string())),
            },
            Err(_) => {
                let why = live.blocked().unwrap_or_else(|| "the broker did not confirm it in time".into());
                Err(NotSent::Later(why))
            }
        }
    }

    /// The channel that replies share. One of them makes it if need be; the others wait for that no longer than they may.
    async fn channel(&self, deadline: Deadline) -> Result<(Channel, Arc<Live>), String> {
        let made = async {
            let mut known = self.channel.lock().await;
            if let Some(usable) = known.clone().filter(|(channel, live)| live.carries(channel)) {
                return Ok(usable);
            }
            let made = self.link.publishing_channel(&self.declared, deadline).await?;
            *known = Some(made.clone());
            Ok(made)
        };
        let waited = tokio::time::timeout_at(deadline.instant(), made).await;
        waited.unwrap_or_else(|_| Err(self.link.trouble().unwrap_or_else(|| "the broker does not answer".into())))
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
    async fn a_reply_waits_for_the_channel_of_another_no_longer_than_it_may() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let section = section(&format!("host = '127.0.0.1'\nport = {nobody}\nqueues.q = {{}}"));
        section.optional_string("protocol");
        let config = AmqpConfig::read(section).unwrap_or_else(|error| panic!("{error}"));
        let runtime = tokio::runtime::Handle::current();
        let link = Link::of(Path::new("/a/cage/of/this/test"), &config.broker, Purpose::Publish, &runtime);
        let replies = Replies::new(link, ShortString::default(), &[]);
        let send = async |timeout| {
            let deadline = Deadline::after(timeout);
            replies.send(&"q".into(), BasicProperties::default(), b"", deadline).await
        };
        tokio::select! {
            biased;
            _ = send(Duration::from_secs(600)) => panic!("there is no broker"),
            short = send(Duration::from_millis(50)) => assert!(matches!(short, Err(NotSent::Later(_)))),
        }
    }
}
