//! Keeps the table of copies up to date: takes in the events of discovery, keeps connections to configured addresses, and
//! handles the ends of connections.

use std::sync::Arc;
use std::time::Duration;

use super::LanInner;
use super::copy::RemoteCopy;
use super::dial::NewConnection;
use crate::discovery::{
    CopyAddress, CopyHint, DiscoveryEvent, FoundBy, Listener, Multicast, MulticastError, MulticastSettings,
    PeerAddress, RegistryWatch,
};
use crate::fabric::CopyId;
use crate::link::CloseReason;
use wasmcage_core::telemetry::error_chain;
use wasmcage_core::unix_socket;

/// Pause between two attempts to connect to a configured peer: a random time from this up to twice this.
const PEER_RETRY_PAUSE: Duration = Duration::from_millis(400);
/// How long connections to configured peers wait for the cage to listen.
const LISTENING_TIMEOUT: Duration = Duration::from_secs(1);

impl LanInner {
    /// Starts multicast discovery, if the configuration allows it and the cage has keys: without keys it can neither call
    /// another machine nor be called by one.
    pub(super) fn listen_to_multicast(&self, listener: Listener) {
        if !self.config.multicast || self.keys.current().is_none() {
            return;
        }
        let settings =
            MulticastSettings { port: self.config.multicast_port, loopback_only: self.config.multicast_loopback };
        match Multicast::start(settings, self.local.clone(), listener) {
            Ok(multicast) => drop(self.multicast.set(multicast)),
            Err(error) => self.events.refused("multicast", &error_chain(&error)),
        }
    }

    /// Announces by multicast where this copy listens, if it does.
    pub(super) fn announce(&self) {
        let (Some(multicast), Some(listening)) = (self.multicast.get(), *self.listening.lock()) else { return };
        match multicast.announce(listening) {
            // The configuration asks for a loopback address; no other machine could reach it.
            Ok(()) | Err(MulticastError::LoopbackAddress { .. }) => {}
            Err(error) => self.events.refused("multicast", &error_chain(&error)),
        }
    }

    /// Handles the end of a connection to a copy. Without another connection, checks whether the copy is still there.
    pub(super) fn connection_ended(&self, copy: &Arc<RemoteCopy>, closed: &CloseReason) {
        copy.connection_ended(closed);
        if copy.is_connected() {
            return;
        }
        for (address, found_by) in copy.addresses() {
            match (&address, found_by) {
                (CopyAddress::Unix(path), _) if !matches!(unix_socket::is_listening(path), Ok(true)) => {
                    self.registry.remove_stale(path);
                    self.copies.remove_addresses(&copy.cage, copy.id, found_by, Some(&address));
                }
                (_, FoundBy::Gossip | FoundBy::Connection) => {
                    self.copies.remove_addresses(&copy.cage, copy.id, found_by, Some(&address))
                }
                (_, FoundBy::Multicast) => {
                    self.multicast.get().into_iter().for_each(|multicast| multicast.verify(copy.id));
                }
                (_, FoundBy::SameMachine | FoundBy::Configuration | FoundBy::Caller | FoundBy::Reverse) => {}
            }
        }
        self.copies.drop_if_unreachable(copy);
        self.changed.notify_waiters();
    }

    pub(super) fn discovered(self: &Arc<Self>, event: DiscoveryEvent) {
        match event {
            DiscoveryEvent::Found(hint) => self.take_hint(&hint),
            DiscoveryEvent::Lost { cage, copy, found_by } => self.copies.remove_addresses(&cage, copy, found_by, None),
        }
    }

    /// Adds a hint to the table; whether the copy is there is found out when it is called.
    fn take_hint(&self, hint: &CopyHint) {
        if hint.copy != self.local.copy && self.copies.add_hint(hint, self.lanes.count()) {
            self.changed.notify_waiters();
        }
    }

    /// Scans the directory of this machine's cages now.
    pub(super) fn scan(&self) {
        self.watch.get().into_iter().for_each(RegistryWatch::scan_now);
    }

    /// Keeps a connection to a configured address, which shows which copy is there and when it is gone.
    pub(super) async fn maintain_peer(self: Arc<Self>, cage: Arc<str>, peer: PeerAddress) {
        let address = CopyAddress::Tcp(peer.to_string());
        self.wait_until_listening().await;
        loop {
            let (inner, at, name) = (self.clone(), address.clone(), cage.clone());
            let connecting = self.lanes.next().spawn(async move { inner.connect(&at, &name, None).await });
            match connecting.await {
                Ok(Ok(connection)) => self.hold_peer_connection(&connection, &cage, &address).await,
                Ok(Err(error)) if error.own => return,
                Ok(Err(error)) => self.peer_unreachable(&cage, &peer, &error.to_string()),
                // The lanes have ended.
                Err(error) if error.is_cancelled() => return,
                Err(error) => self.peer_unreachable(&cage, &peer, &error.to_string()),
            }
            tokio::time::sleep(PEER_RETRY_PAUSE + PEER_RETRY_PAUSE.mul_f64(fastrand::f64())).await;
        }
    }

    fn peer_unreachable(&self, cage: &Arc<str>, peer: &PeerAddress, error: &str) {
        self.reverse_status.failed(cage, error);
        self.events.unreachable(cage, &peer.to_string(), error);
    }

    /// Waits until the cage listens, so that already its first greeting names the port.
    async fn wait_until_listening(&self) {
        let begun = async {
            loop {
                let changed = self.changed.notified();
                if self.config.listen.is_none() || self.listening.lock().is_some() {
                    return;
                }
                changed.await;
            }
        };
        // On a timeout the greeting names no port.
        let _ = tokio::time::timeout(LISTENING_TIMEOUT, begun).await;
    }

    async fn hold_peer_connection(&self, connection: &NewConnection, cage: &Arc<str>, address: &CopyAddress) {
        let NewConnection { link, hello, peer } = connection;
        let id = CopyId(hello.copy);
        let lanes = self.lanes.count();
        let Some(copy) = self.copies.record_connection(cage, id, lanes, address, FoundBy::Configuration) else {
            return link.close();
        };
        // Gossip names numeric addresses, so the copy is also recorded at the one behind a configured host name.
        let numeric = connection.peer_address().filter(|numeric| numeric != address);
        if let Some(numeric) = &numeric {
            self.copies.record_connection(cage, id, lanes, numeric, FoundBy::Connection);
        }
        copy.greeted(&hello.node, &hello.version);
        self.changed.notify_waiters();
        self.events.connected(cage, &address.to_string(), &id.to_string());
        self.add_gossip_peer(link, id, peer.map(|peer| peer.ip()));
        let closed = link.closed().await;
        copy.failed(closed.to_string());
        copy.connection_ended(&closed);
        self.copies.remove_addresses(cage, id, FoundBy::Configuration, Some(address));
        if let Some(numeric) = numeric.filter(|_| !copy.is_connected()) {
            self.copies.remove_addresses(cage, id, FoundBy::Connection, Some(&numeric));
        }
        self.changed.notify_waiters();
    }
}
