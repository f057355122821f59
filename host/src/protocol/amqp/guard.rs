//! What the client library is spared of a broker's bytes: contents that are too long or whose tables are nested too deep, and
//! frames that cannot be. The library keeps a content of any length in memory, and reads tables by recursion. Pure state, no
//! socket: `stream.rs` feeds it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

/// Longer frames are nobody's: this is what a client and RabbitMQ agree on.
const FRAME_BYTES_MAX: usize = 131_072;
const FRAME_HEAD_BYTES: usize = 7;
/// Tables and lists within tables of a message's headers.
const TABLE_DEPTH_MAX: usize = 16;
/// Messages that were refused and not yet asked for; beyond them the connection ends.
const REFUSED_MAX: usize = 100_000;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Why a message was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    TooLong {
        bytes: u64,
    },
    /// Tables nested too deep, or no tables at all.
    BadHeaders,
}

/// The messages that were not let through, by channel and delivery tag: they arrive without properties and body.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<HashMap<(u16, u64), Refusal>>);

impl Refused {
    /// Asked once for each delivery.
    pub(super) fn take(&self, channel: u16, tag: u64) -> Option<Refusal> {
        self.0.lock().remove(&(channel, tag))
    }
}

/// One connection's incoming bytes.
#[derive(Debug)]
pub(super) struct Guard {
    body_bytes_max: u64,
    refused: Arc<Refused>,
    state: State,
    /// A frame's head, or a whole frame that has to be looked at.
    frame: Vec<u8>,
    channels: HashMap<u16, Channel>,
}

#[derive(Debug)]
enum State {
    Head,
    /// Until the frame has so many bytes.
    Whole(usize),
    Pass(usize),
    Drop(usize),
}

#[derive(Debug, Default)]
struct Channel {
    /// Of the message that is coming.
    tag: u64,
    /// So much of a refused content is still to come.
    refused_bytes: u64,
}

impl Guard {
    pub(super) fn new(body_bytes_max: u64, refused: Arc<Refused>) -> Self {
        Self { body_bytes_max, refused, state: State::Head, frame: Vec::new(), channels: HashMap::new() }
    }

