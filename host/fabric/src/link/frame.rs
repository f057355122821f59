//! The frames of a link, byte by byte, version 1. Knows no socket: `Frame::take` reads from a buffer, `put_*` write to
//! one. The form of what a peer sends is checked here, and `session.rs` checks whether the frame may come now.
//!
//! Numbers are big-endian; `text` is a u16 length and that many bytes of UTF-8. Every frame is
//! ```text
//! u32 length of the rest, 9 to 131,089
//! u8  kind
//! u64 id of the call; 0 where there is none
//! payload, by kind:
//!  1 hello          8 bytes `WASMCAGE`, u16 version, u16 flags (1: the greeter can be called on this link), u64 copy,
//!                   u16 TCP port it listens on (0: none), text flock, cage, node, version of its program. The first
//!                   frame of each side, once; more may follow in a later version
//!  2 call           u32 length of the head, u32 length of the whole body, head, first part of the body
//!  3 call part      the next bytes of the body
//!  4 answer         as a call
//!  5 answer part    the next bytes of the body
//!  6 call credit    u32: so many more bytes of the call's body may be sent
//!  7 answer credit  the same for the answer's body
//!  8 cancel         the caller does not need the answer any more
//!  9 refused        u8 reason, text: the call was not run and will not be
//! 10 ping           id: any number
//! 11 pong           id: that of the ping
//! 12 go away        id: the last call that the sender took; it refuses those after it, and answers those in work
//! 13 members        members that the sender knows: see `lan/gossip_format.rs`
//! 14 bye            text: why the connection is closed by this side, now
//! ```
//! The first part has the whole body up to 65,536 bytes, and exactly 65,536 bytes of a longer one; further parts have 1
//! to 65,536 bytes and need credit. Each side numbers its own calls from 1 upwards. Each call ends with exactly one
//! answer or one refusal, also if it was cancelled.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::envelope::HEAD_BYTES_MAX;

/// Bytes of a body in one frame, at most.
pub const PART_BYTES_MAX: usize = 64 << 10;
/// Bytes of the length field.
const LENGTH_BYTES: usize = 4;
/// Bytes of the kind and the id.
const PREFIX_BYTES: usize = 9;
/// Bytes of the two lengths at the beginning of a call or an answer.
const LENGTHS_BYTES: usize = 8;
pub const FRAME_BYTES_MAX: usize = PREFIX_BYTES + LENGTHS_BYTES + HEAD_BYTES_MAX + PART_BYTES_MAX;
pub const VERSION: u16 = 1;
const MAGIC: &[u8; 8] = b"WASMCAGE";
const REVERSE: u16 = 1;
/// A longer text is cut when it is sent.
const TEXT_BYTES_MAX: usize = 1 << 10;

const HELLO: u8 = 1;
const CALL: u8 = 2;
const CALL_PART: u8 = 3;
const ANSWER: u8 = 4;
const ANSWER_PART: u8 = 5;
const CALL_CREDIT: u8 = 6;
const ANSWER_CREDIT: u8 = 7;
const CANCEL: u8 = 8;
const REFUSED: u8 = 9;
const PING: u8 = 10;
const PONG: u8 = 11;
const GO_AWAY: u8 = 12;
const MEMBERS: u8 = 13;
const BYE: u8 = 14;

/// The peer sent bytes that are no frame, or a frame that may not come now. The link is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

pub fn violation(text: impl Into<String>) -> Violation {
    Violation(text.into())
}

/// Distinguishes the two bodies of a call: its arguments go to the callee, its answer to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Call,
    Answer,
}

/// Why a call was not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The callee is shutting down.
    Draining,
    /// The peer has as many calls in flight as it may have.
    TooMany,
    /// The body is longer than the callee accepts.
    TooLarge,
    /// The callee accepts no calls on this link.
    NotServed,
    /// The caller cancelled the call.
    Cancelled,
}

impl RefusalReason {
    const ALL: [Self; 5] = [Self::Draining, Self::TooMany, Self::TooLarge, Self::NotServed, Self::Cancelled];

    fn code(self) -> u8 {
        self as u8 + 1
    }
}

