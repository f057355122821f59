//! The state of a link, without its socket: the open calls of both sides, the credit of their bodies, and what has to be
//! written next. Frames go in, events come out. Every rule of `frame.rs` that concerns more than one frame is checked
//! here.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::{Bytes, BytesMut};

use super::frame::{self, Direction, Frame, RefusalReason, Violation, violation};
use crate::envelope::Message;

/// Bytes of one body that are in flight at once, so that a long one does not fill the buffers ahead of the others.
const WINDOW_BYTES: usize = 512 << 10;
/// Parts of bodies are added to the write buffer only while it is shorter than this, so that small frames wait for no
/// more.
const WRITE_BYTES: usize = 128 << 10;
/// Bytes of answers that a peer does not read; beyond this, the link is closed.
const UNREAD_BYTES_MAX: usize = 256 << 20;
/// Cancelled calls that the peer has not ended yet; beyond this, no more calls are made.
const CANCELLED_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLimits {
    pub(crate) body_bytes_max: usize,
    /// Calls of the peer in flight.
    pub(crate) calls_max: usize,
    /// Bytes of incomplete long bodies that are received at once; others wait for credit.
    pub(crate) assembly_bytes_max: usize,
}

/// `W` waits for the end of a call made by this side, `R` is the task that runs a call of the peer.
pub(super) struct LinkSession<W, R> {
    limits: SessionLimits,
    /// Whether the peer's calls are served on this link.
    serves: bool,
    last_id: u64,
    calls: HashMap<u64, OutgoingCall<W>>,
    /// Calls of this side that were cancelled and that the peer has not ended yet.
    cancelled: HashSet<u64>,
    last_peer_id: u64,
    served: HashMap<u64, IncomingCall<R>>,
    /// Frames that are written before any part of a long body.
    urgent: BytesMut,
    /// Long bodies that are being sent.
    bodies: HashMap<(Direction, u64), BodySender>,
    /// The long bodies that have credit, in turn.
    ready: VecDeque<(Direction, u64)>,
    unread_bytes: usize,
    /// Calls up to this id have been given to the socket, at least in part.
    handed_over: u64,
    assembling_bytes: usize,
    /// Long bodies of the peer that wait for their first credit.
    waiting: VecDeque<(Direction, u64)>,
    going_away: bool,
    peer_going_away: bool,
    /// The last call of this side that the peer took, from its go-away frame.
    taken: u64,
}

struct OutgoingCall<W> {
    waiter: W,
    answer: Option<Assembly>,
}

enum IncomingCall<R> {
    Assembling(Assembly),
    /// None until `running` is called.
    Running(Option<R>),
}

/// A body of which not all has been received.
struct Assembly {
    head: Bytes,
    first: Bytes,
    bytes: BytesMut,
    total: usize,
    /// Bytes that the sender may send in all; 0 before the first credit.
    granted: usize,
}

struct BodySender {
    rest: Bytes,
    credit: usize,
}

/// How a call of this side ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallEnding {
    Answer(Message),
    /// The call surely did not run.
    Refused(RefusalReason, String),
}

#[derive(Debug)]
pub(super) enum Event<W, R> {
    /// A call of the peer is complete: `running` and `answer` must be called next.
    Call {
        id: u64,
        message: Message,
    },
    /// The peer cancelled a call, whose runner must be stopped.
    Cancelled(R),
    Ended {
        waiter: W,
        ending: CallEnding,
    },
    Members(Bytes),
    GoingAway,
    Bye(String),
}

impl<W, R> LinkSession<W, R> {
    pub(super) fn new(limits: SessionLimits, serves: bool) -> Self {
        Self {
            limits,
            serves,
            last_id: 0,
            calls: HashMap::new(),
            cancelled: HashSet::new(),
            last_peer_id: 0,
            served: HashMap::new(),
            urgent: BytesMut::new(),
            bodies: HashMap::new(),
            ready: VecDeque::new(),
            unread_bytes: 0,
            handed_over: 0,
            assembling_bytes: 0,
            waiting: VecDeque::new(),
            going_away: false,
            peer_going_away: false,
            taken: u64::MAX,
        }
    }

