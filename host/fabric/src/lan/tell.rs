//! Whom this copy tells of others, of whom, and when: each peer that is connected, of every copy that this one knows at
//! first hand, when the connection begins, when that list changes, and now and then. Hearsay is not passed on, so what
//! nobody is connected to any more is forgotten everywhere.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Inner, told};
use crate::discovery::{Address, Found, Sighting};
use crate::fabric::CopyId;
use crate::link::Link;

/// Between two looks for changes of which nothing else tells, and for what has expired.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Changes that follow each other are told together.
const TOGETHER: Duration = Duration::from_millis(300);
/// Unchanged members are told again, well before they expire at those who heard of them.
const REPEAT: Duration = Duration::from_secs(20);
/// This copy is announced by multicast again: a network that was parted, or a peer that took it for dead, finds it.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(60);
/// A look that is so late shows that the process was stopped, and that others may have given it up.
const STOPPED_FOR: Duration = Duration::from_secs(2);

/// Connections whose peers are told.
#[derive(Default)]
pub(super) struct Audience(Mutex<Vec<Peer>>);

struct Peer {
    copy: CopyId,
    link: Link,
    /// None on this machine.
    from: Option<IpAddr>,
}

impl Audience {
    /// True when there is no other connection to that copy.
    fn join(&self, peer: Peer) -> bool {
        let mut peers = self.0.lock();
        peers.retain(|known| !known.link.is_closed());
        let first = !peers.iter().any(|known| known.copy == peer.copy && known.link.is_usable());
        peers.push(peer);
        first
    }

    /// One connection to each copy.
    fn each(&self) -> Vec<(Link, Option<IpAddr>)> {
        let mut peers = self.0.lock();
        peers.retain(|known| !known.link.is_closed());
        peers.sort_by_key(|known| (known.copy, !known.link.is_usable()));
        let firsts = peers.chunk_by(|one, next| one.copy == next.copy).filter_map(|peers| peers.first());
        firsts.map(|peer| (peer.link.clone(), peer.from)).collect()
    }
}

impl Inner {
    /// Tells a peer of the others, from now on for as long as the connection lasts.
    pub(super) fn tell(&self, link: &Link, copy: CopyId, from: Option<IpAddr>) {
        if self.audience.join(Peer { copy, link: link.clone(), from }) {
            let members = self.firsthand();
            tell_one(link, from, &members);
        }
    }

    /// Copies that can be reached over the network, in order.
    fn firsthand(&self) -> Vec<Sighting> {
        let member = |copy: Arc<super::copy::Copy>| {
            let (cage, node, address) = (copy.cage.to_string(), String::new(), copy.firsthand()?);
            Some(Sighting { cage, copy: copy.id, node, address, found: Found::Told })
        };
        let mut members: Vec<_> = self.copies.all().into_iter().filter_map(member).collect();
        members.sort();
        members
    }

    pub(super) async fn keep_telling(self: Arc<Self>) {
        let mut last = Vec::new();
        let (mut told, mut announced) = (Instant::now(), Instant::now());
        loop {
            let begun = Instant::now();
            // What changes while this is not waiting is found at the next look.
            let _ = tokio::time::timeout(LOOK_INTERVAL, self.changed.notified()).await;
            tokio::time::sleep(TOGETHER).await;
            self.copies.expire(Instant::now());
            if announced.elapsed() > ANNOUNCE_AGAIN || begun.elapsed() > LOOK_INTERVAL + TOGETHER + STOPPED_FOR {
                announced = Instant::now();
                self.announce();
            }
            let members = self.firsthand();
            if members != last || told.elapsed() > REPEAT {
                self.audience.each().iter().for_each(|(link, from)| tell_one(link, *from, &members));
                (last, told) = (members, Instant::now());
            }
        }
    }
}

/// An address of this machine only means nothing to others.
fn tell_one(link: &Link, from: Option<IpAddr>, members: &[Sighting]) {
    let here = from.is_none_or(|from| from.to_canonical().is_loopback());
    let mut fit: Vec<_> = members.iter().filter(|member| here || !is_loopback(&member.address)).collect();
    // Beyond the bound of a frame others get their turn the next time.
    if fit.len() > told::MEMBERS_MAX {
        fastrand::shuffle(&mut fit);
    }
    if !fit.is_empty() {
        link.tell(&told::encode(fit));
    }
}

fn is_loopback(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp(address) => match address.parse::<std::net::SocketAddr>() {
            Ok(address) => address.ip().to_canonical().is_loopback(),
            Err(_) => address.starts_with("localhost:"),
        },
    }
}
