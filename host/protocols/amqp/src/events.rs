//! The log lines of this crate: one function per event. Events that a peer can cause at will are throttled, and a line
//! says how many were suppressed before it.

use std::sync::Arc;

use tracing::{debug, error, info, warn};

use super::guard::WithheldReason;
use super::link::Purpose;
use wasmcage_core::task::Panic;
use wasmcage_core::telemetry::Throttle;

/// The events of one connection.
pub(super) struct LinkEvents {
    pub(super) cage: String,
    broker: String,
    purpose: Purpose,
    unreachable: Throttle,
}

impl LinkEvents {
    pub(super) fn new(cage: String, broker: String, purpose: Purpose) -> Self {
        Self { cage, broker, purpose, unreachable: Throttle::seldom() }
    }

    pub(super) fn connected(&self) {
        info!(cage = %self.cage, broker = %self.broker, purpose = ?self.purpose, "broker connected");
    }

    /// The host panicked; the task is started again.
    pub(super) fn panicked(&self, panic: &Panic) {
        error!(cage = %self.cage, broker = %self.broker, purpose = ?self.purpose, error = %panic, "a part of the host panicked");
    }

    pub(super) fn lost(&self, why: &str) {
        warn!(cage = %self.cage, broker = %self.broker, purpose = ?self.purpose, error = why, "broker lost");
    }

    pub(super) fn unreachable(&self, why: &str) {
        self.unreachable.log(|suppressed| {
            warn!(cage = %self.cage, broker = %self.broker, error = why, suppressed, "broker cannot be reached");
        });
    }

    pub(super) fn blocked(&self, why: &str) {
        warn!(cage = %self.cage, broker = %self.broker, why, "broker takes no messages");
    }

    pub(super) fn unblocked(&self) {
        info!(cage = %self.cage, broker = %self.broker, "broker takes messages again");
    }
}

/// The events of one interface.
pub(super) struct AmqpEvents {
    cage: Arc<str>,
    interface: Arc<str>,
    too_long: Throttle,
    unreadable: Throttle,
    malformed: Throttle,
    filter: Throttle,
    reply: Throttle,
    module: Throttle,
    fan_out: Throttle,
    invalid: Throttle,
    ended: Throttle,
}

impl AmqpEvents {
    pub(super) fn new(cage: Arc<str>, interface: Arc<str>) -> Self {
        let throttle = Throttle::seldom;
        Self {
            cage,
            interface,
            too_long: throttle(),
            unreadable: throttle(),
            malformed: throttle(),
            filter: throttle(),
            reply: throttle(),
            module: throttle(),
            fan_out: throttle(),
            invalid: throttle(),
            ended: throttle(),
        }
    }

    /// The broker refuses a declaration. Each problem is logged once, though the declaration is tried again and again.
    pub(super) fn problem(&self, why: &str) {
        error!(cage = %self.cage, interface = %self.interface, error = why, "the broker does not take a declaration");
    }

    /// One queue's consumer ended; the other queues are still consumed.
    pub(super) fn consumer_ended(&self, why: &str) {
        self.ended.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, why, suppressed, "consuming of a queue begins anew");
        });
    }

    /// The connection was lost, and all queues are consumed again once there is a new one.
    pub(super) fn resumed(&self, why: &str) {
        warn!(cage = %self.cage, interface = %self.interface, why, "consuming begins anew");
    }

    /// A message with a built-in command was received.
    pub(super) fn command_received(&self, command: &str) {
        info!(cage = %self.cage, interface = %self.interface, command, "command of a message");
    }

    /// The guard withheld a message.
    pub(super) fn message_withheld(&self, queue: &str, reason: WithheldReason, body_bytes_max: u64) {
        match reason {
            WithheldReason::TooLong { bytes } => self.too_long.log(|suppressed| {
                warn!(
                    cage = %self.cage, interface = %self.interface, queue, bytes, body_bytes_max, suppressed,
                    "message too long"
                );
            }),
            WithheldReason::Unreadable => self.unreadable.log(|suppressed| {
                warn!(cage = %self.cage, interface = %self.interface, queue, suppressed, "message with unreadable properties");
            }),
        }
    }

    /// A message cannot be parsed. Its content is not logged: more people can read a log than a queue.
    pub(super) fn malformed(&self, why: &str, bytes: usize) {
        self.malformed.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, why, bytes, suppressed, "message cannot be read");
        });
    }

    pub(super) fn unknown(&self, key: &str) {
        debug!(cage = %self.cage, interface = %self.interface, key, "message without a handler");
    }

    /// The interface's module does not exist; the message stays in its queue.
    pub(super) fn no_module(&self, module: &str) {
        self.module.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, module, suppressed, "no such module, messages wait");
        });
    }

    /// A module's reply cannot be sent as a message, nor could it at another attempt.
    pub(super) fn invalid_reply(&self, why: &str, request: &dyn std::fmt::Display) {
        self.invalid.log(|suppressed| {
            error!(cage = %self.cage, interface = %self.interface, error = why, suppressed, %request, "reply cannot be sent");
        });
    }

    pub(super) fn filter_refused(&self, filter: &str, why: &dyn std::fmt::Display) {
        self.filter.log(|suppressed| {
            info!(cage = %self.cage, interface = %self.interface, filter, %why, suppressed, "handler skipped by a filter");
        });
    }

    pub(super) fn reply_failed(&self, why: &str) {
        self.reply.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, error = why, suppressed, "reply not sent");
        });
    }

    pub(super) fn fan_out_failed(&self, function: &str, why: &dyn std::fmt::Display) {
        self.fan_out.log(|suppressed| {
            error!(
                cage = %self.cage, interface = %self.interface, function, error = %why, suppressed,
                "one of several handlers failed"
            );
        });
    }
}
