//! What every Postage program does by itself, and every GenericApplication: quit and restart, ping, groups that are joined and
//! left. Called by `deliver.rs` for what no handler is there for.

use lapin::BasicProperties;
use serde_json::Value;

use super::config::GROUPS_MAX;
use super::deliver::Receiver;
use super::interface::Command;
use super::message::{Incoming, Outcome};
use super::settle::Verdict;
use super::topology::Binding;
use wasmcage_core::readings;

impl Receiver {
    /// Bindings of the application's own queue to its groups.
    pub(super) fn groups(&self) -> Vec<Binding> {
        let Some(application) = &self.config.application else { return Vec::new() };
        self.groups.lock().iter().filter_map(|group| application.in_group(group).ok()).collect()
    }

    /// What every Postage program, or every GenericApplication, does by itself. None: not such a command.
    pub(super) async fn own(&self, key: &str, message: &Incoming<'_>, properties: &BasicProperties) -> Option<Verdict> {
        let command = match key {
            "message/command/quit" if self.config.defaults => Command::Quit,
            "message/command/restart" if self.config.defaults => Command::Restart,
            "rpc/command/ping" if self.config.application.is_some() => {
                let fingerprint = serde_json::to_value(&self.config.fingerprint).unwrap_or_default();
                let context = self.context(properties);
                return Some(self.reply_with(Outcome::success(fingerprint), properties, &context, Verdict::Ack).await);
            }
            "message/command/join_group" | "message/command/leave_group" if self.config.application.is_some() => {
                match self.change_groups(message, key.ends_with("join_group")) {
                    Ok(command) => command,
                    Err(why) => {
                        self.events.malformed(&why, message.content.get().len());
                        self.count(readings::Outcome::BadRequest);
                        return Some(Verdict::Reject);
                    }
                }
            }
            _ => return None,
        };
        self.events.told_to(key);
        // The interface is ending when nobody takes it.
        let _ = self.commands.send(command).await;
        Some(Verdict::Ack)
    }

    /// # Errors
    /// Why there is no such group to join or to leave.
    fn change_groups(&self, message: &Incoming<'_>, join: bool) -> Result<Command, String> {
        let application = self.config.application.as_ref().ok_or("this is no application")?;
        let content: Value = serde_json::from_str(message.content.get()).unwrap_or_default();
        let group = content["parameters"]["group_name"].as_str().ok_or("group_name is missing, or no text")?;
        let binding = application.in_group(group)?;
        let mut groups = self.groups.lock();
        if !join {
            groups.remove(group);
            return Ok(Command::Leave(binding));
        }
        if groups.len() >= GROUPS_MAX && !groups.contains(group) {
            return Err(format!("the application is in {GROUPS_MAX} groups already"));
        }
        groups.insert(group.to_owned());
        Ok(Command::Join(binding))
    }
}
