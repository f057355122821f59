//! How many accepted connections there may be, and how many of them in handshake.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::lock::Mutex;
use super::pipe::{End, Pipe};
use crate::event::DisconnectReason;
use crate::limits::Limits;

/// From where a connection comes, as far as handshakes are counted together. `None` is `ipc`.
pub(crate) type Origin = Option<IpAddr>;

/// An address of IPv6 stands for its network of 64 bits: whoever has one address there has all of them.
pub(crate) fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address @ IpAddr::V4(_) => address,
    }
}

#[derive(Debug)]
pub(crate) struct Gate {
    connections_max: usize,
    handshakes_max: usize,
    per_address_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connections: usize,
    next: u64,
    /// Oldest first.
    handshakes: BTreeMap<u64, (Origin, Arc<Pipe>)>,
}

/// A connection that was let in, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    number: u64,
}

impl Gate {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            connections_max: limits.connections_max,
            handshakes_max: limits.handshakes_max.max(1),
            per_address_max: limits.handshakes_per_address_max.max(1),
            state: Mutex::default(),
        }
    }

    /// Lets a connection in, if there may be another. The oldest handshake gives way if there are too many of them: one that
    /// is worth waiting for takes milliseconds, those that stay silent take as long as they may.
    pub(crate) fn enter(self: &Arc<Self>, origin: Origin, pipe: Arc<Pipe>) -> Option<Ticket> {
        let mut state = self.state.lock();
        if state.connections >= self.connections_max {
            return None;
        }
        let own = |(other, _): &&(Origin, Arc<Pipe>)| *other == origin;
        let oldest = if state.handshakes.values().filter(own).count() >= self.per_address_max {
            state.handshakes.iter().find(|(_, entry)| own(entry)).map(|(number, _)| *number)
        } else if state.handshakes.len() >= self.handshakes_max {
            state.handshakes.keys().next().copied()
        } else {
            None
        };
        if let Some((_, pipe)) = oldest.and_then(|number| state.handshakes.remove(&number)) {
            pipe.end(End::Kill(DisconnectReason::TooManyHandshakes));
        }
        let number = state.next;
        state.next += 1;
        state.connections += 1;
        state.handshakes.insert(number, (origin, pipe));
        Some(Ticket { gate: self.clone(), number })
    }
}

impl Ticket {
    /// The handshake is complete.
    pub(crate) fn established(&self) {
        self.gate.state.lock().handshakes.remove(&self.number);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.connections -= 1;
        state.handshakes.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::task::Waker;

    use super::*;

    fn killed(pipe: &Pipe) -> bool {
        matches!(pipe.attend(Waker::noop()), Some(End::Kill(DisconnectReason::TooManyHandshakes)))
    }

    #[test]
    fn the_oldest_handshake_gives_way_first_within_an_address_then_among_all() {
        let limits = Limits { handshakes_max: 3, handshakes_per_address_max: 2, ..Limits::default() };
        let gate = Arc::new(Gate::new(&limits));
        let origins = [1, 2, 1, 1, 3].map(|last| Some(IpAddr::from([10, 0, 0, last])));
        let pipes: Vec<_> = (0..5).map(|id| Arc::new(Pipe::new(id, &limits))).collect();
        let mut tickets: Vec<_> = origins
            .iter()
            .zip(&pipes)
            .take(3)
            .map(|(origin, pipe)| gate.enter(*origin, pipe.clone()).unwrap())
            .collect();
        assert!(!pipes.iter().any(|pipe| killed(pipe)));
        tickets.push(gate.enter(origins[3], pipes[3].clone()).unwrap());
        assert!(killed(&pipes[0]) && !killed(&pipes[1]));
        tickets.push(gate.enter(origins[4], pipes[4].clone()).unwrap());
        assert!(killed(&pipes[1]) && !killed(&pipes[2]));
        drop(tickets);
        assert_eq!(gate.state.lock().connections, 0);
    }

    #[test]
    fn there_are_no_more_connections_than_allowed() {
        let limits = Limits { connections_max: 1, ..Limits::default() };
        let gate = Arc::new(Gate::new(&limits));
        let pipe = Arc::new(Pipe::new(0, &limits));
        let ticket = gate.enter(None, pipe.clone()).unwrap();
        ticket.established();
        assert!(gate.enter(None, pipe.clone()).is_none());
        drop(ticket);
        assert!(gate.enter(None, pipe).is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let one = origin("2001:db8::1".parse().unwrap());
        assert_eq!(one, origin("2001:db8::ffff:2".parse().unwrap()));
        assert_ne!(one, origin("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(origin(IpAddr::V6("::ffff:1.2.3.4".parse::<Ipv6Addr>().unwrap())), IpAddr::from([1, 2, 3, 4]));
    }
}