/// The first frame of each side: its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub copy: u64,
    pub flock: String,
    pub cage: String,
    pub node: String,
    /// Version of its program.
    pub version: String,
    /// TCP port at which it listens, at the address from which it connected.
    pub listen_port: Option<u16>,
    /// It made the connection and can be called over it.
    pub reverse: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Hello(Hello),
    /// `total` bytes of body in all, of which `part` are here.
    Begin {
        direction: Direction,
        id: u64,
        total: u32,
        head: Bytes,
        part: Bytes,
    },
    Part {
        direction: Direction,
        id: u64,
        part: Bytes,
    },
    Credit {
        direction: Direction,
        id: u64,
        bytes: u32,
    },
    Cancel {
        id: u64,
    },
    Refused {
        id: u64,
        reason: RefusalReason,
        text: String,
    },
    Ping(u64),
    Pong(u64),
    GoAway {
        last: u64,
    },
    Members(Bytes),
    Bye(String),
}

impl Frame {
    /// Takes the first frame off the buffer; none while it is incomplete.
    ///
    /// # Errors
    /// The bytes are no frame.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, Violation> {
        let Some(length) = buffer.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize) else {
            return Ok(None);
        };
        if !(PREFIX_BYTES..=FRAME_BYTES_MAX).contains(&length) {
            return Err(violation(format!(
                "a frame of {length} bytes; {PREFIX_BYTES} to {FRAME_BYTES_MAX} are allowed"
            )));
        }
        if buffer.len() < LENGTH_BYTES + length {
            buffer.reserve(LENGTH_BYTES + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(LENGTH_BYTES);
        let mut payload = buffer.split_to(length).freeze();
        let (kind, id) = (payload.get_u8(), payload.get_u64());
        Self::parse(kind, id, payload).map(Some)
    }

    fn parse(kind: u8, id: u64, payload: Bytes) -> Result<Self, Violation> {
        Ok(match kind {
            HELLO => Self::Hello(Hello::parse(payload)?),
            CALL => Self::begin(Direction::Call, id, payload)?,
            CALL_PART => Self::part(Direction::Call, id, payload)?,
            ANSWER => Self::begin(Direction::Answer, id, payload)?,
            ANSWER_PART => Self::part(Direction::Answer, id, payload)?,
            CALL_CREDIT => Self::Credit { direction: Direction::Call, id, bytes: credit(payload)? },
            ANSWER_CREDIT => Self::Credit { direction: Direction::Answer, id, bytes: credit(payload)? },
            CANCEL => Self::Cancel { id },
            REFUSED => Self::refused(id, payload)?,
            PING => Self::Ping(id),
            PONG => Self::Pong(id),
            GO_AWAY => Self::GoAway { last: id },
            MEMBERS => Self::Members(payload),
            BYE => Self::Bye(String::from_utf8_lossy(&payload).into_owned()),
            unknown => return Err(violation(format!("a frame of unknown kind {unknown}"))),
        })
    }

    fn begin(direction: Direction, id: u64, mut payload: Bytes) -> Result<Self, Violation> {
        if payload.len() < LENGTHS_BYTES {
            return Err(violation("a call or answer without its lengths"));
        }
        let (head_bytes, total) = (payload.get_u32() as usize, payload.get_u32());
        if head_bytes > HEAD_BYTES_MAX || head_bytes > payload.len() {
            let there = payload.len();
            return Err(violation(format!(
                "a head of {head_bytes} bytes; {there} are there, {HEAD_BYTES_MAX} allowed"
            )));
        }
        let head = payload.split_to(head_bytes);
        let expected = (total as usize).min(PART_BYTES_MAX);
        if payload.len() != expected {
            return Err(violation(format!("a first part of {} bytes where {expected} must be", payload.len())));
        }
        Ok(Self::Begin { direction, id, total, head, part: payload })
    }

    fn part(direction: Direction, id: u64, part: Bytes) -> Result<Self, Violation> {
        if part.is_empty() || part.len() > PART_BYTES_MAX {
            return Err(violation(format!("a part of {} bytes; 1 to {PART_BYTES_MAX} are allowed", part.len())));
        }
        Ok(Self::Part { direction, id, part })
    }

    fn refused(id: u64, mut payload: Bytes) -> Result<Self, Violation> {
        if payload.is_empty() {
            return Err(violation("a refusal without reason"));
        }
        let code = payload.get_u8();
        let reason = RefusalReason::ALL.into_iter().find(|reason| reason.code() == code);
        let reason = reason.ok_or_else(|| violation(format!("a refusal for unknown reason {code}")))?;
        Ok(Self::Refused { id, reason, text: String::from_utf8_lossy(&payload).into_owned() })
    }
}

fn credit(mut payload: Bytes) -> Result<u32, Violation> {
    match payload.len() {
        4 => Ok(payload.get_u32()),
        other => Err(violation(format!("credit in {other} bytes"))),
    }
}

