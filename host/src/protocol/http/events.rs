//! What an HTTP interface tells its operator: one function per event, which logs and counts it. Called by every other file
//! of this folder. What outsiders can cause at will is logged seldom, with the number of lines left out, or at debug.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{debug, info, warn};

use crate::request::RequestId;

/// One line of a kind in this time; what comes between is counted.
const SELDOM: Duration = Duration::from_secs(10);

/// The events of one interface.
pub(super) struct Events {
    cage: Arc<str>,
    interface: Arc<str>,
    refused: Seldom,
    accept: Seldom,
    reply: Seldom,
}

impl Events {
    pub(super) fn new(cage: Arc<str>, interface: Arc<str>) -> Self {
        Self { cage, interface, refused: Seldom::new(), accept: Seldom::new(), reply: Seldom::new() }
    }

    pub(super) fn listening(&self, address: &str) {
        info!(cage = %self.cage, interface = %self.interface, address, "interface listening");
    }

    pub(super) fn stopped(&self, connections: usize) {
        info!(cage = %self.cage, interface = %self.interface, connections, "interface stopped listening");
    }

    /// The limit on connections is reached: this one was closed unread.
    pub(super) fn connection_refused(&self, connections_max: usize) {
        if let Some(left_out) = self.refused.turn() {
            warn!(cage = %self.cage, interface = %self.interface, connections_max, left_out, "connections refused");
        }
    }

    /// The process or the machine is out of something; the intake goes on after a pause.
    pub(super) fn accept_failed(&self, error: &io::Error) {
        if let Some(left_out) = self.accept.turn() {
            warn!(cage = %self.cage, interface = %self.interface, %error, left_out, "connection not accepted");
        }
    }

    pub(super) fn connection_ended(&self, peer: SocketAddr, error: &dyn Display) {
        debug!(cage = %self.cage, interface = %self.interface, address = %peer, %error, "connection ended");
    }

    pub(super) fn handshake_failed(&self, peer: SocketAddr, error: &dyn Display) {
        debug!(cage = %self.cage, interface = %self.interface, address = %peer, %error, "tls handshake failed");
    }

    pub(super) fn certificates_changed(&self, file: &Path) {
        info!(cage = %self.cage, interface = %self.interface, file = %file.display(), "certificate reloaded");
    }

    /// The files changed into something unusable; the old certificate serves on. Once per content of the files.
    pub(super) fn certificates_kept(&self, error: &dyn std::error::Error) {
        let error = chain(error);
        warn!(cage = %self.cage, interface = %self.interface, error, "certificate not reloaded");
    }

    /// Answered here, without a module: the client's fault or its absence.
    pub(super) fn turned_away(&self, request: RequestId, peer: IpAddr, code: &str, detail: &str) {
        debug!(
            cage = %self.cage, interface = %self.interface, request = %request, address = %peer, code, error = detail,
            "request turned away"
        );
    }

    /// The module answered with something that HTTP cannot carry.
    pub(super) fn reply_unfit(&self, request: RequestId, module: &str, error: &dyn Display) {
        if let Some(left_out) = self.reply.turn() {
            warn!(
                cage = %self.cage, interface = %self.interface, request = %request, module, %error, left_out,
                "reply not sendable"
            );
        }
    }

    pub(super) fn panicked(&self, request: RequestId) {
        tracing::error!(cage = %self.cage, interface = %self.interface, request = %request, "request panicked");
    }
}

/// An error with all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Lets one event of a kind through in a while.
struct Seldom {
    last: Mutex<Option<Instant>>,
    left_out: AtomicU64,
}

impl Seldom {
    const fn new() -> Self {
        Self { last: Mutex::new(None), left_out: AtomicU64::new(0) }
    }

    /// How many events were left out since the last line, when this one may be logged.
    fn turn(&self) -> Option<u64> {
        let now = Instant::now();
        let mut last = self.last.lock();
        if last.is_some_and(|last| now.duration_since(last) < SELDOM) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *last = Some(now);
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line() {
        let seldom = Seldom::new();
        assert_eq!(seldom.turn(), Some(0));
        assert_eq!(seldom.turn(), None);
        assert_eq!(seldom.left_out.load(Ordering::Relaxed), 1);
    }
}
