//! Limits connections from the network that have not greeted yet. Anybody can make them, so they have a bound of their
//! own, and one for each address: at the bound, the oldest is cut off for a new one. A cage needs milliseconds for its
//! handshake, so it succeeds beside many connections that are silent.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Handshakes in progress of all addresses together.
const HANDSHAKES_MAX: usize = 512;
/// Handshakes in progress of one IPv4 address, or of one IPv6 network of 64 bits, which one machine may have.
const HANDSHAKES_OF_ADDRESS_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Handshakes(Mutex<HandshakeQueue>);

/// The oldest first.
#[derive(Default)]
struct HandshakeQueue {
    next: u64,
    all: VecDeque<(u64, IpAddr, oneshot::Sender<()>)>,
}

/// Counts a handshake in progress until it is dropped.
pub(super) struct Handshake {
    handshakes: Arc<Handshakes>,
    number: u64,
    cut: oneshot::Receiver<()>,
}

impl Handshakes {
    /// Counts a handshake in. At a bound, cuts the oldest one off.
    pub(super) fn begin(self: &Arc<Self>, from: IpAddr) -> Handshake {
        let network = network_of(from);
        let mut pending = self.0.lock();
        let of_network = pending.all.iter().filter(|(_, other, _)| *other == network).count();
        if of_network >= HANDSHAKES_OF_ADDRESS_MAX {
            let oldest = pending.all.iter().position(|(_, other, _)| *other == network);
            oldest.map(|oldest| pending.all.remove(oldest));
        } else if pending.all.len() >= HANDSHAKES_MAX {
            pending.all.pop_front();
        }
        let (keep, cut) = oneshot::channel();
        pending.next += 1;
        let number = pending.next;
        pending.all.push_back((number, network, keep));
        Handshake { handshakes: self.clone(), number, cut }
    }
}

impl Handshake {
    /// Resolves when this handshake is cut off for a newer one.
    pub(super) async fn cut(&mut self) {
        // Nothing is sent: the sender is dropped.
        let _ = (&mut self.cut).await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut pending = self.handshakes.0.lock();
        // The queue is sorted by number.
        if let Ok(at) = pending.all.binary_search_by_key(&self.number, |(number, ..)| *number) {
            pending.all.remove(at);
        }
    }
}

fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn is_cut(handshake: &mut Handshake) -> bool {
        handshake.cut().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_of_an_address_makes_room_for_its_next() {
        let handshakes = Arc::new(Handshakes::default());
        let (flood, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut quiet = handshakes.begin(other);
        let mut all: Vec<_> = (0..3 * HANDSHAKES_OF_ADDRESS_MAX).map(|_| handshakes.begin(flood)).collect();
        let cut: Vec<_> = all.iter_mut().map(is_cut).collect();
        assert!(cut[..2 * HANDSHAKES_OF_ADDRESS_MAX].iter().all(|cut| *cut));
        assert!(cut[2 * HANDSHAKES_OF_ADDRESS_MAX..].iter().all(|cut| !*cut));
        assert!(!is_cut(&mut quiet));
        drop(all);
        assert_eq!(handshakes.0.lock().all.len(), 1);
    }

    #[test]
    fn the_oldest_of_all_makes_room_when_many_addresses_come() {
        let handshakes = Arc::new(Handshakes::default());
        let mut first = handshakes.begin("fd00::1".parse().unwrap());
        let from = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        let _all: Vec<_> = (0..HANDSHAKES_MAX as u32).map(|n| handshakes.begin(from(n))).collect();
        assert!(is_cut(&mut first));
        assert_eq!(handshakes.0.lock().all.len(), HANDSHAKES_MAX);
    }

    #[test]
    fn an_ipv6_machine_is_counted_by_its_network() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1:2:3"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    }
}
