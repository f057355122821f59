//! The state of a link, without its socket: which calls are open on either side, what their bodies may still send, what
//! is to be written next. Frames go in, events come out; every rule of `frame.rs` that a single frame cannot show is
//! checked here.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::{Bytes, BytesMut};

use super::frame::{self, Frame, Refusal, Violation, Way, violation};
use crate::envelope::Message;

/// Bytes of one body that are on their way at once, so that a long one does not fill the buffers in front of the others.
const WINDOW_BYTES: usize = 512 << 10;
/// Parts of bodies are added to what is written while that is shorter: small frames wait for no more than this.
const WRITE_BYTES: usize = 128 << 10;
/// Answers that a peer has asked for and does not read.
const UNREAD_BYTES_MAX: usize = 256 << 20;
/// Cancelled calls whose end has not come. A peer that never ends them is not worth a larger table.
const CANCELLED_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    pub body_bytes_max: usize,
    /// Calls of the peer that are in work.
    pub calls_max: usize,
    /// Bytes of unfinished long bodies that are kept at once; others wait for their turn.
    pub assembly_bytes_max: usize,
}

/// `W` waits for the end of a call made here, `R` runs one made by the peer.
pub(super) struct Session<W, R> {
    limits: SessionLimits,
    /// Whether the peer's calls are served on this link.
    serves: bool,
    last_id: u64,
    calls: HashMap<u64, Outgoing<W>>,
    /// Calls made here and given up, whose end is still to come.
    cancelled: HashSet<u64>,
    last_peer_id: u64,
    served: HashMap<u64, Incoming<R>>,
    /// What is written before any part of a long body.
    urgent: BytesMut,
    /// Long bodies on their way out, those that may send now in turn.
    bodies: HashMap<(Way, u64), Body>,
    ready: VecDeque<(Way, u64)>,
    unread_bytes: usize,
    /// Calls up to this id have been given to the socket, at least in part.
    handed_over: u64,
    assembling_bytes: usize,
    /// Long bodies that wait for room.
    waiting: VecDeque<(Way, u64)>,
    going_away: bool,
    peer_going_away: bool,
    /// The last call made here that the peer took, as far as it has said.
    taken: u64,
}

struct Outgoing<W> {
    waiter: W,
    answer: Option<Assembly>,
}

enum Incoming<R> {
    Assembling(Assembly),
    /// None until the runner is known.
    Running(Option<R>),
}

/// A body that has not come in whole.
struct Assembly {
    head: Bytes,
    first: Bytes,
    bytes: BytesMut,
    total: usize,
    /// How far the sender may go; 0 while there is no room.
    granted: usize,
}

struct Body {
    rest: Bytes,
    credit: usize,
}

/// How a call ended that was made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Answer(Message),
    /// It was surely not run.
    Refused(Refusal, String),
}

#[derive(Debug)]
pub(super) enum Event<W, R> {
    /// A call of the peer's is here in whole: `running` and `answer` come next.
    Call {
        id: u64,
        message: Message,
    },
    /// Its runner is to be stopped; the peer has been told.
    Cancelled(R),
    Ended {
        waiter: W,
        ending: Ending,
    },
    Told(Bytes),
    GoingAway,
    Bye(String),
}

impl<W, R> Session<W, R> {
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

    /// Begins a call; none once the peer takes no more.
    pub(super) fn call(&mut self, message: Message, waiter: W) -> Result<u64, W> {
        if self.peer_going_away || self.cancelled.len() >= CANCELLED_MAX {
            return Err(waiter);
        }
        self.last_id += 1;
        self.send(Way::Call, self.last_id, message);
        self.calls.insert(self.last_id, Outgoing { waiter, answer: None });
        Ok(self.last_id)
    }

    /// The caller does not wait any more.
    pub(super) fn cancel(&mut self, id: u64) {
        let Some(call) = self.calls.remove(&id) else { return };
        match call.answer {
            // It has ended already; what is left of the answer is not sent.
            Some(assembly) => self.release(Way::Answer, id, &assembly),
            None => {
                self.cancelled.insert(id);
            }
        }
        self.drop_body(Way::Call, id);
        frame::put_cancel(&mut self.urgent, id);
    }

    /// Who runs the peer's call.
    pub(super) fn running(&mut self, id: u64, runner: R) {
        if let Some(Incoming::Running(known)) = self.served.get_mut(&id) {
            *known = Some(runner);
        }
    }

    /// Ends the peer's call. One that was cancelled has ended already.
    pub(super) fn answer(&mut self, id: u64, message: Message) {
        if self.served.remove(&id).is_some() {
            self.send(Way::Answer, id, message);
        }
    }