impl Hello {
    fn parse(mut payload: Bytes) -> Result<Self, Violation> {
        if payload.len() < 22 || &payload[..8] != MAGIC {
            return Err(violation("a greeting that is not wasmcage's"));
        }
        payload.advance(8);
        let (version, flags) = (payload.get_u16(), payload.get_u16());
        if version != VERSION {
            return Err(violation(format!("the peer speaks version {version} of the protocol, this is {VERSION}")));
        }
        let (copy, port) = (payload.get_u64(), payload.get_u16());
        let mut text = || {
            let length = payload.len().checked_sub(2).map(|_| usize::from(payload.get_u16()));
            let length = length.filter(|length| *length <= payload.len());
            let bytes = length.map(|length| payload.split_to(length));
            let text = bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
            text.ok_or_else(|| violation("a greeting that breaks off"))
        };
        let (flock, cage, node, version) = (text()?, text()?, text()?, text()?);
        let listen_port = Some(port).filter(|port| *port != 0);
        Ok(Self { copy, flock, cage, node, version, listen_port, reverse: flags & REVERSE != 0 })
    }

    pub fn put(&self, out: &mut BytesMut) {
        let texts = [&self.flock, &self.cage, &self.node, &self.version].map(|text| cut(text));
        put_prefix(out, HELLO, 0, 22 + texts.iter().map(|text| 2 + text.len()).sum::<usize>());
        out.put_slice(MAGIC);
        out.put_u16(VERSION);
        out.put_u16(if self.reverse { REVERSE } else { 0 });
        out.put_u64(self.copy);
        out.put_u16(self.listen_port.unwrap_or(0));
        for text in texts {
            out.put_u16(text.len() as u16);
            out.put_slice(text.as_bytes());
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

fn put_prefix(out: &mut BytesMut, kind: u8, id: u64, payload_bytes: usize) {
    out.put_u32((PREFIX_BYTES + payload_bytes) as u32);
    out.put_u8(kind);
    out.put_u64(id);
}

/// Writes the head and the first part of the body; returns the rest of the body.
pub fn put_begin(out: &mut BytesMut, direction: Direction, id: u64, head: &[u8], mut body: Bytes) -> Bytes {
    let kind = match direction {
        Direction::Call => CALL,
        Direction::Answer => ANSWER,
    };
    let first = body.len().min(PART_BYTES_MAX);
    out.reserve(LENGTH_BYTES + PREFIX_BYTES + LENGTHS_BYTES + head.len() + first);
    put_prefix(out, kind, id, LENGTHS_BYTES + head.len() + first);
    out.put_u32(head.len() as u32);
    out.put_u32(body.len() as u32);
    out.put_slice(head);
    out.put_slice(&body[..first]);
    body.split_off(first)
}

pub fn put_part(out: &mut BytesMut, direction: Direction, id: u64, part: &[u8]) {
    let kind = match direction {
        Direction::Call => CALL_PART,
        Direction::Answer => ANSWER_PART,
    };
    put_prefix(out, kind, id, part.len());
    out.put_slice(part);
}

pub fn put_credit(out: &mut BytesMut, direction: Direction, id: u64, bytes: u32) {
    let kind = match direction {
        Direction::Call => CALL_CREDIT,
        Direction::Answer => ANSWER_CREDIT,
    };
    put_prefix(out, kind, id, 4);
    out.put_u32(bytes);
}

pub fn put_cancel(out: &mut BytesMut, id: u64) {
    put_prefix(out, CANCEL, id, 0);
}

pub fn put_refused(out: &mut BytesMut, id: u64, reason: RefusalReason, text: &str) {
    let text = cut(text);
    put_prefix(out, REFUSED, id, 1 + text.len());
    out.put_u8(reason.code());
    out.put_slice(text.as_bytes());
}

pub fn put_ping(out: &mut BytesMut, number: u64) {
    put_prefix(out, PING, number, 0);
}

pub fn put_pong(out: &mut BytesMut, number: u64) {
    put_prefix(out, PONG, number, 0);
}

pub fn put_go_away(out: &mut BytesMut, last: u64) {
    put_prefix(out, GO_AWAY, last, 0);
}

/// `members` must have at most `PART_BYTES_MAX` bytes.
pub fn put_members(out: &mut BytesMut, members: &[u8]) {
    put_prefix(out, MEMBERS, 0, members.len());
    out.put_slice(members);
}

pub fn put_bye(out: &mut BytesMut, text: &str) {
    let text = cut(text);
    put_prefix(out, BYE, 0, text.len());
    out.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(put: impl Fn(&mut BytesMut), expected: Frame) {
        let mut buffer = BytesMut::new();
        put(&mut buffer);
        let whole = buffer.clone();
        assert_eq!(Frame::take(&mut buffer).unwrap(), Some(expected));
        assert!(buffer.is_empty());
        for length in 0..whole.len().min(64) {
            assert_eq!(Frame::take(&mut BytesMut::from(&whole[..length])).unwrap(), None, "{length} bytes");
        }
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let hello = Hello {
            copy: 7,
            flock: "default".into(),
            cage: "worker".into(),
            node: "n1".into(),
            version: "0.1.0".into(),
            listen_port: Some(7420),
            reverse: true,
        };
        check(|out| hello.put(out), Frame::Hello(hello.clone()));
        for direction in [Direction::Call, Direction::Answer] {
            let (head, part) = (Bytes::from_static(b"head"), Bytes::from_static(b"body"));
            let begin = Frame::Begin { direction, id: 9, total: 4, head, part };
            check(|out| assert!(put_begin(out, direction, 9, b"head", Bytes::from_static(b"body")).is_empty()), begin);
            let part = Frame::Part { direction, id: 3, part: Bytes::from_static(b"x") };
            check(|out| put_part(out, direction, 3, b"x"), part);
            check(|out| put_credit(out, direction, 3, 77), Frame::Credit { direction, id: 3, bytes: 77 });
        }
        check(|out| put_cancel(out, 1), Frame::Cancel { id: 1 });
        let (reason, text) = (RefusalReason::TooLarge, "why".to_owned());
        check(|out| put_refused(out, 2, RefusalReason::TooLarge, "why"), Frame::Refused { id: 2, reason, text });
        check(|out| put_ping(out, 5), Frame::Ping(5));
        check(|out| put_pong(out, 5), Frame::Pong(5));
        check(|out| put_go_away(out, 4), Frame::GoAway { last: 4 });
        check(|out| put_members(out, b"abc"), Frame::Members(Bytes::from_static(b"abc")));
        check(|out| put_bye(out, "leaving"), Frame::Bye("leaving".into()));
    }

    #[test]
    fn a_long_body_leaves_a_rest() {
        let mut out = BytesMut::new();
        let rest = put_begin(&mut out, Direction::Call, 1, b"", Bytes::from(vec![1; PART_BYTES_MAX + 5]));
        assert_eq!(rest.len(), 5);
        match Frame::take(&mut out).unwrap() {
            Some(Frame::Begin { total, part, .. }) => {
                assert_eq!((total as usize, part.len()), (PART_BYTES_MAX + 5, PART_BYTES_MAX));
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn check_violation(bytes: &[u8], word: &str) {
        let error = Frame::take(&mut BytesMut::from(bytes)).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }

    #[test]
    fn bytes_that_are_no_frame_are_named() {
        check_violation(b"\xff\xff\xff\xff", "4294967295 bytes");
        check_violation(b"\0\0\0\x08", "a frame of 8 bytes");
        check_violation(b"GET / HTTP/1.1\r\n\r\n", "a frame of 1195725856 bytes");
        check_violation(b"\0\0\0\x09\x63\0\0\0\0\0\0\0\x01", "unknown kind 99");
        check_violation(b"\0\0\0\x09\x01\0\0\0\0\0\0\0\0", "greeting");
        check_violation(b"\0\0\0\x09\x02\0\0\0\0\0\0\0\x01", "lengths");
        check_violation(b"\0\0\0\x11\x02\0\0\0\0\0\0\0\x01\0\0\0\x09\0\0\0\0", "head of 9");
        check_violation(b"\0\0\0\x11\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x05", "first part of 0");
        check_violation(b"\0\0\0\x09\x03\0\0\0\0\0\0\0\x01", "part of 0");
        check_violation(b"\0\0\0\x0a\x09\0\0\0\0\0\0\0\x01\xee", "unknown reason 238");
    }

    #[test]
    fn fuzz_bytes_are_frames_or_refused() {
        arbtest::arbtest(|u| {
            let mut buffer = BytesMut::from(&u.arbitrary::<Vec<u8>>()?[..]);
            if u.arbitrary()? {
                let mut framed = BytesMut::new();
                put_prefix(&mut framed, u.int_in_range(0..=15)?, u.arbitrary()?, buffer.len());
                framed.extend_from_slice(&buffer);
                buffer = framed;
            }
            while let Ok(Some(_)) = Frame::take(&mut buffer) {}
            Ok(())
        });
    }
}
