//! What fabric `nats` puts into NATS messages, and the subjects it puts them on. Used by `caller.rs`, `callee.rs` and
//! `mod.rs`. What comes is hostile: every length is checked against what is there.
//!
//! Numbers are big-endian. Each message is
//! ```text
//! u8  version, 1
//! u8  kind
//! u64 copy that sends it
//! u64 number of the call, given by its caller; 0 where there is none
//! ```
//! and then, by kind:
//! ```text
//! 1 call     u32 bytes of the head, u32 bytes of the body, the head, the body or nothing of it
//! 2 answer   the same
//! 3 part     u32 offset in the body, bytes of the body
//! 4 granted  u32 bytes of the body that may have been sent in all; says also that the call was taken
//! 5 cancel   nothing: the caller has left
//! 6 away     nothing: not taken, and will not be
//! 7 probe    nothing, and nobody answers: only that it can be delivered counts
//! 8 beat     u8 state (0 serves, 1 takes nothing new, 2 is gone and has answered all), u8 length and label of the machine,
//!            u8 length and version of its wasmcage
//! ```
//! Head and body of calls and answers are those of `envelope.rs`. A body that does not fit beside its head follows in
//! parts, in order, as far as the other side grants it. The first `WINDOW_BYTES` of an answer's body are granted from
//! the start; a call's are granted when a copy has taken the call, whose private subject then gets the parts.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use wasmcage_core::call::CallAction;

use super::super::envelope::{HEAD_BYTES_MAX, Message};
use super::super::fabric::CopyId;

const VERSION: u8 = 1;
/// Of a packet without its content.
const FIXED_BYTES: usize = 18;
/// Of a packet beside the bytes that it brings.
pub(super) const OVERHEAD_BYTES: usize = FIXED_BYTES + 8;
/// A message is not larger, so that a large body does not keep small calls waiting on the shared connection. Smaller where
/// the server takes less.
pub(super) const MESSAGE_BYTES_MAX: usize = 128 << 10;
/// Of one body, on the way at a time: what the server must be able to keep for a slow reader.
pub(super) const WINDOW_BYTES: usize = 1 << 20;
/// Messages of one call that wait to be read: more than the window holds, unless the server takes less than 4 KiB a
/// message. Beyond it the call is given up.
pub(super) const WINDOW_MESSAGES: usize = 512;
/// A label of a machine, or a version, is cut to this many bytes.
const LABEL_BYTES_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) copy: CopyId,
    pub(super) number: u64,
    pub(super) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Call(Opening),
    Answer(Opening),
    Part { offset: u32, bytes: Bytes },
    Granted { upto: u32 },
    Cancel,
    Away,
    Probe,
    Beat { state: Life, node: String, version: String },
}

/// The head, and the body if it fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) head: Bytes,
    pub(super) body_bytes: u32,
    /// Whole or empty.
    pub(super) body: Bytes,
}

/// What a copy says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Life {
    Serving,
    Leaving,
    Gone,
}

/// What came is none of our messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub(super) struct Malformed(String);

impl Opening {
    /// Leaves the body out when it does not fit into a message of that many bytes.
    pub(super) fn new(message: &Message, message_bytes_max: usize) -> Self {
        let fits = OVERHEAD_BYTES + message.head.len() + message.body.len() <= message_bytes_max;
        Self {
            head: message.head.clone(),
            body_bytes: message.body.len() as u32,
            body: if fits { message.body.clone() } else { Bytes::new() },
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.body.len() == self.body_bytes as usize
    }
}

impl Packet {
    pub(super) fn encode(&self) -> Bytes {
        let (kind, bytes) = match &self.content {
            Content::Call(opening) => (1, 8 + opening.head.len() + opening.body.len()),
            Content::Answer(opening) => (2, 8 + opening.head.len() + opening.body.len()),
            Content::Part { bytes, .. } => (3, 4 + bytes.len()),
            Content::Granted { .. } => (4, 4),
            Content::Cancel => (5, 0),
            Content::Away => (6, 0),
            Content::Probe => (7, 0),
            Content::Beat { .. } => (8, 3 + 2 * LABEL_BYTES_MAX),
        };
        let mut out = BytesMut::with_capacity(FIXED_BYTES + bytes);
        out.put_u8(VERSION);
        out.put_u8(kind);
        out.put_u64(self.copy.0);
        out.put_u64(self.number);
        match &self.content {
            Content::Call(opening) | Content::Answer(opening) => {
                out.put_u32(opening.head.len() as u32);
                out.put_u32(opening.body_bytes);
                out.put_slice(&opening.head);
                out.put_slice(&opening.body);
            }
            Content::Part { offset, bytes } => {
                out.put_u32(*offset);
                out.put_slice(bytes);
            }
            Content::Granted { upto } => out.put_u32(*upto),
            Content::Cancel | Content::Away | Content::Probe => {}
            Content::Beat { state, node, version } => {
                out.put_u8(*state as u8);
                put_label(&mut out, node);
                put_label(&mut out, version);
            }
        }
        out.freeze()
    }

