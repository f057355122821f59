//! What was received and not yet handed to the application: a queue for each peer, from which the application takes in turn.
//!
//! A peer whose queue is full is not read from any further; the others are. Queues outlive their connections until they are
//! empty.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::lock::Mutex;
use super::pipe::Pipe;
use crate::limits::Limits;
use crate::message::Message;
use crate::options::Identity;

/// At most so many messages of one peer are taken before the next peer's turn.
const TURN_MESSAGES: usize = 16;
/// At most so many bytes of one peer, and one message.
const TURN_BYTES: usize = 256 * 1024;
/// At most so many messages are put in at once.
pub(crate) const ROOM_MAX: usize = 64;

/// From whom something came.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) identity: Identity,
    pub(crate) pipe: Arc<Pipe>,
}

#[derive(Debug)]
pub(crate) enum Item {
    Message {
        message: Message,
        weight: usize,
    },
    /// The connection ended that had this request of a REQ.
    Gone(u64),
}

impl From<Message> for Item {
    fn from(message: Message) -> Self {
        let weight = message.weight();
        Self::Message { message, weight }
    }
}

impl Item {
    const fn weight(&self) -> usize {
        match self {
            Self::Message { weight, .. } => *weight,
            Self::Gone(_) => 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Inbound {
    messages_max: usize,
    bytes_max: usize,
    total_messages_max: usize,
    total_bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<u64, Queue>,
    /// Those that have something, in the order of their turns.
    ready: VecDeque<u64>,
    messages: usize,
    weight: usize,
    receiver: Option<Waker>,
    closed: bool,
}

#[derive(Debug)]
struct Queue {
    source: Arc<Source>,
    items: VecDeque<Item>,
    weight: usize,
    /// The connection, if it waits for room.
    reader: Option<Waker>,
    /// There is a connection.
    open: bool,
}

impl Inbound {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            messages_max: limits.receive_messages_max.max(1),
            bytes_max: limits.receive_bytes_max.max(1),
            total_messages_max: limits.receive_total_messages_max.max(1),
            total_bytes_max: limits.receive_total_bytes_max.max(1),
            state: Mutex::default(),
        }
    }

    /// A connection begins.
    pub(crate) fn open(&self, source: Arc<Source>) {
        let mut state = self.state.lock();
        let new = || Queue { source: source.clone(), items: VecDeque::new(), weight: 0, reader: None, open: true };
        let queue = state.queues.entry(source.pipe.id).or_insert_with(new);
        queue.source = source;
        queue.open = true;
    }

    /// A connection ended. What it brought can still be taken.
    pub(crate) fn shut(&self, id: u64, gone: Option<u64>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(queue) = state.queues.get_mut(&id) else { return };
        queue.open = false;
        queue.reader = None;
        if let Some(request) = gone {
            queue.items.push_back(Item::Gone(request));
            state.messages += 1;
            if queue.items.len() == 1 {
                state.ready.push_back(id);
            }
            if let Some(receiver) = state.receiver.take() {
                receiver.wake();
            }
        } else if queue.items.is_empty() {
            state.queues.remove(&id);
        }
    }

    /// Puts in what a connection received, and tells it how many more messages there is room for. At zero, `reader` is woken
    /// when there is room again.
    pub(crate) fn deliver(&self, id: u64, items: &mut Vec<Item>, reader: &Waker) -> usize {
        let mut locked = self.state.lock();
        let state = &mut *locked;
        let Some(queue) = state.queues.get_mut(&id) else {
            items.clear();
            return ROOM_MAX;
        };
        if !items.is_empty() {
            if queue.items.is_empty() {
                state.ready.push_back(id);
            }
            state.messages += items.len();
            let weight: usize = items.iter().map(Item::weight).sum();
            state.weight += weight;
            queue.weight += weight;
            queue.items.extend(items.drain(..));
        }
        let room = self.room(state.messages, state.weight, queue);
        if room == 0 {
            queue.reader = Some(reader.clone());
        }
        let receiver = if state.ready.is_empty() { None } else { state.receiver.take() };
        // It would only wait for the lock.
        drop(locked);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
        room
    }

    fn room(&self, messages: usize, weight: usize, queue: &Queue) -> usize {
        if queue.items.is_empty() {
            // Whatever the others have waiting, one message of this peer may wait.
            let total = self.total_messages_max.saturating_sub(messages).max(1);
            let total = if weight >= self.total_bytes_max { 1 } else { total };
            return total.min(self.messages_max).min(ROOM_MAX);
        }
        if queue.weight >= self.bytes_max || weight >= self.total_bytes_max {
            return 0;
        }
        let total = self.total_messages_max.saturating_sub(messages);
        self.messages_max.saturating_sub(queue.items.len()).min(total).min(ROOM_MAX)
    }

    /// Takes what one peer's turn brings into `taken`, which is empty. `None` when closed.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>, taken: &mut VecDeque<Item>) -> Poll<Option<Arc<Source>>> {
        let mut state = self.state.lock();
        if state.closed {
            return Poll::Ready(None);
        }
        match self.take(&mut state, taken) {
            Some(source) => Poll::Ready(Some(source)),
            None => {
                if !state.receiver.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                    state.receiver = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    fn take(&self, state: &mut State, taken: &mut VecDeque<Item>) -> Option<Arc<Source>> {
        debug_assert!(taken.is_empty());
        let id = state.ready.pop_front()?;
        let queue = state.queues.get_mut(&id).expect("a queue that has something is not removed");
        let mut weight = 0;
        if queue.items.len() <= TURN_MESSAGES && queue.weight <= TURN_BYTES {
            std::mem::swap(&mut queue.items, taken);
            weight = queue.weight;
        } else {
            while taken.len() < TURN_MESSAGES && weight < TURN_BYTES {
                let Some(item) = queue.items.pop_front() else { break };
                weight += item.weight();
                taken.push_back(item);
            }
        }
        let was_full = self.is_half_full(state.messages, state.weight);
        queue.weight -= weight;
        state.messages -= taken.len();
        state.weight -= weight;
        let is_full = self.is_half_full(state.messages, state.weight);
        let source = queue.source.clone();
        self.resume(queue, is_full);
        if !queue.items.is_empty() {
            state.ready.push_back(id);
        } else if !queue.open {
            state.queues.remove(&id);
        }
        if was_full && !is_full {
            for queue in state.queues.values_mut() {
                self.resume(queue, false);
            }
        }
        Some(source)
    }

    const fn is_half_full(&self, messages: usize, weight: usize) -> bool {
        messages > self.total_messages_max / 2 || weight > self.total_bytes_max / 2
    }

    /// Wakes a connection that waits for room, if there is enough of it. Not at the first free place: reading goes on in
    /// batches.
    fn resume(&self, queue: &mut Queue, is_full: bool) {
        let own = queue.items.len() <= self.messages_max / 2 && queue.weight <= self.bytes_max / 2;
        if (own && !is_full || queue.items.is_empty())
            && let Some(reader) = queue.reader.take()
        {
            reader.wake();
        }
    }

    /// Forgets what waits, and everyone who waits for it.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        let state = std::mem::replace(&mut *state, State { closed: true, ..State::default() });
        if let Some(receiver) = state.receiver {
            receiver.wake();
        }
        for reader in state.queues.into_values().filter_map(|queue| queue.reader) {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbound(limits: &Limits, peers: u64) -> Inbound {
        let inbound = Inbound::new(limits);
        for id in 0..peers {
            let identity = Identity::new(format!("peer-{id}")).unwrap();
            inbound.open(Arc::new(Source { identity, pipe: Arc::new(Pipe::new(id, limits)) }));
        }
        inbound
    }

    fn deliver(inbound: &Inbound, id: u64, count: usize) -> usize {
        let mut items = (0..count).map(|_| Item::from(Message::from("x"))).collect();
        inbound.deliver(id, &mut items, Waker::noop())
    }

    fn take(inbound: &Inbound) -> Option<(u64, usize)> {
        let mut taken = VecDeque::new();
        match inbound.poll_take(&mut Context::from_waker(Waker::noop()), &mut taken) {
            Poll::Ready(source) => Some((source?.pipe.id, taken.len())),
            Poll::Pending => None,
        }
    }

    #[test]
    fn peers_take_turns() {
        let inbound = inbound(&Limits::default(), 3);
        deliver(&inbound, 0, 40);
        deliver(&inbound, 1, 1);
        deliver(&inbound, 2, 2);
        let turns: Vec<_> = std::iter::from_fn(|| take(&inbound)).collect();
        assert_eq!(turns, [(0, 16), (1, 1), (2, 2), (0, 16), (0, 8)]);
    }

    #[test]
    fn a_peer_has_room_up_to_its_own_bound_and_again_below_half_of_it() {
        let inbound = inbound(&Limits { receive_messages_max: 40, ..Limits::default() }, 2);
        assert_eq!(deliver(&inbound, 0, 0), 40);
        assert_eq!(deliver(&inbound, 0, 30), 10);
        assert_eq!(deliver(&inbound, 0, 10), 0);
        assert_eq!(deliver(&inbound, 1, 0), 40, "the other has its own");
        let waits = || inbound.state.lock().queues[&0].reader.is_some();
        assert!(waits());
        take(&inbound);
        assert!(waits());
        take(&inbound);
        assert!(!waits());
    }

    #[test]
    fn bytes_have_bounds_too() {
        let inbound = inbound(&Limits { receive_bytes_max: 100, receive_total_bytes_max: 150, ..Limits::default() }, 4);
        assert!(deliver(&inbound, 0, 1) > 0, "65 bytes");
        assert_eq!(deliver(&inbound, 0, 1), 0, "130 bytes");
        assert_eq!(deliver(&inbound, 1, 0), ROOM_MAX);
        assert_eq!(deliver(&inbound, 1, 1), 0, "195 bytes in all");
        assert_eq!(deliver(&inbound, 2, 0), 1, "who has nothing may always have one message");
        assert_eq!(deliver(&inbound, 2, 1), 0);
    }

    /// Whoever waits because of what others have waiting goes on when that is less, or when it has nothing of its own any more.
    #[test]
    fn those_who_wait_for_the_total_go_on_when_it_is_half() {
        let limits = Limits { receive_total_messages_max: 100, receive_messages_max: 90, ..Limits::default() };
        let inbound = inbound(&limits, 4);
        deliver(&inbound, 0, 50);
        deliver(&inbound, 1, 49);
        assert_eq!(deliver(&inbound, 2, 1), 0);
        assert_eq!(deliver(&inbound, 0, 0), 0);
        let waits = |id: u64| inbound.state.lock().queues[&id].reader.is_some();
        let mut turns = Vec::new();
        while waits(0) {
            turns.push(take(&inbound).unwrap().0);
        }
        assert_eq!(turns, [0, 1, 2, 0, 1], "18 and 17 are left");
        assert!(!waits(2));
    }

    #[test]
    fn what_a_peer_left_behind_is_taken_and_then_forgotten() {
        let inbound = inbound(&Limits::default(), 2);
        deliver(&inbound, 0, 1);
        inbound.shut(0, Some(1));
        inbound.shut(1, None);
        assert_eq!(inbound.state.lock().queues.len(), 1);
        assert_eq!(take(&inbound), Some((0, 2)));
        assert!(inbound.state.lock().queues.is_empty());
        assert_eq!(take(&inbound), None);
    }
}
