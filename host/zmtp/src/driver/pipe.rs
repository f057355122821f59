//! What waits to be sent to one peer. Senders put it in, the peer's connection takes it out.

use std::collections::VecDeque;
use std::task::Waker;

use super::lock::Mutex;
use super::subscriptions::Subscriptions;
use crate::codec::Command;
use crate::event::DisconnectReason;
use crate::limits::Limits;
use crate::message::Message;

/// What a connection sends.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Message(Message),
    /// A subscription or its end.
    Command(Command),
}

/// What a connection is told to do.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// Send what waits, then close.
    Finish,
    /// Close.
    Kill(DisconnectReason),
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

/// What a connection has put into the form of the wire since it last said so.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) messages: usize,
    pub(crate) weight: usize,
}

#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) id: u64,
    messages_max: usize,
    bytes_max: usize,
    /// Subscriptions and cancellations that may wait.
    commands_max: usize,
    state: Mutex<State>,
    /// Of the peer, if this socket is a PUB.
    pub(crate) subscriptions: Mutex<Subscriptions>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Outgoing>,
    /// Those in `queue`, and those that the connection has taken and not yet put into the form of the wire.
    messages: usize,
    weight: usize,
    /// The connection's task.
    task: Option<Waker>,
    /// The task found nothing to send.
    idle: bool,
    /// Somebody waits for room.
    awaited: bool,
    end: Option<End>,
    closed: bool,
}

impl Pipe {
    pub(crate) fn new(id: u64, limits: &Limits) -> Self {
        Self {
            id,
            messages_max: limits.send_messages_max.max(1),
            bytes_max: limits.send_bytes_max,
            // All subscriptions at the start of a connection, and as many changes.
            commands_max: limits.subscriptions_max.max(1).saturating_mul(2),
            state: Mutex::default(),
            subscriptions: Mutex::default(),
        }
    }

    /// Puts a message in, or gives it back.
    pub(crate) fn push(&self, message: Message) -> Result<(), (Refused, Message)> {
        let weight = message.weight();
        let mut state = self.state.lock();
        if state.closed {
            return Err((Refused::Closed, message));
        }
        // One message may exceed the bytes: it would never fit otherwise.
        let full = state.messages >= self.messages_max || (state.weight > 0 && state.weight + weight > self.bytes_max);
        if full {
            state.awaited = true;
            return Err((Refused::Full, message));
        }
        state.messages += 1;
        state.weight += weight;
        state.queue.push_back(Outgoing::Message(message));
        let task = if std::mem::take(&mut state.idle) { state.task.take() } else { None };
        drop(state);
        wake(task);
        Ok(())
    }

    /// Puts a command in. One that finds as many before it as messages may wait ends the connection, which will begin anew
    /// with all subscriptions.
    pub(crate) fn push_command(&self, command: Command) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        if state.queue.len() >= self.commands_max {
            drop(state);
            return self.end(End::Kill(DisconnectReason::NotReading));
        }
        state.queue.push_back(Outgoing::Command(command));
        let task = if std::mem::take(&mut state.idle) { state.task.take() } else { None };
        drop(state);
        wake(task);
    }

    /// Tells the connection to end. What was said before stays, unless it was to finish and now is not.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.state.lock();
        if !matches!(state.end, Some(End::Kill(_))) {
            state.end = Some(end);
        }
        state.closed = true;
        let task = state.task.take();
        drop(state);
        wake(task);
    }

    /// Called by the connection each time that it runs: it will be woken, and learns whether it is to end.
    pub(crate) fn attend(&self, waker: &Waker) -> Option<End> {
        let mut state = self.state.lock();
        if !state.task.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.task = Some(waker.clone());
        }
        state.end.clone()
    }

    /// Takes all that waits, in exchange for an empty queue. If there is nothing, the next push wakes the connection.
    pub(crate) fn take(&self, taken: &mut VecDeque<Outgoing>) {
        debug_assert!(taken.is_empty());
        let mut state = self.state.lock();
        std::mem::swap(&mut state.queue, taken);
        state.idle = taken.is_empty();
    }

    /// Makes room for what was put into the form of the wire. Whether somebody waits for that.
    pub(crate) fn release(&self, sent: &mut Sent) -> bool {
        let sent = std::mem::take(sent);
        let mut state = self.state.lock();
        state.messages = state.messages.saturating_sub(sent.messages);
        state.weight = state.weight.saturating_sub(sent.weight);
        state.awaited && {
            state.awaited = false;
            true
        }
    }

    /// Puts commands before all else, for the connection that is just beginning.
    pub(crate) fn begin_with(&self, commands: impl Iterator<Item = Command>) {
        let mut state = self.state.lock();
        let behind = std::mem::take(&mut state.queue);
        state.queue.extend(commands.map(Outgoing::Command));
        state.queue.extend(behind);
    }

    /// Puts back what a connection took and did not send, for the next connection. In between nothing is idle.
    pub(crate) fn restore(&self, mut taken: VecDeque<Outgoing>) {
        let mut state = self.state.lock();
        taken.append(&mut state.queue);
        state.queue = taken;
        state.idle = false;
        state.task = None;
    }

    /// Takes nothing more, and forgets what waits. How many messages that was.
    pub(crate) fn close(&self) -> usize {
        let mut state = self.state.lock();
        state.closed = true;
        state.task = None;
        let queue = std::mem::take(&mut state.queue);
        let messages = std::mem::take(&mut state.messages);
        state.weight = 0;
        drop(state);
        drop(queue);
        messages
    }

    /// Whether there is nothing that waits, with the connection or before it.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.messages == 0 && state.queue.is_empty()
    }
}