    /// Begins a call. Fails once the peer accepts no more.
    pub(super) fn call(&mut self, message: Message, waiter: W) -> Result<u64, W> {
        if self.peer_going_away || self.cancelled.len() >= CANCELLED_MAX {
            return Err(waiter);
        }
        self.last_id += 1;
        self.send(Direction::Call, self.last_id, message);
        self.calls.insert(self.last_id, OutgoingCall { waiter, answer: None });
        Ok(self.last_id)
    }

    /// Cancels a call of this side.
    pub(super) fn cancel(&mut self, id: u64) {
        let Some(call) = self.calls.remove(&id) else { return };
        match call.answer {
            // The call has ended already; without credit the rest of the answer is not sent.
            Some(assembly) => self.release(Direction::Answer, id, &assembly),
            None => {
                self.cancelled.insert(id);
            }
        }
        self.drop_body(Direction::Call, id);
        frame::put_cancel(&mut self.urgent, id);
    }

    /// Stores the task that runs a call of the peer.
    pub(super) fn running(&mut self, id: u64, runner: R) {
        if let Some(IncomingCall::Running(known)) = self.served.get_mut(&id) {
            *known = Some(runner);
        }
    }

    /// Answers a call of the peer, unless it was cancelled.
    pub(super) fn answer(&mut self, id: u64, message: Message) {
        if self.served.remove(&id).is_some() {
            self.send(Direction::Answer, id, message);
        }
    }

    pub(super) fn ping(&mut self, number: u64) {
        frame::put_ping(&mut self.urgent, number);
    }

    pub(super) fn send_members(&mut self, members: &[u8]) {
        frame::put_members(&mut self.urgent, members);
    }

    pub(super) fn bye(&mut self, text: &str) {
        frame::put_bye(&mut self.urgent, text);
    }

    /// Refuses new calls of the peer from now on.
    pub(super) fn go_away(&mut self) {
        if !self.going_away {
            self.going_away = true;
            frame::put_go_away(&mut self.urgent, self.last_peer_id);
        }
    }

