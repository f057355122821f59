//! How urgently a cage has to stop, as asked for by signals, by `wasmcage stop` or because its lock was lost. It is only
//! ever raised.

use std::time::Instant;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::signals::{SignalEffect, SignalFilter, Signals};
use crate::control::{CommandHandler, CommandRefusal, CommandRequest};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StopLevel {
    No,
    /// Requests in flight are finished first.
    Drain,
    /// Requests in flight are cut off.
    Force,
}

/// Holds the level for all parts of the primary. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct StopSwitch(watch::Sender<StopLevel>);

impl StopSwitch {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(StopLevel::No))
    }

    pub(super) fn raise(&self, level: StopLevel) {
        self.0.send_if_modified(|stop| {
            let more = *stop < level;
            *stop = (*stop).max(level);
            more
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<StopLevel> {
        self.0.subscribe()
    }

    /// Raises the level as signals ask for. Never returns.
    pub(super) async fn follow_signals(self, mut signals: Signals) {
        let mut filter = SignalFilter::default();
        loop {
            let signal = signals.next().await;
            match filter.add(signal, Instant::now()) {
                SignalEffect::Drain => self.raise(StopLevel::Drain),
                SignalEffect::Force => self.raise(StopLevel::Force),
                SignalEffect::None => {}
            }
        }
    }
}

/// Arguments of the primary's command `stop`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StopRequest {
    /// Cuts off requests in flight.
    pub force: bool,
}

/// The primary's answer to each of its commands.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PrimaryStatus {
    /// All cages of the primary: they stop together.
    pub cages: Vec<String>,
    /// The primary's own pid.
    pub pid: u32,
}

/// The commands of the primary: `status` and `stop`.
pub(super) struct PrimaryCommands {
    pub cages: Vec<String>,
    pub stop: StopSwitch,
}

impl PrimaryCommands {
    fn status(&self) -> Result<Value, CommandRefusal> {
        let status = PrimaryStatus { cages: self.cages.clone(), pid: std::process::id() };
        serde_json::to_value(status).map_err(|error| CommandRefusal::new("host-error", error))
    }
}

#[async_trait]
impl CommandHandler for PrimaryCommands {
    async fn answer(&self, request: CommandRequest) -> Result<Value, CommandRefusal> {
        match request.command.as_str() {
            "status" => self.status(),
            "stop" => {
                let arguments = serde_json::from_value(request.arguments);
                let StopRequest { force } = arguments.map_err(|error| CommandRefusal::new("bad-request", error))?;
                self.stop.raise(if force { StopLevel::Force } else { StopLevel::Drain });
                self.status()
            }
            other => Err(CommandRefusal::new("unknown-command", format!("there is no command `{other}`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stop_level_is_never_lowered() {
        let switch = StopSwitch::new();
        let mut seen = switch.subscribe();
        switch.raise(StopLevel::Force);
        assert!(seen.has_changed().unwrap());
        assert_eq!(*seen.borrow_and_update(), StopLevel::Force);
        switch.raise(StopLevel::Drain);
        assert!(!seen.has_changed().unwrap());
        assert_eq!(*seen.borrow(), StopLevel::Force);
    }
}
