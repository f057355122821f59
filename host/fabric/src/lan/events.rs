//! Log events of the lan fabric: at most one line for each peer and reason in a minute. A peer is named without the port
//! from which it connects, since that is another one each time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wasmcage_core::telemetry::{KeyedThrottle, Throttle};

/// The same peer with the same trouble is named again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Most peers and reasons that have limits of their own. All others share one.
const KNOWN_MAX: usize = 1_000;

pub(super) struct Events {
    cage: Arc<str>,
    interface: String,
    /// By peer and kind of error.
    throttle: KeyedThrottle<(String, String)>,
}

impl Events {
    pub(super) fn new(cage: Arc<str>, interface: String) -> Self {
        let throttle = KeyedThrottle::new(KNOWN_MAX, AGAIN_AFTER, Throttle::seldom());
        Self { cage, interface, throttle }
    }

    /// Logs that a peer was refused, or cut off.
    pub(super) fn refused(&self, peer: &str, error: &str) {
        let Some(suppressed) = self.pass(peer, error) else { return };
        let (cage, interface) = (&*self.cage, &self.interface);
        tracing::warn!(cage, interface, address = peer, error, suppressed, "peer refused");
    }

    /// Logs that a configured peer cannot be reached.
    pub(super) fn unreachable(&self, callee: &str, address: &str, error: &str) {
        let Some(suppressed) = self.pass(address, error) else { return };
        let (cage, interface) = (&*self.cage, &self.interface);
        tracing::warn!(cage, interface, callee, address, error, suppressed, "peer unreachable, trying again");
    }

    /// Logs that the cage's socket, or its directory, had been removed.
    pub(super) fn listening_again(&self, socket: &Path) {
        let (cage, interface) = (&*self.cage, &self.interface);
        tracing::warn!(cage, interface, socket = %socket.display(), "the socket had been removed and was made again");
    }

    pub(super) fn connected(&self, callee: &str, address: &str, copy: &str) {
        let (cage, interface) = (&*self.cage, &self.interface);
        tracing::info!(cage, interface, callee, address, copy, "peer connected");
    }

    /// The number of events of this kind that were not logged since the last; none if this one is not to be logged either.
    fn pass(&self, peer: &str, error: &str) -> Option<u64> {
        // Digits are left out: ports and the like make each error a new one.
        let kind: String = error.chars().filter(|c| !c.is_ascii_digit()).take(80).collect();
        self.throttle.pass((peer.chars().take(80).collect(), kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_named_once_for_each_trouble() {
        let events = Events::new("worker".into(), "rpc".into());
        assert_eq!(events.pass("10.0.0.1", "bad frame of 17 bytes"), Some(0));
        assert_eq!(events.pass("10.0.0.1", "bad frame of 18 bytes"), None);
        assert_eq!(events.pass("10.0.0.1", "expired"), Some(0));
        assert_eq!(events.pass("10.0.0.2", "expired"), Some(0));
        let trouble = |number: usize| ("x".repeat(number % 70), "y".repeat(number / 70));
        let told = (0..5_000).map(trouble).filter(|(peer, error)| events.pass(peer, error).is_some());
        assert_eq!(told.count(), KNOWN_MAX - 3 + 1, "the last tells of those beyond the bound");
    }
}
