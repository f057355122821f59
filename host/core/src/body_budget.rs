//! A budget of memory for bodies that are held whole: those of requests while they arrive and are handled, and those of
//! answers until their clients have received them. The process has one budget, so that neither many uploads nor clients that
//! do not read can use up the machine's memory. It is charged as bytes arrive, not by the announced length, which costs a
//! client nothing.
//!
//! Shares are fair without being fixed: an interface may have four times what is left. One alone gets four fifths of the
//! budget, several get equal parts, and there is always room for a newcomer. This holds among the interfaces of the process,
//! and, within an interface's share, among the addresses of its clients.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::machine;

/// Bodies up to this size are not charged: they cost little more than their connections, whose number is limited.
const FREE_BYTES: u64 = 16 << 10;
/// Room is taken in steps of this size.
const STEP_BYTES: u64 = 64 << 10;
/// An interface, or a client, may have so many times what is left.
const WEIGHT: u64 = 4;
/// Number of reminders after the last body has ended. Each makes the allocator check a part of its memory.
const REMINDERS: u32 = 6;

/// The budget of the process.
#[derive(Debug)]
pub struct BodyBudget {
    bytes_max: u64,
    in_use: AtomicU64,
    /// How often the allocator is still to be reminded of memory that it may return.
    reminders: AtomicU32,
}

/// An interface's share of the budget.
#[derive(Debug)]
pub struct BodyShare {
    budget: Arc<BodyBudget>,
    in_use: AtomicU64,
    /// Bytes taken by each client that has taken any.
    clients: Mutex<HashMap<IpAddr, u64>>,
}

/// The room that one body takes, given back when this is dropped.
#[derive(Debug)]
pub struct BodyRoom {
    share: Arc<BodyShare>,
    client: IpAddr,
    bytes: u64,
}

/// No room is left for another body, or for more of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bodies take {in_use} of {bytes_max} bytes, and no fair share is left for this one")]
pub struct NoRoom {
    pub in_use: u64,
    pub bytes_max: u64,
}

impl BodyBudget {
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, in_use: AtomicU64::new(0), reminders: AtomicU32::new(0) }
    }

    /// A quarter of the memory that this process may use, at most 4 GiB, or what `WASMCAGE_BODY_MEMORY_MB` says.
    pub fn of_machine() -> Self {
        const LEAST: u64 = 64 << 20;
        const MOST: u64 = 4 << 30;
        let set = std::env::var("WASMCAGE_BODY_MEMORY_MB").ok().and_then(|text| text.trim().parse::<u64>().ok());
        match set {
            Some(megabytes) => Self::new(megabytes.clamp(1, 1 << 20) << 20),
            None => Self::new((machine::memory_bytes() as u64 / 4).clamp(LEAST, MOST)),
        }
    }

    /// Makes the allocator return the memory of bodies that have ended to the system. To be called every few seconds. The
    /// allocator keeps freed blocks for a second, and checks them only when another large block is freed, which in an idle
    /// process would be never.
    pub fn remind_allocator(&self) {
        const BLOCK_BYTES: usize = 8 << 20;
        let reminders = &self.reminders;
        if reminders.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            // The block is never written to, so that it takes no memory itself.
            drop(std::hint::black_box(Vec::<u8>::with_capacity(BLOCK_BYTES)));
        }
    }

    pub fn in_use(&self) -> u64 {
        self.in_use.load(Ordering::Relaxed)
    }
}

impl BodyShare {
    pub fn new(budget: Arc<BodyBudget>) -> Self {
        Self { budget, in_use: AtomicU64::new(0), clients: Mutex::default() }
    }

    /// Makes an empty room for one body of this client.
    pub fn room(self: &Arc<Self>, client: IpAddr) -> BodyRoom {
        BodyRoom { share: self.clone(), client, bytes: 0 }
    }

    fn take(&self, client: IpAddr, bytes: u64) -> Result<(), NoRoom> {
        let BodyBudget { bytes_max, in_use, .. } = &*self.budget;
        let mut clients = self.clients.lock();
        // Taken first and checked afterwards: two that take at once may both be refused, but are never both admitted.
        let all = in_use.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let own = self.in_use.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let left = bytes_max.saturating_sub(all);
        // `more` is what this interface could still have: the solution of `own + more = WEIGHT * (left - more)`.
        let more = (WEIGHT * left).saturating_sub(own) / (WEIGHT + 1);
        let of_client = clients.get(&client).copied().unwrap_or(0) + bytes;
        if own > WEIGHT * left || of_client > WEIGHT * more {
            in_use.fetch_sub(bytes, Ordering::Relaxed);
            self.in_use.fetch_sub(bytes, Ordering::Relaxed);
            return Err(NoRoom { in_use: all - bytes, bytes_max: *bytes_max });
        }
        clients.insert(client, of_client);
        Ok(())
    }