    /// Returns whether neither side has an open call and nothing is left to write.
    pub(super) fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.served.is_empty() && self.urgent.is_empty() && self.bodies.is_empty()
    }

    pub(super) fn calls_open(&self) -> usize {
        self.calls.len()
    }

    pub(super) fn calls_served(&self) -> usize {
        self.served.len()
    }

    /// Returns whether the peer does not read its answers.
    pub(super) fn is_unread(&self) -> bool {
        self.unread_bytes > UNREAD_BYTES_MAX
    }

    /// Returns whether so much is waiting to be written that no more frames should be read.
    pub(super) fn is_congested(&self) -> bool {
        self.urgent.len() > 16 * WRITE_BYTES
    }

    /// Ends all calls. Returns the waiters, each with whether its call may have run, and the runners.
    pub(super) fn close(&mut self) -> (Vec<(W, bool)>, Vec<R>) {
        self.peer_going_away = true;
        let handed_over = self.handed_over.min(self.taken);
        let waiters = self.calls.drain().map(|(id, call)| (call.waiter, id <= handed_over)).collect();
        let runners = self.served.drain().filter_map(|(_, incoming)| match incoming {
            IncomingCall::Running(runner) => runner,
            IncomingCall::Assembling(_) => None,
        });
        (waiters, runners.collect())
    }

    /// Adds to `out` what has to be written next.
    pub(super) fn fill(&mut self, out: &mut BytesMut) {
        if out.is_empty() {
            std::mem::swap(out, &mut self.urgent);
        } else {
            out.extend_from_slice(&self.urgent.split());
        }
        self.unread_bytes = self.unread_bytes.saturating_sub(out.len());
        self.handed_over = self.last_id;
        while out.len() < WRITE_BYTES
            && let Some(key) = self.ready.pop_front()
        {
            let Some(body) = self.bodies.get_mut(&key) else { continue };
            let length = body.rest.len().min(body.credit).min(frame::PART_BYTES_MAX);
            if length == 0 {
                continue;
            }
            frame::put_part(out, key.0, key.1, &body.rest.split_to(length));
            body.credit -= length;
            self.unread_bytes = self.unread_bytes.saturating_sub(length);
            if body.rest.is_empty() {
                self.bodies.remove(&key);
            } else if body.credit > 0 {
                self.ready.push_back(key);
            }
        }
    }

    /// Handles a frame of the peer.
    ///
    /// # Errors
    /// A frame that may not come now.
    pub(super) fn receive(&mut self, frame: Frame) -> Result<Option<Event<W, R>>, Violation> {
        match frame {
            Frame::Begin { direction: Direction::Call, id, total, head, part } => {
                self.receive_call(id, total as usize, head, part)
            }
            Frame::Begin { direction: Direction::Answer, id, total, head, part } => {
                self.receive_answer(id, total as usize, head, part)
            }
            Frame::Part { direction, id, part } => self.receive_part(direction, id, &part),
            Frame::Credit { direction, id, bytes } => {
                // A body that was sent completely, or cancelled, has been removed.
                if let Some(body) = self.bodies.get_mut(&(direction, id)) {
                    if body.credit == 0 {
                        self.ready.push_back((direction, id));
                    }
                    body.credit = body.credit.saturating_add(bytes as usize);
                }
                Ok(None)
            }
            Frame::Cancel { id } => self.receive_cancel(id),
            Frame::Refused { id, reason, text } => {
                let ending = CallEnding::Refused(reason, text);
                Ok(self.ended(id)?.map(|call| Event::Ended { waiter: call.waiter, ending }))
            }
            Frame::Ping(number) => {
                frame::put_pong(&mut self.urgent, number);
                Ok(None)
            }
            Frame::Pong(_) => Ok(None),
            Frame::GoAway { last } => {
                self.peer_going_away = true;
                self.taken = last;
                Ok(Some(Event::GoingAway))
            }
            Frame::Members(members) => Ok(Some(Event::Members(members))),
            Frame::Bye(text) => Ok(Some(Event::Bye(text))),
            Frame::Hello(_) => Err(violation("a second greeting")),
        }
    }

    fn receive_call(
        &mut self,
        id: u64,
        total: usize,
        head: Bytes,
        part: Bytes,
    ) -> Result<Option<Event<W, R>>, Violation> {
        if id <= self.last_peer_id {
            return Err(violation(format!("call {id} after call {}", self.last_peer_id)));
        }
        self.last_peer_id = id;
        if let Some((reason, text)) = self.refusal(total) {
            frame::put_refused(&mut self.urgent, id, reason, &text);
            return Ok(None);
        }
        if part.len() == total {
            self.served.insert(id, IncomingCall::Running(None));
            return Ok(Some(Event::Call { id, message: Message { head, body: part } }));
        }
        let assembly = Assembly { head, first: part, bytes: BytesMut::new(), total, granted: 0 };
        self.served.insert(id, IncomingCall::Assembling(assembly));
        self.waiting.push_back((Direction::Call, id));
        self.make_room();
        Ok(None)
    }

    fn refusal(&self, total: usize) -> Option<(RefusalReason, String)> {
        let (most, calls_max) = (self.limits.body_bytes_max, self.limits.calls_max);
        if !self.serves {
            Some((RefusalReason::NotServed, "the caller's side of this connection takes no calls".into()))
        } else if self.going_away {
            Some((RefusalReason::Draining, "draining".into()))
        } else if total > most {
            Some((RefusalReason::TooLarge, format!("arguments of {total} bytes, more than {most}")))
        } else if self.served.len() >= calls_max || self.is_unread() {
            Some((RefusalReason::TooMany, format!("{calls_max} calls of one peer are in flight already")))
        } else {
            None
        }
    }

    fn receive_answer(
        &mut self,
        id: u64,
        total: usize,
        head: Bytes,
        part: Bytes,
    ) -> Result<Option<Event<W, R>>, Violation> {
        if part.len() == total {
            let ending = CallEnding::Answer(Message { head, body: part });
            return Ok(self.ended(id)?.map(|call| Event::Ended { waiter: call.waiter, ending }));
        }
        if total > self.limits.body_bytes_max {
            let most = self.limits.body_bytes_max;
            return Err(violation(format!("an answer of {total} bytes, more than {most}")));
        }
        match self.calls.get_mut(&id) {
            Some(OutgoingCall { answer: Some(_), .. }) => {
                return Err(violation(format!("a second answer to call {id}")));
            }
            Some(call) => {
                call.answer = Some(Assembly { head, first: part, bytes: BytesMut::new(), total, granted: 0 });
                self.waiting.push_back((Direction::Answer, id));
                self.make_room();
            }
            // The call was cancelled. It ends here, since without credit the rest of the answer is not sent.
            None => {
                self.ended(id)?;
            }
        }
        Ok(None)
    }

    /// Removes a call of this side that has ended; none if it was cancelled.
    fn ended(&mut self, id: u64) -> Result<Option<OutgoingCall<W>>, Violation> {
        if let Some(call) = self.calls.remove(&id) {
            self.drop_body(Direction::Call, id);
            if let Some(assembly) = &call.answer {
                self.release(Direction::Answer, id, assembly);
            }
            return Ok(Some(call));
        }
        match self.cancelled.remove(&id) {
            true => Ok(None),
            false => Err(violation(format!("an answer to call {id}, which is not open"))),
        }
    }

    fn receive_part(&mut self, direction: Direction, id: u64, part: &Bytes) -> Result<Option<Event<W, R>>, Violation> {
        let assembly = match direction {
            Direction::Call => match self.served.get_mut(&id) {
                Some(IncomingCall::Assembling(assembly)) => assembly,
                // The call was cancelled while this part was in flight.
                None if id <= self.last_peer_id => return Ok(None),
                Some(IncomingCall::Running(_)) | None => {
                    return Err(violation(format!("a part of call {id}, which has none")));
                }
            },
            Direction::Answer => match self.calls.get_mut(&id).map(|call| call.answer.as_mut()) {
                Some(Some(assembly)) => assembly,
                None if id <= self.last_id => return Ok(None),
                Some(None) | None => return Err(violation(format!("a part of answer {id}, which has none"))),
            },
        };
        if assembly.bytes.len() + part.len() > assembly.granted {
            return Err(violation(format!("more of a body than it was given credit for, call {id}")));
        }
        assembly.bytes.extend_from_slice(part);
        let (received, granted, total) = (assembly.bytes.len(), assembly.granted, assembly.total);
        if received < total {
            let more = (received + WINDOW_BYTES).min(total) - granted;
            if granted < total && granted - received <= WINDOW_BYTES / 2 {
                assembly.granted += more;
                frame::put_credit(&mut self.urgent, direction, id, more as u32);
            }
            return Ok(None);
        }
        self.assembled(direction, id)
    }

    /// Completes a body whose last part was received.
    fn assembled(&mut self, direction: Direction, id: u64) -> Result<Option<Event<W, R>>, Violation> {
        let event = match direction {
            Direction::Call => match self.served.insert(id, IncomingCall::Running(None)) {
                Some(IncomingCall::Assembling(assembly)) => {
                    self.release(direction, id, &assembly);
                    Event::Call { id, message: assembly.message() }
                }
                Some(IncomingCall::Running(_)) | None => return Err(violation(format!("call {id} came twice"))),
            },
            Direction::Answer => {
                let call = self.ended(id)?.and_then(|call| Some((call.waiter, call.answer?)));
                let Some((waiter, assembly)) = call else { return Ok(None) };
                Event::Ended { waiter, ending: CallEnding::Answer(assembly.message()) }
            }
        };
        Ok(Some(event))
    }

    fn receive_cancel(&mut self, id: u64) -> Result<Option<Event<W, R>>, Violation> {
        if id > self.last_peer_id {
            return Err(violation(format!("call {id} is cancelled before it was made")));
        }
        let Some(incoming) = self.served.remove(&id) else {
            // The call has been answered; a long answer may still be in flight.
            self.drop_body(Direction::Answer, id);
            return Ok(None);
        };
        frame::put_refused(&mut self.urgent, id, RefusalReason::Cancelled, "");
        match incoming {
            IncomingCall::Running(runner) => Ok(runner.map(Event::Cancelled)),
            IncomingCall::Assembling(assembly) => {
                self.release(Direction::Call, id, &assembly);
                Ok(None)
            }
        }
    }

    fn send(&mut self, direction: Direction, id: u64, message: Message) {
        let before = self.urgent.len();
        let rest = frame::put_begin(&mut self.urgent, direction, id, &message.head, message.body);
        self.unread_bytes += self.urgent.len() - before + rest.len();
        if !rest.is_empty() {
            self.bodies.insert((direction, id), BodySender { rest, credit: 0 });
        }
    }

    fn drop_body(&mut self, direction: Direction, id: u64) {
        if let Some(body) = self.bodies.remove(&(direction, id)) {
            self.unread_bytes = self.unread_bytes.saturating_sub(body.rest.len());
        }
    }

    /// Grants waiting bodies their first credit, in order, as far as there is room. Room is reserved for the whole body,
    /// so that each body that has begun can be completed.
    fn make_room(&mut self) {
        while let Some((direction, id)) = self.waiting.front().copied() {
            let assembly = match direction {
                Direction::Call => match self.served.get_mut(&id) {
                    Some(IncomingCall::Assembling(assembly)) => Some(assembly),
                    Some(IncomingCall::Running(_)) | None => None,
                },
                Direction::Answer => self.calls.get_mut(&id).and_then(|call| call.answer.as_mut()),
            };
            if let Some(assembly) = assembly {
                if self.assembling_bytes > 0 && self.assembling_bytes + assembly.total > self.limits.assembly_bytes_max
                {
                    return;
                }
                self.assembling_bytes += assembly.total;
                let more = assembly.begin();
                frame::put_credit(&mut self.urgent, direction, id, more as u32);
            }
            self.waiting.pop_front();
        }
    }

    fn release(&mut self, direction: Direction, id: u64, assembly: &Assembly) {
        if assembly.granted == 0 {
            self.waiting.retain(|waiting| *waiting != (direction, id));
            return;
        }
        self.assembling_bytes -= assembly.total;
        self.make_room();
    }
}

