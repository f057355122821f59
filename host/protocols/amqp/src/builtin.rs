//! The commands that every Postage program understands (quit, restart), and every GenericApplication (ping, join and
//! leave a group). `postage_delivery.rs` calls this for messages without a handler.

use lapin::BasicProperties;
use serde_json::Value;

use super::config::GROUPS_MAX;
use super::deliver::DeliveryReceiver;
use super::interface::InterfaceCommand;
use super::message::{PostageMessage, ReplyContent};
use super::topology::QueueBinding;
use super::verdict::DeliveryVerdict;
use wasmcage_core::readings;

impl DeliveryReceiver {
    /// The bindings of the application's own queue to its groups.
    pub(super) fn groups(&self) -> Vec<QueueBinding> {
        let Some(application) = &self.config.application else { return Vec::new() };
        self.groups.lock().iter().filter_map(|group| application.group_binding(group).ok()).collect()
    }

    /// Executes the message's command; none if it has no built-in command.
    pub(super) async fn builtin_command(
        &self,
        key: &str,
        message: &PostageMessage<'_>,
        properties: &BasicProperties,
    ) -> Option<DeliveryVerdict> {
        let command = match key {
            "message/command/quit" if self.config.defaults => InterfaceCommand::Quit,
            "message/command/restart" if self.config.defaults => InterfaceCommand::Restart,
            "rpc/command/ping" if self.config.application.is_some() => {
                let fingerprint = serde_json::to_value(&self.config.fingerprint).unwrap_or_default();
                let context = self.context(properties);
                return Some(
                    self.reply_with(ReplyContent::success(fingerprint), properties, &context, DeliveryVerdict::Ack)
                        .await,
                );
            }
            "message/command/join_group" | "message/command/leave_group" if self.config.application.is_some() => {
                match self.change_groups(message, key.ends_with("join_group")) {
                    Ok(command) => command,
                    Err(why) => {
                        self.events.malformed(&why, message.content.get().len());
                        self.count(readings::Outcome::BadRequest);
                        return Some(DeliveryVerdict::Reject);
                    }
                }
            }
            _ => return None,
        };
        self.events.command_received(key);
        // The interface is stopping if nobody receives it.
        let _ = self.commands.send(command).await;
        Some(DeliveryVerdict::Ack)
    }

    /// Joins or leaves a group.
    ///
    /// # Errors
    /// The message names no group, or one that cannot be joined.
    fn change_groups(&self, message: &PostageMessage<'_>, join: bool) -> Result<InterfaceCommand, String> {
        let application = self.config.application.as_ref().ok_or("this is no application")?;
        let content: Value = serde_json::from_str(message.content.get()).unwrap_or_default();
        let group = content["parameters"]["group_name"].as_str().ok_or("group_name is missing, or no text")?;
        let binding = application.group_binding(group)?;
        let mut groups = self.groups.lock();
        if !join {
            groups.remove(group);
            return Ok(InterfaceCommand::Leave(binding));
        }
        if groups.len() >= GROUPS_MAX && !groups.contains(group) {
            return Err(format!("the application is in {GROUPS_MAX} groups already"));
        }
        groups.insert(group.to_owned());
        Ok(InterfaceCommand::Join(binding))
    }
}