    fn give_back(&self, client: IpAddr, bytes: u64) {
        let mut clients = self.clients.lock();
        if let Some(of_client) = clients.get_mut(&client) {
            *of_client = of_client.saturating_sub(bytes);
            if *of_client == 0 {
                clients.remove(&client);
            }
        }
        self.in_use.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.in_use.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.reminders.store(REMINDERS, Ordering::Relaxed);
    }
}

impl BodyRoom {
    /// Enlarges the room to a body of so many bytes.
    ///
    /// # Errors
    /// The client, its interface or the process has too many already. The room keeps its size then.
    pub fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let bytes = bytes as u64;
        if bytes <= FREE_BYTES || bytes <= self.bytes {
            return Ok(());
        }
        let wanted = bytes.checked_next_multiple_of(STEP_BYTES).unwrap_or(u64::MAX / (WEIGHT + 1));
        self.share.take(self.client, wanted - self.bytes)?;
        self.bytes = wanted;
        Ok(())
    }

    /// Attaches the room to the bytes: it is given back when the last reference to them is dropped.
    pub fn hold(self, bytes: Bytes) -> Bytes {
        match self.bytes {
            0 => bytes,
            _ => Bytes::from_owner(BudgetedBytes { bytes, _room: self }),
        }
    }
}

struct BudgetedBytes {
    bytes: Bytes,
    _room: BodyRoom,
}

impl AsRef<[u8]> for BudgetedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for BodyRoom {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.share.give_back(self.client, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// Takes room for bodies of 1 MiB until there is none for another.
    fn fill(share: &Arc<BodyShare>, client: IpAddr) -> Vec<BodyRoom> {
        let mut rooms = Vec::new();
        loop {
            let mut room = share.room(client);
            match room.grow(MIB as usize) {
                Ok(()) => rooms.push(room),
                Err(_) => return rooms,
            }
        }
    }

    #[test]
    fn one_alone_gets_most_and_leaves_room_for_others() {
        let budget = Arc::new(BodyBudget::new(1000 * MIB));
        let [first, second] = [(); 2].map(|()| Arc::new(BodyShare::new(budget.clone())));
        let greedy = fill(&first, client(1));
        assert!((600..=640).contains(&greedy.len()), "{}", greedy.len());
        // Another client of the same interface, then another interface.
        let other = fill(&first, client(2));
        assert!(other.len() >= 100, "{}", other.len());
        let neighbour = fill(&second, client(1));
        assert!(neighbour.len() >= 100, "{}", neighbour.len());
        assert!(budget.in_use() <= 1000 * MIB);
        drop((greedy, other, neighbour));
        assert_eq!(budget.in_use(), 0);
        assert!(first.clients.lock().is_empty());
    }

    #[test]
    fn parts_become_equal() {
        let budget = Arc::new(BodyBudget::new(900 * MIB));
        let shares: Vec<_> = (0..2).map(|_| Arc::new(BodyShare::new(budget.clone()))).collect();
        let mut rooms = [Vec::new(), Vec::new()];
        let mut greedy = fill(&shares[0], client(1));
        // The one that has more than its part gives back as its bodies end, and gets nothing new.
        while let Some(ended) = greedy.pop() {
            drop(ended);
            for (share, rooms) in shares.iter().zip(&mut rooms) {
                rooms.extend(fill(share, client(1)).into_iter().take(1));
            }
        }
        let [first, second] = rooms.map(|rooms| rooms.len());
        assert!(second >= 200 && first + second <= 900, "{first} {second}");
    }

    #[test]
    fn small_bodies_take_nothing_and_a_body_grows_by_steps() {
        let share = Arc::new(BodyShare::new(Arc::new(BodyBudget::new(10 * MIB))));
        let mut room = share.room(client(1));
        room.grow(FREE_BYTES as usize).unwrap();
        assert_eq!(share.budget.in_use(), 0);
        room.grow(FREE_BYTES as usize + 1).unwrap();
        assert_eq!(share.budget.in_use(), STEP_BYTES);
        room.grow(STEP_BYTES as usize).unwrap();
        assert_eq!(share.budget.in_use(), STEP_BYTES);
        assert_eq!(room.grow(usize::MAX), Err(NoRoom { in_use: STEP_BYTES, bytes_max: 10 * MIB }));
        assert_eq!(share.budget.in_use(), STEP_BYTES);
    }

    #[test]
    fn held_bytes_keep_their_room_as_long_as_any_of_them() {
        let share = Arc::new(BodyShare::new(Arc::new(BodyBudget::new(10 * MIB))));
        let mut room = share.room(client(1));
        room.grow(MIB as usize).unwrap();
        let bytes = room.hold(Bytes::from(vec![b'x'; MIB as usize]));
        let part = bytes.slice(5..7);
        drop(bytes);
        assert_eq!((&part[..], share.budget.in_use()), (&b"xx"[..], MIB));
        drop(part);
        assert_eq!(share.budget.in_use(), 0);
    }
}