    /// Takes what came, appends to `out` what may be read.
    ///
    /// # Errors
    /// `InvalidData`: this is no AMQP, and the connection is of no more use.
    pub(super) fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        while !input.is_empty() {
            match self.state {
                State::Head => {
                    if self.fill(&mut input, FRAME_HEAD_BYTES) {
                        self.head(out)?;
                    }
                }
                State::Whole(size) => {
                    if self.fill(&mut input, size) {
                        self.whole(out)?;
                        self.frame.clear();
                        self.state = State::Head;
                    }
                }
                State::Pass(left) => {
                    let taken = take(&mut input, left);
                    out.extend_from_slice(taken);
                    self.state = if taken.len() < left { State::Pass(left - taken.len()) } else { State::Head };
                }
                State::Drop(left) => {
                    let taken = take(&mut input, left).len();
                    self.state = if taken < left { State::Drop(left - taken) } else { State::Head };
                }
            }
        }
        Ok(())
    }

    /// Whether the frame now has so many bytes.
    fn fill(&mut self, input: &mut &[u8], size: usize) -> bool {
        let missing = size - self.frame.len();
        self.frame.extend_from_slice(take(input, missing));
        self.frame.len() == size
    }

    fn head(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let head = &self.frame;
        let (kind, channel) = (head[0], u16::from_be_bytes([head[1], head[2]]));
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        if !matches!(kind, METHOD | HEADER | BODY | HEARTBEAT) {
            return Err(invalid(format!("a frame of type {kind}: the other side does not speak AMQP 0-9-1")));
        }
        if size + FRAME_HEAD_BYTES + 1 > FRAME_BYTES_MAX {
            return Err(invalid(format!("a frame of {size} bytes")));
        }
        // The byte after the payload marks its end.
        self.state = match kind {
            METHOD | HEADER => State::Whole(FRAME_HEAD_BYTES + size + 1),
            BODY => match self.channels.get_mut(&channel).filter(|channel| channel.refused_bytes > 0) {
                Some(channel) => {
                    channel.refused_bytes = channel.refused_bytes.saturating_sub(size as u64);
                    State::Drop(size + 1)
                }
                None => State::Pass(size + 1),
            },
            _ => State::Pass(size + 1),
        };
        if let State::Pass(_) = self.state {
            out.extend_from_slice(&self.frame);
        }
        if !matches!(self.state, State::Whole(_)) {
            self.frame.clear();
        }
        Ok(())
    }

    fn whole(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let frame = &self.frame;
        let channel = u16::from_be_bytes([frame[1], frame[2]]);
        let payload = &frame[FRAME_HEAD_BYTES..frame.len() - 1];
        if frame[0] == METHOD {
            self.method(channel)?;
            out.extend_from_slice(&self.frame);
            return Ok(());
        }
        let Some(size) = payload.get(4..12).map(|size| u64::from_be_bytes(size.try_into().expect("8 bytes"))) else {
            return Err(invalid("a content header without a size".into()));
        };
        let refusal = match headers_fit(payload) {
            false => Some(Refusal::BadHeaders),
            true if size > self.body_bytes_max => Some(Refusal::TooLong { bytes: size }),
            true => None,
        };
        let Some(refusal) = refusal else {
            out.extend_from_slice(frame);
            return Ok(());
        };
        let known = self.channels.entry(channel).or_default();
        known.refused_bytes = size;
        let mut refused = self.refused.0.lock();
        refused.insert((channel, known.tag), refusal);
        if refused.len() > REFUSED_MAX {
            return Err(invalid(format!("more than {REFUSED_MAX} refused messages that nobody asks for")));
        }
        // The same message without properties and body.
        out.extend_from_slice(&[HEADER, frame[1], frame[2], 0, 0, 0, 14]);
        out.extend_from_slice(&payload[..4]);
        out.extend_from_slice(&[0; 10]);
        out.push(frame[frame.len() - 1]);
        Ok(())
    }

    /// Remembers the tag of the message that begins; refuses a greeting that cannot be read.
    fn method(&mut self, channel: u16) -> io::Result<()> {
        let payload = &self.frame[FRAME_HEAD_BYTES..self.frame.len() - 1];
        let tag_at = match payload.get(..4) {
            // connection.start, with the server's properties after two bytes of version
            Some([0, 10, 0, 10]) => {
                return match payload.get(6..).is_some_and(table_fits) {
                    true => Ok(()),
                    false => Err(invalid("a greeting whose properties cannot be read".into())),
                };
            }
            // basic.deliver, after the consumer's tag
            Some([0, 60, 0, 60]) => 5 + usize::from(payload.get(4).copied().unwrap_or(0)),
            // basic.get-ok
            Some([0, 60, 0, 71]) => 4,
            // channel.close, channel.close-ok: its number may be used anew
            Some([0, 20, 0, 40 | 41]) => {
                self.channels.remove(&channel);
                return Ok(());
            }
            Some(_) | None => return Ok(()),
        };
        if let Some(tag) = payload.get(tag_at..tag_at + 8) {
            self.channels.entry(channel).or_default().tag = u64::from_be_bytes(tag.try_into().expect("8 bytes"));
        }
        Ok(())
    }
}

fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    taken
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Whether the headers of a content header's payload can be read safely.
fn headers_fit(payload: &[u8]) -> bool {
    const CONTENT_TYPE: u8 = 0x80;
    const CONTENT_ENCODING: u8 = 0x40;
    const HEADERS: u8 = 0x20;
    let Some(&flags) = payload.get(12) else { return false };
    if flags & HEADERS == 0 {
        return true;
    }
    let mut at = 14;
    for flag in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & flag != 0 {
            at += 1 + usize::from(payload.get(at).copied().unwrap_or(0));
        }
    }
    payload.get(at..).is_some_and(table_fits)
}

