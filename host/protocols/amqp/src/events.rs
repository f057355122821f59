//! What AMQP tells its operator: one function per event. Called by every other file of this folder. What outsiders can cause
//! at will is logged seldom, with the number of lines left out.

use std::sync::Arc;

use tracing::{debug, error, info, warn};

use super::guard::Refusal;
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

    /// A bug of the host's: the part begins anew.
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
pub(super) struct Events {
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

impl Events {
    pub(super) fn new(cage: Arc<str>, interface: Arc<str>) -> Self {
        let seldom = Throttle::seldom;
        Self {
            cage,
            interface,
            too_long: seldom(),
            unreadable: seldom(),
            malformed: seldom(),
            filter: seldom(),
            reply: seldom(),
            module: seldom(),
            fan_out: seldom(),
            invalid: seldom(),
            ended: seldom(),
        }
    }

    /// What the broker does not take, once; it is tried again all the time.
    pub(super) fn problem(&self, why: &str) {
        error!(cage = %self.cage, interface = %self.interface, error = why, "the broker does not take a declaration");
    }

    /// One queue is consumed no more; the others are.
    pub(super) fn consumer_ended(&self, why: &str) {
        self.ended.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, why, suppressed, "consuming of a queue begins anew");
        });
    }

    pub(super) fn resumed(&self, why: &str) {
        warn!(cage = %self.cage, interface = %self.interface, why, "consuming begins anew");
    }

    pub(super) fn told_to(&self, what: &str) {
        info!(cage = %self.cage, interface = %self.interface, command = what, "command of a message");
    }

    /// A message that was not even read.
    pub(super) fn message_refused(&self, queue: &str, refusal: Refusal, body_bytes_max: u64) {
        match refusal {
            Refusal::TooLong { bytes } => self.too_long.log(|suppressed| {
                warn!(
                    cage = %self.cage, interface = %self.interface, queue, bytes, body_bytes_max, suppressed,
                    "message too long"
                );
            }),
            Refusal::Unreadable => self.unreadable.log(|suppressed| {
                warn!(cage = %self.cage, interface = %self.interface, queue, suppressed, "message with unreadable properties");
            }),
        }
    }

    /// What it says stays untold: a log is read by more people than a queue.
    pub(super) fn malformed(&self, why: &str, bytes: usize) {
        self.malformed.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, why, bytes, suppressed, "message cannot be read");
        });
    }

    pub(super) fn unknown(&self, key: &str) {
        debug!(cage = %self.cage, interface = %self.interface, key, "message without a handler");
    }

    /// The message waits in its queue.
    pub(super) fn no_module(&self, module: &str) {
        self.module.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, module, suppressed, "no such module, messages wait");
        });
    }

    /// A module's reply that has no place in a message: it would be the same the next time.
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
