//! `wasmcage:cage/config`: a module's own settings out of `cage.toml`.

use serde_json::Value;

use super::GuestState;
use super::bindings::config::Host;
use crate::config::ModuleConfig;

impl Host for GuestState {
    fn get(&mut self, key: String) -> Option<String> {
        text(&self.home.settings, &key)
    }

    fn all(&mut self) -> String {
        Value::Object(self.home.settings.config.clone()).to_string()
    }
}

/// A text as it is, anything else as JSON.
pub(super) fn text(settings: &ModuleConfig, key: &str) -> Option<String> {
    Some(match settings.config.get(key)? {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}