/// Whether a table, which begins with its length, ends within the bytes and is not nested too deep. Without recursion.
fn table_fits(bytes: &[u8]) -> bool {
    let length = |at: usize| {
        let length = bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes(length.try_into().expect("4 bytes")) as usize)
    };
    let Some(size) = length(0) else { return false };
    let mut at = 4;
    // The end of each open table or list, and whether it is a list.
    let mut open = vec![(4 + size, false)];
    while let Some(&(end, is_list)) = open.last() {
        if at >= end {
            if at > end || end > bytes.len() {
                return false;
            }
            open.pop();
            continue;
        }
        if !is_list {
            at += 1 + usize::from(bytes.get(at).copied().unwrap_or(0));
        }
        let Some(kind) = bytes.get(at) else { return false };
        at += 1;
        match kind {
            b'V' => {}
            b't' | b'b' | b'B' => at += 1,
            b's' | b'u' | b'U' => at += 2,
            b'i' | b'I' | b'f' => at += 4,
            b'D' => at += 5,
            b'l' | b'L' | b'd' | b'T' => at += 8,
            b'S' | b'x' => match length(at) {
                Some(size) => at += 4 + size,
                None => return false,
            },
            b'A' | b'F' => {
                let Some(size) = length(at).filter(|_| open.len() < TABLE_DEPTH_MAX) else { return false };
                at += 4;
                open.push((at + size, *kind == b'A'));
            }
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    fn deliver(tag: u64) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 60, 1, b'c'];
        payload.extend(tag.to_be_bytes());
        payload.extend([0, 0, 0]);
        frame(METHOD, &payload)
    }

    fn header(size: u64, table: Option<&[u8]>) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0];
        payload.extend(size.to_be_bytes());
        payload.extend([if table.is_some() { 0xa0 } else { 0x80 }, 0, 1, b't']);
        payload.extend(table.unwrap_or_default());
        frame(HEADER, &payload)
    }

    /// Tables within tables.
    fn nested(depth: usize) -> Vec<u8> {
        let mut table = vec![0, 0, 0, 0];
        for _ in 1..depth {
            let mut outer = ((table.len() + 2) as u32).to_be_bytes().to_vec();
            outer.extend([0, b'F']);
            outer.extend(table);
            table = outer;
        }
        table
    }

    /// Fed in pieces of every size, the same comes out.
    #[track_caller]
    fn check(input: &[u8], expected: &[u8], tag: u64, refusal: Option<Refusal>) {
        for piece in [1, 3, 7, 100, input.len()] {
            let refused = Arc::new(Refused::default());
            let mut guard = Guard::new(10, refused.clone());
            let mut out = Vec::new();
            for part in input.chunks(piece) {
                guard.feed(part, &mut out).unwrap();
            }
            assert_eq!(out, expected);
            assert_eq!(refused.take(1, tag), refusal);
            assert_eq!(refused.take(1, tag), None);
        }
    }

    #[test]
    fn what_fits_passes_unchanged() {
        let input = [deliver(7), header(3, Some(&nested(16))), frame(BODY, b"abc"), frame(HEARTBEAT, b"")].concat();
        check(&input, &input, 7, None);
    }

    #[test]
    fn a_long_body_is_left_out_and_the_next_message_passes() {
        let bodies = [frame(BODY, &[1; 6]), frame(BODY, &[2; 5])].concat();
        let next = [deliver(9), header(1, None), frame(BODY, b"x")].concat();
        let input = [deliver(8), header(11, None), bodies, next.clone()].concat();
        let empty = frame(HEADER, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        check(&input, &[deliver(8), empty, next].concat(), 8, Some(Refusal::TooLong { bytes: 11 }));
    }

    #[test]
    fn tables_nested_too_deep_are_left_out() {
        let empty = frame(HEADER, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for table in [nested(17), nested(10_000), vec![0, 0, 0, 9, 1, b'a', b'?'], vec![255; 4]] {
            let input = [deliver(5), header(2, Some(&table)), frame(BODY, b"ab")].concat();
            check(&input, &[deliver(5), empty.clone()].concat(), 5, Some(Refusal::BadHeaders));
        }
    }

    #[test]
    fn what_is_no_amqp_ends_the_connection() {
        let greeting = [&[0, 10, 0, 10, 0, 9][..], &nested(1_000)].concat();
        for input in [b"HTTP/1.1 400".to_vec(), vec![BODY, 0, 1, 255, 0, 0, 0], frame(METHOD, &greeting)] {
            let mut guard = Guard::new(10, Arc::default());
            let error = guard.feed(&input, &mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        arbtest::arbtest(|bytes| {
            let input: Vec<u8> = bytes.arbitrary()?;
            let _ = Guard::new(10, Arc::default()).feed(&input, &mut Vec::new());
            let _ = table_fits(&input);
            let _ = headers_fit(&input);
            Ok(())
        });
    }
}
