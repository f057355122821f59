//! Implements `wasmcage:cage/context`: tells a module about the request that it works on.

use std::time::{SystemTime, UNIX_EPOCH};

use super::GuestState;
use super::bindings::context::{Attempt, Host, Level as WitLevel};
use super::log::{from_wit, to_wit};

impl Host for GuestState {
    fn request_id(&mut self) -> String {
        self.request.as_ref().map_or_else(String::new, |request| request.id.to_string())
    }

    fn deadline_left_ms(&mut self) -> u64 {
        u64::try_from(self.deadline().left().as_millis()).unwrap_or(u64::MAX)
    }

    fn cage(&mut self) -> String {
        self.home.cage.to_string()
    }

    fn module(&mut self) -> String {
        self.home.module.to_string()
    }

    fn fact(&mut self, name: String) -> Option<String> {
        self.request.as_ref()?.facts.get(&name).map(str::to_owned)
    }

    fn facts(&mut self) -> Vec<(String, String)> {
        let facts = self.request.iter().flat_map(|request| request.facts.iter());
        facts.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn describe(&mut self, text: String) {
        if let Some(request) = &self.request {
            request.describe(&text);
        }
    }

    fn log_level(&mut self) -> WitLevel {
        to_wit(self.home.log.level(self.request.as_deref()))
    }

    fn set_log_level(&mut self, level: WitLevel) {
        if let Some(request) = &self.request {
            request.set_level(from_wit(level));
        }
    }

    fn current_attempt(&mut self) -> Option<Attempt> {
        let attempt = self.request.as_ref()?.attempt.as_ref()?;
        let ms = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Some(Attempt {
            id: attempt.id.clone(),
            number: attempt.number,
            first_started_ms: ms(attempt.first_started),
            expires_ms: attempt.expires.map(ms),
        })
    }
}