    pub(super) fn ping(&mut self, number: u64) {
        frame::put_ping(&mut self.urgent, number);
    }

    pub(super) fn told(&mut self, members: &[u8]) {
        frame::put_told(&mut self.urgent, members);
    }

    pub(super) fn bye(&mut self, text: &str) {
        frame::put_bye(&mut self.urgent, text);
    }

    /// From here on the peer's new calls are refused.
    pub(super) fn go_away(&mut self) {
        if !self.going_away {
            self.going_away = true;
            frame::put_go_away(&mut self.urgent, self.last_peer_id);
        }
    }

    /// Neither side has a call open, and everything has been given to the socket.
    pub(super) fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.served.is_empty() && self.urgent.is_empty() && self.bodies.is_empty()
    }

    pub(super) fn calls_open(&self) -> usize {
        self.calls.len()
    }

    pub(super) fn calls_served(&self) -> usize {
        self.served.len()
    }

    /// The peer does not read what it asked for.
    pub(super) fn is_unread(&self) -> bool {
        self.unread_bytes > UNREAD_BYTES_MAX
    }

    /// Too much is waiting to be written to take more calls in.
    pub(super) fn is_congested(&self) -> bool {
        self.urgent.len() > 16 * WRITE_BYTES
    }

    /// Ends everything: the waiters, each with whether its call was handed over, and the runners.
    pub(super) fn close(&mut self) -> (Vec<(W, bool)>, Vec<R>) {
        self.peer_going_away = true;
        let handed_over = self.handed_over.min(self.taken);
        let waiters = self.calls.drain().map(|(id, call)| (call.waiter, id <= handed_over)).collect();
        let runners = self.served.drain().filter_map(|(_, incoming)| match incoming {
            Incoming::Running(runner) => runner,
            Incoming::Assembling(_) => None,
        });
        (waiters, runners.collect())
    }

    /// What is to be written next.
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

    /// Takes a frame of the peer's.
    ///
    /// # Errors
    /// A frame that may not come now.
    pub(super) fn receive(&mut self, frame: Frame) -> Result<Option<Event<W, R>>, Violation> {
        match frame {
            Frame::Begin { way: Way::Call, id, total, head, part } => self.receive_call(id, total as usize, head, part),
            Frame::Begin { way: Way::Answer, id, total, head, part } => {
                self.receive_answer(id, total as usize, head, part)
            }
            Frame::Part { way, id, part } => self.receive_part(way, id, &part),
            Frame::Credit { way, id, bytes } => {
                // A body that was sent in whole, or given up, is not there any more.
                if let Some(body) = self.bodies.get_mut(&(way, id)) {
                    if body.credit == 0 {
                        self.ready.push_back((way, id));
                    }
                    body.credit = body.credit.saturating_add(bytes as usize);
                }
                Ok(None)
            }
            Frame::Cancel { id } => self.receive_cancel(id),
            Frame::Refused { id, reason, text } => {
                let ending = Ending::Refused(reason, text);
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
            Frame::Told(members) => Ok(Some(Event::Told(members))),
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
            self.served.insert(id, Incoming::Running(None));
            return Ok(Some(Event::Call { id, message: Message { head, body: part } }));
        }
        let assembly = Assembly { head, first: part, bytes: BytesMut::new(), total, granted: 0 };
        self.served.insert(id, Incoming::Assembling(assembly));
        self.waiting.push_back((Way::Call, id));
        self.make_room();
        Ok(None)
    }

    fn refusal(&self, total: usize) -> Option<(Refusal, String)> {
        let (most, calls_max) = (self.limits.body_bytes_max, self.limits.calls_max);
        if !self.serves {
            Some((Refusal::NotServed, "the caller's side of this connection takes no calls".into()))
        } else if self.going_away {
            Some((Refusal::Draining, "draining".into()))
        } else if total > most {
            Some((Refusal::TooLarge, format!("arguments of {total} bytes, more than {most}")))
        } else if self.served.len() >= calls_max || self.is_unread() {
            Some((Refusal::TooMany, format!("{calls_max} calls of one peer are in work already")))
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
            let ending = Ending::Answer(Message { head, body: part });
            return Ok(self.ended(id)?.map(|call| Event::Ended { waiter: call.waiter, ending }));
        }
        if total > self.limits.body_bytes_max {
            let most = self.limits.body_bytes_max;
            return Err(violation(format!("an answer of {total} bytes, more than {most}")));
        }
        match self.calls.get_mut(&id) {
            Some(Outgoing { answer: Some(_), .. }) => return Err(violation(format!("a second answer to call {id}"))),
            Some(call) => {
                call.answer = Some(Assembly { head, first: part, bytes: BytesMut::new(), total, granted: 0 });
                self.waiting.push_back((Way::Answer, id));
                self.make_room();
            }
            // The rest of an answer that nobody wants is never asked for: the call has ended.
            None => {
                self.ended(id)?;
            }
        }
        Ok(None)
    }

    /// Takes a call of this side off the table; none if it was cancelled.
    fn ended(&mut self, id: u64) -> Result<Option<Outgoing<W>>, Violation> {
        if let Some(call) = self.calls.remove(&id) {
            self.drop_body(Way::Call, id);
            if let Some(assembly) = &call.answer {
                self.release(Way::Answer, id, assembly);
            }
            return Ok(Some(call));
        }
        match self.cancelled.remove(&id) {
            true => Ok(None),
            false => Err(violation(format!("an answer to call {id}, which is not open"))),
        }
    }

    fn receive_part(&mut self, way: Way, id: u64, part: &Bytes) -> Result<Option<Event<W, R>>, Violation> {
        let assembly = match way {
            Way::Call => match self.served.get_mut(&id) {
                Some(Incoming::Assembling(assembly)) => assembly,
                // It was cancelled while this part was on its way.
                None if id <= self.last_peer_id => return Ok(None),
                Some(Incoming::Running(_)) | None => {
                    return Err(violation(format!("a part of call {id}, which has none")));
                }
            },
            Way::Answer => match self.calls.get_mut(&id).map(|call| call.answer.as_mut()) {
                Some(Some(assembly)) => assembly,
                None if id <= self.last_id => return Ok(None),
                Some(None) | None => return Err(violation(format!("a part of answer {id}, which has none"))),
            },
        };
        if assembly.bytes.len() + part.len() > assembly.granted {
            return Err(violation(format!("more of a body than it was given credit for, call {id}")));
        }
        assembly.bytes.extend_from_slice(part);
        let (came, granted, total) = (assembly.bytes.len(), assembly.granted, assembly.total);
        if came < total {
            let more = (came + WINDOW_BYTES).min(total) - granted;
            if granted < total && granted - came <= WINDOW_BYTES / 2 {
                assembly.granted += more;
                frame::put_credit(&mut self.urgent, way, id, more as u32);
            }
            return Ok(None);
        }
        self.assembled(way, id)
    }

    /// The last part has come.
    fn assembled(&mut self, way: Way, id: u64) -> Result<Option<Event<W, R>>, Violation> {
        let event = match way {
            Way::Call => match self.served.insert(id, Incoming::Running(None)) {
                Some(Incoming::Assembling(assembly)) => {
                    self.release(way, id, &assembly);
                    Event::Call { id, message: assembly.message() }
                }
                Some(Incoming::Running(_)) | None => return Err(violation(format!("call {id} came twice"))),
            },
            Way::Answer => {
                let call = self.ended(id)?.and_then(|call| Some((call.waiter, call.answer?)));
                let Some((waiter, assembly)) = call else { return Ok(None) };
                Event::Ended { waiter, ending: Ending::Answer(assembly.message()) }
            }
        };
        Ok(Some(event))
    }

    fn receive_cancel(&mut self, id: u64) -> Result<Option<Event<W, R>>, Violation> {
        if id > self.last_peer_id {
            return Err(violation(format!("call {id} is cancelled before it was made")));
        }
        let Some(incoming) = self.served.remove(&id) else {
            // The call has been answered; a long answer may be on its way.
            self.drop_body(Way::Answer, id);
            return Ok(None);
        };
        frame::put_refused(&mut self.urgent, id, Refusal::Cancelled, "");
        match incoming {
            Incoming::Running(runner) => Ok(runner.map(Event::Cancelled)),
            Incoming::Assembling(assembly) => {
                self.release(Way::Call, id, &assembly);
                Ok(None)
            }
        }
    }

    fn send(&mut self, way: Way, id: u64, message: Message) {
        let before = self.urgent.len();
        let rest = frame::put_begin(&mut self.urgent, way, id, &message.head, message.body);
        self.unread_bytes += self.urgent.len() - before + rest.len();
        if !rest.is_empty() {
            self.bodies.insert((way, id), Body { rest, credit: 0 });
        }
    }

    fn drop_body(&mut self, way: Way, id: u64) {
        if let Some(body) = self.bodies.remove(&(way, id)) {
            self.unread_bytes = self.unread_bytes.saturating_sub(body.rest.len());
        }
    }

    /// Gives those that wait their credit, in order, as far as there is room. A body is given room as a whole, so that
    /// each that has begun can be finished.
    fn make_room(&mut self) {
        while let Some((way, id)) = self.waiting.front().copied() {
            let assembly = match way {
                Way::Call => match self.served.get_mut(&id) {
                    Some(Incoming::Assembling(assembly)) => Some(assembly),
                    Some(Incoming::Running(_)) | None => None,
                },
                Way::Answer => self.calls.get_mut(&id).and_then(|call| call.answer.as_mut()),
            };
            if let Some(assembly) = assembly {
                if self.assembling_bytes > 0 && self.assembling_bytes + assembly.total > self.limits.assembly_bytes_max
                {
                    return;
                }
                self.assembling_bytes += assembly.total;
                let more = assembly.begin();
                frame::put_credit(&mut self.urgent, way, id, more as u32);
            }
            self.waiting.pop_front();
        }
    }

    fn release(&mut self, way: Way, id: u64, assembly: &Assembly) {
        if assembly.granted == 0 {
            self.waiting.retain(|waiting| *waiting != (way, id));
            return;
        }
        self.assembling_bytes -= assembly.total;
        self.make_room();
    }
}