    pub(super) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        match reader.u8()? {
            VERSION => {}
            other => return Err(Malformed(format!("version {other}, this is version {VERSION}"))),
        }
        let kind = reader.u8()?;
        let (copy, number) = (CopyId(reader.u64()?), reader.u64()?);
        let content = match kind {
            1 => Content::Call(reader.opening()?),
            2 => Content::Answer(reader.opening()?),
            3 => Content::Part { offset: reader.u32()?, bytes: std::mem::take(&mut reader.0) },
            4 => Content::Granted { upto: reader.u32()? },
            5 => Content::Cancel,
            6 => Content::Away,
            7 => Content::Probe,
            8 => {
                let state = match reader.u8()? {
                    0 => Life::Serving,
                    1 => Life::Leaving,
                    2 => Life::Gone,
                    other => return Err(Malformed(format!("unknown state {other}"))),
                };
                Content::Beat { state, node: reader.label()?, version: reader.label()? }
            }
            other => return Err(Malformed(format!("unknown kind {other}"))),
        };
        match reader.0.len() {
            0 => Ok(Self { copy, number, content }),
            more => Err(Malformed(format!("{more} bytes more than expected"))),
        }
    }
}

fn put_label(out: &mut BytesMut, label: &str) {
    let mut end = label.len().min(LABEL_BYTES_MAX);
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u8(end as u8);
    out.put_slice(&label.as_bytes()[..end]);
}

struct Reader(Bytes);

impl Reader {
    fn split(&mut self, bytes: usize) -> Result<Bytes, Malformed> {
        match self.0.len() {
            there if there < bytes => Err(Malformed(format!("{bytes} bytes expected, {there} there"))),
            _ => Ok(self.0.split_to(bytes)),
        }
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.split(1)?.get_u8())
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(self.split(4)?.get_u32())
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(self.split(8)?.get_u64())
    }

    fn opening(&mut self) -> Result<Opening, Malformed> {
        let (head_bytes, body_bytes) = (self.u32()? as usize, self.u32()?);
        if head_bytes > HEAD_BYTES_MAX {
            return Err(Malformed(format!("a head of {head_bytes} bytes, more than {HEAD_BYTES_MAX}")));
        }
        let (head, body) = (self.split(head_bytes)?, std::mem::take(&mut self.0));
        let opening = Opening { head, body_bytes, body };
        match opening.is_whole() || opening.body.is_empty() {
            true => Ok(opening),
            false => Err(Malformed(format!("{} bytes of a body of {body_bytes}", opening.body.len()))),
        }
    }

    /// Of something that people read.
    fn label(&mut self) -> Result<String, Malformed> {
        let bytes = self.u8()? as usize;
        let text = self.split(bytes)?;
        let text = std::str::from_utf8(&text).map_err(|_| Malformed("a label that is not UTF-8".into()))?;
        match bytes <= LABEL_BYTES_MAX && !text.contains(char::is_control) {
            true => Ok(text.to_owned()),
            false => Err(Malformed("a label that is too long or has control characters".into())),
        }
    }
}

/// Stands for the module in the subject of a retried call that is handed over. It cannot be the name of a module.
const ACCEPT_RETRIED: &str = "$retried";

/// Names of the subjects of a flock. Names of flocks, cages and modules are letters, digits, `-` and `_`, so that each is
/// one token.
pub(super) struct Subjects {
    flock: String,
}

impl Subjects {
    pub(super) fn new(flock: &str) -> Self {
        Self { flock: format!("wasmcage.{flock}") }
    }

