//! Who is known, and how that changes: news of discovery, connections to configured addresses, the ends of connections.

use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::copy::Copy;
use super::dial::Connection;
use crate::discovery::{
    Address, Found, Listener, Multicast, MulticastError, MulticastSettings, News, PeerAddress, Sighting, Watch,
};
use crate::fabric::CopyId;
use crate::link::Closed;
use wasmcage_core::telemetry::error_chain;
use wasmcage_core::unix_socket;

/// Between two attempts at a configured peer: from, and up to twice that.
const PEER_RETRY: Duration = Duration::from_millis(400);
/// From the start until the cage listens.
const LISTENING_TIME: Duration = Duration::from_secs(1);

impl Inner {
    /// Multicast is for those who could be called by, or could call, another machine: those with keys.
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

    /// Tells the network where this copy listens, if it does.
    pub(super) fn announce(&self) {
        let (Some(multicast), Some(listening)) = (self.multicast.get(), *self.listening.lock()) else { return };
        match multicast.announce(listening) {
            // Asked for by `listen`; nobody else could reach it.
            Ok(()) | Err(MulticastError::LoopbackAddress { .. }) => {}
            Err(error) => self.events.refused("multicast", &error_chain(&error)),
        }
    }

    /// A connection to a copy has ended: was that its end?
    pub(super) fn left(&self, copy: &Arc<Copy>, closed: &Closed) {
        copy.connection_ended(closed);
        if copy.is_connected() {
            return;
        }
        for (address, found) in copy.addresses() {
            match (&address, found) {
                (Address::Unix(path), _) if !matches!(unix_socket::is_listening(path), Ok(true)) => {
                    self.registry.remove_stale(path);
                    self.copies.gone(&copy.cage, copy.id, found, Some(&address));
                }
                (_, Found::Told | Found::Met) => self.copies.gone(&copy.cage, copy.id, found, Some(&address)),
                (_, Found::Multicast) => {
                    self.multicast.get().into_iter().for_each(|multicast| multicast.verify(copy.id));
                }
                (_, Found::SameMachine | Found::Peer | Found::Caller | Found::Reverse) => {}
            }
        }
        self.copies.drop_if_lost(copy);
        self.changed.notify_waiters();
    }

    pub(super) fn news(self: &Arc<Self>, news: News) {
        match news {
            News::Seen(sighting) => self.sighted(&sighting),
            News::Gone { cage, copy, found } => self.copies.gone(&cage, copy, found, None),
        }
    }

    /// A hint: who is there is found out when it is called.
    fn sighted(&self, sighting: &Sighting) {
        if sighting.copy != self.local.copy && self.copies.seen(sighting, self.lanes.count()) {
            self.changed.notify_waiters();
        }
    }

    /// Looks into the directory of this machine's cages now.
    pub(super) fn scan(&self) {
        self.watch.get().into_iter().for_each(Watch::scan_now);
    }

    /// Keeps a connection to a configured address: it tells which copy is there, and when it is gone.
    pub(super) async fn keep_peer(self: Arc<Self>, cage: Arc<str>, peer: PeerAddress) {
        let address = Address::Tcp(peer.to_string());
        self.listening_begun().await;
        loop {
            let (inner, at, name) = (self.clone(), address.clone(), cage.clone());
            let connecting = self.lanes.next().spawn(async move { inner.connect(&at, &name, None).await });
            match connecting.await {
                Ok(Ok(connection)) => self.kept(&connection, &cage, &address).await,
                Ok(Err(error)) if error.own => return,
                Ok(Err(error)) => self.not_reached(&cage, &peer, &error.to_string()),
                // The lanes have ended.
                Err(error) if error.is_cancelled() => return,
                Err(error) => self.not_reached(&cage, &peer, &error.to_string()),
            }
            tokio::time::sleep(PEER_RETRY + PEER_RETRY.mul_f64(fastrand::f64())).await;
        }
    }

    fn not_reached(&self, cage: &Arc<str>, peer: &PeerAddress, error: &str) {
        self.reached.failed(cage, error);
        self.events.unreachable(cage, &peer.to_string(), error);
    }

    /// A copy that will listen says so in its greetings, from the first one on.
    async fn listening_begun(&self) {
        let begun = async {
            loop {
                let changed = self.changed.notified();
                if self.config.listen.is_none() || self.listening.lock().is_some() {
                    return;
                }
                changed.await;
            }
        };
        // It may not come to that.
        let _ = tokio::time::timeout(LISTENING_TIME, begun).await;
    }

    async fn kept(&self, connection: &Connection, cage: &Arc<str>, address: &Address) {
        let Connection { link, hello, peer } = connection;
        let id = CopyId(hello.copy);
        let lanes = self.lanes.count();
        let Some(copy) = self.copies.met(cage, id, lanes, address, Found::Peer) else { return link.close() };
        // By its address it is recognized wherever it is told of.
        let plain = connection.peer_address().filter(|plain| plain != address);
        if let Some(plain) = &plain {
            self.copies.met(cage, id, lanes, plain, Found::Met);
        }
        copy.greeted(&hello.node, &hello.version);
        self.changed.notify_waiters();
        self.events.connected(cage, &address.to_string(), &id.to_string());
        self.tell(link, id, peer.map(|peer| peer.ip()));
        let closed = link.closed().await;
        copy.failed(closed.to_string());
        copy.connection_ended(&closed);
        self.copies.gone(cage, id, Found::Peer, Some(address));
        if let Some(plain) = plain.filter(|_| !copy.is_connected()) {
            self.copies.gone(cage, id, Found::Met, Some(&plain));
        }
        self.changed.notify_waiters();
    }
}
