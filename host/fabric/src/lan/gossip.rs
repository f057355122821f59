//! Gossip: tells each connected peer of the copies that this one knows first-hand, when the connection begins, when that
//! list changes, and at an interval. Gossip itself is not passed on, so that a copy to which nobody is connected any more
//! is forgotten everywhere.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{LanInner, gossip_format};
use crate::discovery::{CopyAddress, CopyHint, FoundBy};
use crate::fabric::CopyId;
use crate::link::Link;

/// Interval at which the list is compared without a notification, and expired gossip is dropped.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Delay after a change, so that changes that follow each other are sent together.
const BATCH_DELAY: Duration = Duration::from_millis(300);
/// An unchanged list is sent again after this time, well before it expires at the receivers.
const REPEAT_INTERVAL: Duration = Duration::from_secs(20);
/// Interval at which this copy is announced by multicast again, for peers that lost it when the network was split.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(60);
/// A check that is this late shows that the process was suspended, and that peers may have given it up.
const SUSPENDED_AFTER: Duration = Duration::from_secs(2);

/// Connections whose peers get gossip.
#[derive(Default)]
pub(super) struct GossipPeers(Mutex<Vec<GossipPeer>>);

struct GossipPeer {
    copy: CopyId,
    link: Link,
    /// Address of the peer; none on this machine.
    from: Option<IpAddr>,
}

impl GossipPeers {
    /// Returns true when there is no other usable connection to that copy.
    fn add(&self, peer: GossipPeer) -> bool {
        let mut peers = self.0.lock();
        peers.retain(|known| !known.link.is_closed());
        let first = !peers.iter().any(|known| known.copy == peer.copy && known.link.is_usable());
        peers.push(peer);
        first
    }

    /// Returns one connection to each copy.
    fn each(&self) -> Vec<(Link, Option<IpAddr>)> {
        let mut peers = self.0.lock();
        peers.retain(|known| !known.link.is_closed());
        peers.sort_by_key(|known| (known.copy, !known.link.is_usable()));
        let firsts = peers.chunk_by(|one, next| one.copy == next.copy).filter_map(|peers| peers.first());
        firsts.map(|peer| (peer.link.clone(), peer.from)).collect()
    }
}

impl LanInner {
    /// Sends the peer gossip, now and as long as the connection lasts.
    pub(super) fn add_gossip_peer(&self, link: &Link, copy: CopyId, from: Option<IpAddr>) {
        if self.gossip_peers.add(GossipPeer { copy, link: link.clone(), from }) {
            let members = self.firsthand();
            send_members(link, from, &members);
        }
    }

    /// Returns the copies that this one knows first-hand and that can be reached over the network, sorted.
    fn firsthand(&self) -> Vec<CopyHint> {
        let member = |copy: Arc<super::copy::RemoteCopy>| {
            let (cage, node, address) = (copy.cage.to_string(), String::new(), copy.firsthand()?);
            Some(CopyHint { cage, copy: copy.id, node, address, found_by: FoundBy::Gossip })
        };
        let mut members: Vec<_> = self.copies.all().into_iter().filter_map(member).collect();
        members.sort();
        members
    }

    pub(super) async fn send_members_repeatedly(self: Arc<Self>) {
        let mut last = Vec::new();
        let (mut sent, mut announced) = (Instant::now(), Instant::now());
        loop {
            let begun = Instant::now();
            // A change that comes while this does not wait is found at the next check.
            let _ = tokio::time::timeout(CHECK_INTERVAL, self.changed.notified()).await;
            tokio::time::sleep(BATCH_DELAY).await;
            self.copies.expire(Instant::now());
            if announced.elapsed() > ANNOUNCE_INTERVAL
                || begun.elapsed() > CHECK_INTERVAL + BATCH_DELAY + SUSPENDED_AFTER
            {
                announced = Instant::now();
                self.announce();
            }
            let members = self.firsthand();
            if members != last || sent.elapsed() > REPEAT_INTERVAL {
                self.gossip_peers.each().iter().for_each(|(link, from)| send_members(link, *from, &members));
                (last, sent) = (members, Instant::now());
            }
        }
    }
}

/// Sends the list to one peer, without loopback addresses if the peer is on another machine.
fn send_members(link: &Link, from: Option<IpAddr>, members: &[CopyHint]) {
    let here = from.is_none_or(|from| from.to_canonical().is_loopback());
    let mut fit: Vec<_> = members.iter().filter(|member| here || !is_loopback(&member.address)).collect();
    // A frame has room for `MEMBERS_MAX`: a random choice, so that each member is sent sooner or later.
    if fit.len() > gossip_format::MEMBERS_MAX {
        fastrand::shuffle(&mut fit);
    }
    if !fit.is_empty() {
        link.send_members(&gossip_format::encode(fit));
    }
}

fn is_loopback(address: &CopyAddress) -> bool {
    match address {
        CopyAddress::Unix(_) => true,
        CopyAddress::Tcp(address) => match address.parse::<std::net::SocketAddr>() {
            Ok(address) => address.ip().to_canonical().is_loopback(),
            Err(_) => address.starts_with("localhost:"),
        },
    }
}
