//! Replies to requests: published on a channel of the interface's own, and confirmed before the request is acknowledged.

use std::sync::Arc;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
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
        if let Some((channel, live)) = &*known
            && live.is_up()
            && channel.status().connected()
        {
            return Ok((channel.clone(), live.clone()));
        }
        let (channel, live) = self.link.channel(deadline).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(|error| error.to_string())?;
        *known = Some((channel.clone(), live.clone()));
        Ok((channel, live))
    }
}
