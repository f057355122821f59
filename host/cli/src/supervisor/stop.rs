//! The wish to stop, of whoever has it: signals, `wasmcage stop`, a lock that was lost. It only ever grows.

use std::time::Instant;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::signals::{Signals, Wish, Wishes};
use crate::control::{Answer, Refusal, Request};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stop {
    No,
    /// What is in work may be finished.
    Drain,
    /// Now.
    Force,
}

/// A clone is the same wish.
#[derive(Clone, Debug)]
pub(super) struct StopSwitch(watch::Sender<Stop>);

impl StopSwitch {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Stop::No))
    }

    pub(super) fn raise(&self, wish: Stop) {
        self.0.send_if_modified(|stop| {
            let more = *stop < wish;
            *stop = (*stop).max(wish);
            more
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Stop> {
        self.0.subscribe()
    }

    /// Does what signals ask for. Never ends.
    pub(super) async fn obey(self, mut signals: Signals) {
        let mut wishes = Wishes::default();
        loop {
            let signal = signals.next().await;
            match wishes.add(signal, Instant::now()) {
                Wish::Drain => self.raise(Stop::Drain),
                Wish::Force => self.raise(Stop::Force),
                Wish::Nothing => {}
            }
        }
    }
}

/// Arguments of the primary's command `stop`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StopRequest {
    /// What is in work is cut off.
    pub force: bool,
}

/// What the primary answers to each of its commands.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PrimaryStatus {
    /// All that it watches over: they stop together.
    pub cages: Vec<String>,
    /// Of the primary, as it sees itself.
    pub pid: u32,
}

/// The commands of the primary: `status` and `stop`.
pub(super) struct PrimaryCommands {
    pub cages: Vec<String>,
    pub stop: StopSwitch,
}

impl PrimaryCommands {
    fn status(&self) -> Result<Value, Refusal> {
        let status = PrimaryStatus { cages: self.cages.clone(), pid: std::process::id() };
        serde_json::to_value(status).map_err(|error| Refusal::new("host-error", error))
    }
}

#[async_trait]
impl Answer for PrimaryCommands {
    async fn answer(&self, request: Request) -> Result<Value, Refusal> {
        match request.command.as_str() {
            "status" => self.status(),
            "stop" => {
                let arguments = serde_json::from_value(request.arguments);
                let StopRequest { force } = arguments.map_err(|error| Refusal::new("bad-request", error))?;
                self.stop.raise(if force { Stop::Force } else { Stop::Drain });
                self.status()
            }
            other => Err(Refusal::new("unknown-command", format!("there is no command `{other}`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wish_to_stop_never_shrinks() {
        let switch = StopSwitch::new();
        let mut seen = switch.subscribe();
        switch.raise(Stop::Force);
        assert!(seen.has_changed().unwrap());
        assert_eq!(*seen.borrow_and_update(), Stop::Force);
        switch.raise(Stop::Drain);
        assert!(!seen.has_changed().unwrap());
        assert_eq!(*seen.borrow(), Stop::Force);
    }
}
