//! Log events of fabric `nats`, one function for each. Events that outsiders can cause at will are throttled; a line has
//! the number of those left out before it.

use std::fmt::Display;
use std::sync::Arc;

use tracing::{info, warn};

use wasmcage_core::telemetry::Throttle;

pub(super) struct Events {
    cage: Arc<str>,
    interface: Arc<str>,
    servers: String,
    unreachable: Throttle,
    server: Throttle,
    malformed: Throttle,
    dropped: Throttle,
}

impl Events {
    pub(super) fn new(cage: Arc<str>, interface: Arc<str>, servers: String) -> Self {
        let seldom = Throttle::seldom;
        Self {
            cage,
            interface,
            servers,
            unreachable: seldom(),
            server: seldom(),
            malformed: seldom(),
            dropped: seldom(),
        }
    }

    pub(super) fn connected(&self) {
        info!(cage = %self.cage, interface = %self.interface, address = %self.servers, "nats connected");
    }

    pub(super) fn disconnected(&self) {
        warn!(cage = %self.cage, interface = %self.interface, address = %self.servers, "nats connection lost");
    }

    /// Logs that no server could be connected to; it is tried again for ever.
    pub(super) fn unreachable(&self, error: &dyn Display) {
        if let Some(suppressed) = self.unreachable.pass() {
            let (cage, interface, address) = (&self.cage, &self.interface, &self.servers);
            warn!(%cage, %interface, %address, %error, suppressed, "nats not reached");
        }
    }

    /// Logs that the server refuses something, such as a subject for which this cage has no permission.
    pub(super) fn refused_by_server(&self, error: &dyn Display) {
        if let Some(suppressed) = self.server.pass() {
            warn!(cage = %self.cage, interface = %self.interface, %error, suppressed, "nats refused");
        }
    }

    /// Logs that messages came faster than they were read, so that calls are lost.
    pub(super) fn messages_dropped(&self) {
        if let Some(suppressed) = self.dropped.pass() {
            warn!(cage = %self.cage, interface = %self.interface, suppressed, "messages from nats dropped");
        }
    }

    /// `source` is the subject of the message, or the cage that sent it.
    pub(super) fn malformed(&self, source: &str, error: &dyn Display) {
        if let Some(suppressed) = self.malformed.pass() {
            let (cage, interface) = (&self.cage, &self.interface);
            warn!(%cage, %interface, source, %error, suppressed, "message from nats refused");
        }
    }
}