impl Assembly {
    /// Reserves the memory. Returns the first credit.
    fn begin(&mut self) -> usize {
        self.bytes.reserve(self.total);
        self.bytes.extend_from_slice(&std::mem::take(&mut self.first));
        let more = WINDOW_BYTES.min(self.total - self.bytes.len());
        self.granted = self.bytes.len() + more;
        more
    }

    fn message(self) -> Message {
        Message { head: self.head, body: self.bytes.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Tested = LinkSession<u64, ()>;

    const LIMITS: SessionLimits = SessionLimits { body_bytes_max: 3 << 20, calls_max: 8, assembly_bytes_max: 4 << 20 };

    fn message(tag: u8, bytes: usize) -> Message {
        Message { head: Bytes::from(vec![tag; 3]), body: Bytes::from(vec![tag; bytes]) }
    }

    /// Moves all frames of one side to the other.
    fn carry(from: &mut Tested, to: &mut Tested) -> Result<Vec<Event<u64, ()>>, Violation> {
        let (mut out, mut events) = (BytesMut::new(), Vec::new());
        from.fill(&mut out);
        while let Some(frame) = Frame::take(&mut out)? {
            events.extend(to.receive(frame)?);
        }
        assert!(out.is_empty());
        Ok(events)
    }

    #[test]
    fn fuzz_calls_and_answers_arrive_whole_in_any_order() {
        arbtest::arbtest(|u| {
            let (mut caller, mut callee) = (Tested::new(LIMITS, false), Tested::new(LIMITS, true));
            let mut open: HashMap<u64, u64> = HashMap::new();
            let mut running: Vec<(u64, Message)> = Vec::new();
            let mut made = 0;
            for step in 0..200 {
                match u.int_in_range(0..=5)? {
                    0 | 1 if made < 20 => {
                        made += 1;
                        let bytes = *u.choose(&[0, 1, 100, 65_536, 65_537, 600_000, 3 << 20, (3 << 20) + 1])?;
                        let id = caller.call(message(made as u8, bytes), made).expect("nobody goes away");
                        open.insert(made, id);
                    }
                    2 if !running.is_empty() => {
                        let (id, call) = running.swap_remove(u.choose_index(running.len())?);
                        callee.answer(id, call);
                    }
                    3 if !open.is_empty() && step % 3 == 0 => {
                        let waiter = *open.keys().min().expect("it is not empty");
                        let id = open.remove(&waiter).expect("it was there");
                        caller.cancel(id);
                    }
                    _ => {}
                }
                for event in carry(&mut caller, &mut callee).unwrap() {
                    match event {
                        Event::Call { id, message } => {
                            assert!(message.body.iter().all(|byte| *byte == message.head[0]));
                            callee.running(id, ());
                            running.push((id, message));
                        }
                        Event::Cancelled(()) => {}
                        other => panic!("{other:?}"),
                    }
                }
                assert!(
                    callee.assembling_bytes <= LIMITS.assembly_bytes_max && callee.served.len() <= LIMITS.calls_max
                );
                for event in carry(&mut callee, &mut caller).unwrap() {
                    match event {
                        Event::Ended { waiter, ending: CallEnding::Answer(message) } => {
                            assert!(open.remove(&waiter).is_some());
                            assert_eq!(message.head[0], waiter as u8);
                            assert!(message.body.iter().all(|byte| *byte == waiter as u8));
                        }
                        Event::Ended { waiter, ending: CallEnding::Refused(..) } => {
                            assert!(open.remove(&waiter).is_some());
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            // All calls are answered now, and nothing must be left.
            for _ in 0..1_000 {
                running.drain(..).for_each(|(id, call)| callee.answer(id, call));
                for event in carry(&mut caller, &mut callee).unwrap() {
                    if let Event::Call { id, message } = event {
                        running.push((id, message));
                    }
                }
                for event in carry(&mut callee, &mut caller).unwrap() {
                    if let Event::Ended { waiter, .. } = event {
                        open.remove(&waiter);
                    }
                }
            }
            assert!(open.is_empty() && caller.is_idle() && callee.is_idle() && caller.cancelled.is_empty());
            assert_eq!((caller.assembling_bytes, callee.assembling_bytes), (0, 0));
            assert_eq!((caller.unread_bytes, callee.unread_bytes), (0, 0));
            Ok(())
        })
        .budget_ms(1_000);
    }

    #[test]
    fn a_small_call_passes_a_long_one() {
        let (mut caller, mut callee) = (Tested::new(LIMITS, false), Tested::new(LIMITS, true));
        assert!(caller.call(message(1, 3 << 20), 1).is_ok());
        carry(&mut caller, &mut callee).unwrap();
        carry(&mut callee, &mut caller).unwrap();
        assert!(caller.call(message(2, 10), 2).is_ok());
        let events = carry(&mut caller, &mut callee).unwrap();
        assert!(matches!(&events[..], [Event::Call { message, .. }] if message.head[0] == 2), "{events:?}");
    }

    #[test]
    fn a_call_that_is_not_taken_is_refused() {
        let check = |callee: &mut Tested, call: Message, expected: RefusalReason| {
            let mut caller = Tested::new(LIMITS, false);
            assert!(caller.call(call, 1).is_ok());
            assert!(carry(&mut caller, callee).unwrap().is_empty());
            let events = carry(callee, &mut caller).unwrap();
            let refused = |event: &Event<u64, ()>| matches!(event, Event::Ended { ending: CallEnding::Refused(reason, _), .. } if *reason == expected);
            assert!(events.iter().any(refused), "{events:?}");
        };
        check(&mut Tested::new(LIMITS, false), message(1, 1), RefusalReason::NotServed);
        check(&mut Tested::new(LIMITS, true), message(1, (3 << 20) + 1), RefusalReason::TooLarge);
        check(&mut Tested::new(SessionLimits { calls_max: 0, ..LIMITS }, true), message(1, 1), RefusalReason::TooMany);
        let mut leaving = Tested::new(LIMITS, true);
        leaving.go_away();
        check(&mut leaving, message(1, 1), RefusalReason::Draining);
    }

    #[test]
    fn calls_that_were_not_sent_are_told_from_those_that_were() {
        let mut caller = Tested::new(LIMITS, false);
        assert!(caller.call(message(1, 1), 1).is_ok());
        caller.fill(&mut BytesMut::new());
        assert!(caller.call(message(2, 1), 2).is_ok());
        let (mut waiters, _) = caller.close();
        waiters.sort_unstable();
        assert_eq!(waiters, [(1, true), (2, false)]);
        assert_eq!(caller.call(message(3, 1), 3), Err(3));
    }

    #[track_caller]
    fn check_violation(frames: impl IntoIterator<Item = Frame>, word: &str) {
        let mut session = Tested::new(LIMITS, true);
        assert!(session.call(message(1, 1), 1).is_ok());
        let violation = frames.into_iter().find_map(|frame| session.receive(frame).err());
        assert!(violation.as_ref().is_some_and(|violation| violation.to_string().contains(word)), "{violation:?}");
    }

    #[test]
    fn a_peer_that_breaks_the_rules_is_named() {
        let begin = |direction, id, total: u32| {
            let part = Bytes::from(vec![0; (total as usize).min(frame::PART_BYTES_MAX)]);
            Frame::Begin { direction, id, total, head: Bytes::new(), part }
        };
        let part = |direction, id, bytes: usize| Frame::Part { direction, id, part: Bytes::from(vec![0; bytes]) };
        check_violation([begin(Direction::Answer, 1, 1), begin(Direction::Answer, 1, 1)], "not open");
        check_violation([begin(Direction::Answer, 1, 70_000), begin(Direction::Answer, 1, 70_000)], "second answer");
        check_violation([begin(Direction::Answer, 7, 1)], "not open");
        check_violation([begin(Direction::Answer, 1, 4 << 20)], "more than");
        check_violation([begin(Direction::Call, 2, 1), begin(Direction::Call, 2, 1)], "call 2 after call 2");
        check_violation([part(Direction::Call, 1, 1)], "which has none");
        check_violation([begin(Direction::Call, 1, 1), part(Direction::Call, 1, 1)], "which has none");
        // There is room for one of these bodies at a time.
        check_violation(
            [begin(Direction::Call, 1, 3 << 20), begin(Direction::Call, 2, 3 << 20), part(Direction::Call, 2, 1)],
            "credit",
        );
        check_violation([Frame::Cancel { id: 5 }], "before it was made");
    }
}
