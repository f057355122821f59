//! Replies to requests: published on a channel of the interface's own, and confirmed before the request is acknowledged.

use std::sync::Arc;

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Mutex;

use super::link::{Link, Live};
use crate::request::Deadline;

pub(super) struct Replies {
    link: Arc<Link>,
    channel: Mutex<Option<(Channel, Arc<Live>)>>,
}

impl Replies {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, channel: Mutex::default() }
    }

    /// # Errors
    /// Why it is not known to be at the broker. One whose requester is gone is.
    pub(super) async fn send(
        &self,
        reply_to: &ShortString,
        properties: BasicProperties,
        body: &[u8],
        deadline: Deadline,
    ) -> Result<(), String> {
        let (channel, live) = self.channel(deadline).await?;
        let sent = async {
            live.unblocked().await;
            let options = BasicPublishOptions::default();
            channel.basic_publish("".into(), reply_to.clone(), options, body, properties).await?.await
        };
        match tokio::time::timeout_at(deadline.instant(), sent).await {
            Ok(Ok(Confirmation::Ack(_) | Confirmation::NotRequested)) => Ok(()),
            Ok(Ok(Confirmation::Nack(_))) => Err("the broker did not take it".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(live.blocked().unwrap_or_else(|| "the broker did not confirm it in time".into())),
        }
    }

    async fn channel(&self, deadline: Deadline) -> Result<(Channel, Arc<Live>), String> {
        let mut known = self.channel.lock().await;
        if let Some(usable) = known.clone().filter(|(channel, live)| live.carries(channel)) {
            return Ok(usable);
        }
        // Replies go to the broker's own exchange.
        let made = self.link.publishing_channel(&[], deadline).await?;
        *known = Some(made.clone());
        Ok(made)
    }
}