impl Assembly {
    /// There is room. Returns the first credit.
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

    type Tested = Session<u64, ()>;

    const LIMITS: SessionLimits = SessionLimits { body_bytes_max: 3 << 20, calls_max: 8, assembly_bytes_max: 4 << 20 };

    fn message(tag: u8, bytes: usize) -> Message {
        Message { head: Bytes::from(vec![tag; 3]), body: Bytes::from(vec![tag; bytes]) }
    }

    /// Moves everything that one side has to say to the other, a frame at a time.
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
                        Event::Ended { waiter, ending: Ending::Answer(message) } => {
                            assert!(open.remove(&waiter).is_some());
                            assert_eq!(message.head[0], waiter as u8);
                            assert!(message.body.iter().all(|byte| *byte == waiter as u8));
                        }
                        Event::Ended { waiter, ending: Ending::Refused(..) } => {
                            assert!(open.remove(&waiter).is_some());
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            // Everything that is answered from here on arrives, and nothing is left behind.
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
        let check = |callee: &mut Tested, call: Message, expected: Refusal| {
            let mut caller = Tested::new(LIMITS, false);
            assert!(caller.call(call, 1).is_ok());
            assert!(carry(&mut caller, callee).unwrap().is_empty());
            let events = carry(callee, &mut caller).unwrap();
            let refused = |event: &Event<u64, ()>| matches!(event, Event::Ended { ending: Ending::Refused(reason, _), .. } if *reason == expected);
            assert!(events.iter().any(refused), "{events:?}");
        };
        check(&mut Tested::new(LIMITS, false), message(1, 1), Refusal::NotServed);
        check(&mut Tested::new(LIMITS, true), message(1, (3 << 20) + 1), Refusal::TooLarge);
        check(&mut Tested::new(SessionLimits { calls_max: 0, ..LIMITS }, true), message(1, 1), Refusal::TooMany);
        let mut leaving = Tested::new(LIMITS, true);
        leaving.go_away();
        check(&mut leaving, message(1, 1), Refusal::Draining);
    }