    /// Any copy of the cage, by the server's choice among those in the cage's queue group.
    pub(super) fn call(&self, cage: &str, action: &CallAction, caller: &str) -> String {
        let module = match action {
            CallAction::Run { module, .. } => module,
            CallAction::AcceptRetried => ACCEPT_RETRIED,
        };
        format!("{}.call.{cage}.{module}.{caller}", self.flock)
    }

    /// Every call of the cage by its queue group.
    pub(super) fn calls(&self, cage: &str) -> String {
        format!("{}.call.{cage}.*.*", self.flock)
    }

    /// One copy.
    pub(super) fn copy(&self, cage: &str, copy: CopyId, caller: &str) -> String {
        format!("{}.copy.{cage}.{copy}.{caller}", self.flock)
    }

    /// Every copy of the cage: for a caller that does not know yet who took its call.
    pub(super) fn cancel(&self, cage: &str, caller: &str) -> String {
        format!("{}.cancel.{cage}.{caller}", self.flock)
    }

    pub(super) fn beat(&self, cage: &str) -> String {
        format!("{}.beat.{cage}", self.flock)
    }

    /// Asks every copy of the flock to be heard at once.
    pub(super) fn ask(&self) -> String {
        format!("{}.ask", self.flock)
    }
}

/// The part of a subject after its last dot.
pub(super) fn last_token(subject: &str) -> &str {
    subject.rsplit_once('.').map_or(subject, |(_, last)| last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Vec<Content> {
        let head = Bytes::from_static(b"head");
        let opening =
            |body: &'static [u8]| Opening { head: head.clone(), body_bytes: 3, body: Bytes::from_static(body) };
        vec![
            Content::Call(opening(b"abc")),
            Content::Answer(opening(b"")),
            Content::Answer(Opening { head: Bytes::new(), body_bytes: 0, body: Bytes::new() }),
            Content::Part { offset: 7, bytes: Bytes::from_static(b"abc") },
            Content::Granted { upto: u32::MAX },
            Content::Cancel,
            Content::Away,
            Content::Probe,
            Content::Beat { state: Life::Leaving, node: "node-1".into(), version: "0.1.0".into() },
        ]
    }

    #[test]
    fn packets_arrive_as_they_were_sent() {
        for content in contents() {
            let packet = Packet { copy: CopyId(u64::MAX), number: 9, content };
            assert_eq!(Packet::decode(packet.encode()).unwrap(), packet);
        }
        let long = Content::Beat { state: Life::Serving, node: "é".repeat(200), version: String::new() };
        let came = Packet::decode(Packet { copy: CopyId(1), number: 0, content: long }.encode()).unwrap();
        assert!(matches!(came.content, Content::Beat { node, .. } if node == "é".repeat(64)));
    }

    #[track_caller]
    fn check_malformed(bytes: &[u8], text: &str) {
        let error = Packet::decode(Bytes::copy_from_slice(bytes)).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        let start = |kind| [&[VERSION, kind][..], &[0; 16]].concat();
        check_malformed(b"", "1 bytes expected, 0 there");
        check_malformed(&[2; 30], "version 2");
        check_malformed(&start(99), "unknown kind 99");
        check_malformed(&[start(5), vec![0]].concat(), "1 bytes more");
        check_malformed(&[start(1), vec![255; 8]].concat(), "a head of 4294967295 bytes");
        check_malformed(&[start(1), vec![0, 0, 0, 0, 0, 0, 0, 2, 7]].concat(), "1 bytes of a body of 2");
        check_malformed(&[start(8), vec![0, 200]].concat(), "200 bytes expected");
        check_malformed(&[start(8), vec![0, 1, b'\n', 0]].concat(), "control characters");
    }

    #[test]
    fn fuzz_packets_are_refused_or_understood() {
        let good: Vec<_> =
            contents().into_iter().map(|content| Packet { copy: CopyId(1), number: 2, content }.encode()).collect();
        arbtest::arbtest(|u| {
            let mut bytes = good[u.choose_index(good.len())?].to_vec();
            for _ in 0..u.int_in_range(0..=4)? {
                let at = u.choose_index(bytes.len())?;
                bytes[at] = u.arbitrary()?;
            }
            bytes.truncate(u.int_in_range(0..=bytes.len())?);
            if let Ok(packet) = Packet::decode(bytes.into()) {
                assert_eq!(Packet::decode(packet.encode()).unwrap(), packet);
            }
            Ok(())
        });
    }
}
