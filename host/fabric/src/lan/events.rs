//! Log events of the lan fabric: at most one line for each peer and reason in a minute. A peer is named without the port
//! from which it connects, since that is another one each time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use wasmcage_core::telemetry::Gate;

/// The same peer with the same trouble is named again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Peers and reasons that are told apart. Beyond them, one line in `OTHERS_AFTER` tells of all others together.
const KNOWN_MAX: usize = 1_000;
const OTHERS_AFTER: Duration = Duration::from_secs(10);

pub(super) struct Events {
    cage: Arc<str>,
    interface: String,
    known: Mutex<HashMap<(String, String), Known>>,
    others: Gate,
}

struct Known {
    told: Instant,
    /// Since then.
    count: u64,
}

impl Events {
    pub(super) fn new(cage: Arc<str>, interface: String) -> Self {
        Self { cage, interface, known: Mutex::default(), others: Gate::new(1, OTHERS_AFTER) }
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

    /// How many of the kind were not told since the last, when this one is to be told.
    fn pass(&self, peer: &str, error: &str) -> Option<u64> {
        // Ports and the like make each error a new one; who it is matters more.
        let kind: String = error.chars().filter(|c| !c.is_ascii_digit()).take(80).collect();
        let peer: String = peer.chars().take(80).collect();
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.retain(|_, known| known.told.elapsed() < AGAIN_AFTER);
        }
        if known.len() >= KNOWN_MAX && !known.contains_key(&(peer.clone(), kind.clone())) {
            return self.others.pass();
        }
        match known.get_mut(&(peer.clone(), kind.clone())) {
            Some(known) if known.told.elapsed() < AGAIN_AFTER => {
                known.count += 1;
                None
            }
            Some(known) => {
                known.told = Instant::now();
                Some(std::mem::take(&mut known.count))
            }
            None => {
                known.insert((peer, kind), Known { told: Instant::now(), count: 0 });
                Some(0)
            }
        }
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
        assert!(events.known.lock().len() <= KNOWN_MAX);
    }
}