    #[test]
    fn calls_that_never_left_are_told_from_those_that_did() {
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
        let begin = |way, id, total: u32| {
            let part = Bytes::from(vec![0; (total as usize).min(frame::PART_BYTES_MAX)]);
            Frame::Begin { way, id, total, head: Bytes::new(), part }
        };
        let part = |way, id, bytes: usize| Frame::Part { way, id, part: Bytes::from(vec![0; bytes]) };
        check_violation([begin(Way::Answer, 1, 1), begin(Way::Answer, 1, 1)], "not open");
        check_violation([begin(Way::Answer, 1, 70_000), begin(Way::Answer, 1, 70_000)], "second answer");
        check_violation([begin(Way::Answer, 7, 1)], "not open");
        check_violation([begin(Way::Answer, 1, 4 << 20)], "more than");
        check_violation([begin(Way::Call, 2, 1), begin(Way::Call, 2, 1)], "call 2 after call 2");
        check_violation([part(Way::Call, 1, 1)], "which has none");
        check_violation([begin(Way::Call, 1, 1), part(Way::Call, 1, 1)], "which has none");
        // There is room for one of them at a time.
        check_violation([begin(Way::Call, 1, 3 << 20), begin(Way::Call, 2, 3 << 20), part(Way::Call, 2, 1)], "credit");
        check_violation([Frame::Cancel { id: 5 }], "before it was made");
    }
}