fn wake(task: Option<Waker>) {
    if let Some(task) = task {
        task.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(send_messages_max: usize, send_bytes_max: usize) -> Pipe {
        Pipe::new(1, &Limits { send_messages_max, send_bytes_max, ..Limits::default() })
    }

    #[test]
    fn messages_have_a_bound_until_they_are_released() {
        let pipe = pipe(2, 1 << 20);
        pipe.push("a".into()).unwrap();
        pipe.push("b".into()).unwrap();
        assert_eq!(pipe.push("c".into()).unwrap_err(), (Refused::Full, "c".into()));
        let mut taken = VecDeque::new();
        pipe.take(&mut taken);
        assert_eq!(taken.len(), 2);
        assert_eq!(pipe.push("c".into()).unwrap_err().0, Refused::Full);
        assert!(pipe.release(&mut Sent { messages: 1, weight: 65 }), "somebody waits");
        pipe.push("c".into()).unwrap();
        assert!(!pipe.release(&mut Sent { messages: 1, weight: 65 }), "nobody waits any more");
    }

    #[test]
    fn bytes_have_a_bound_which_one_message_may_exceed() {
        let pipe = pipe(10, 200);
        pipe.push(vec![0; 500].into()).unwrap();
        assert_eq!(pipe.push("x".into()).unwrap_err().0, Refused::Full);
        pipe.release(&mut Sent { messages: 1, weight: 564 });
        pipe.push("x".into()).unwrap();
        pipe.push("x".into()).unwrap();
        pipe.push("x".into()).unwrap();
        assert_eq!(pipe.push("x".into()).unwrap_err().0, Refused::Full);
    }

    #[test]
    fn what_was_not_sent_comes_first_on_the_next_connection() {
        let pipe = pipe(10, 1 << 20);
        pipe.push("a".into()).unwrap();
        let mut taken = VecDeque::new();
        pipe.take(&mut taken);
        pipe.push("b".into()).unwrap();
        pipe.restore(taken);
        let mut again = VecDeque::new();
        pipe.take(&mut again);
        let order: Vec<_> = again.iter().map(|item| format!("{item:?}")).collect();
        assert!(order[0].contains("\"a\"") && order[1].contains("\"b\""), "{order:?}");
        assert_eq!(pipe.close(), 2);
        assert_eq!(pipe.push("c".into()).unwrap_err().0, Refused::Closed);
    }

    #[test]
    fn commands_beyond_the_bound_end_the_connection() {
        let pipe = Pipe::new(1, &Limits { subscriptions_max: 2, ..Limits::default() });
        pipe.begin_with((0..2).map(|_| Command::Subscribe("x".into())));
        for _ in 0..2 {
            pipe.push_command(Command::Cancel("x".into()));
        }
        assert!(pipe.attend(Waker::noop()).is_none());
        pipe.push_command(Command::Subscribe("x".into()));
        let end = pipe.attend(Waker::noop());
        assert!(matches!(end, Some(End::Kill(DisconnectReason::NotReading))), "{end:?}");
    }
}
