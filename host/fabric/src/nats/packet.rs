//! The packets in the NATS messages of fabric `nats`, and their subjects. Used by `caller.rs`, `callee.rs` and `mod.rs`.
//! Received packets may be hostile: every length is checked against the bytes that are there.
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
//! 4 granted  u32 bytes of the body that may be sent in all; also acknowledges the call
//! 5 cancel   nothing: the caller has cancelled the call
//! 6 away     nothing: the call was refused and will not run
//! 7 probe    nothing, and no answer: the server reports when it cannot be delivered
//! 8 beat     u8 state (0 serves, 1 takes nothing new, 2 is gone and has answered all), u8 length and label of the machine,
//!            u8 length and version of its wasmcage
//! ```
//! Head and body of calls and answers are those of `envelope.rs`. A body that does not fit beside its head follows in
//! parts, in order, as far as the other side grants it. The first `WINDOW_BYTES` of an answer's body are granted from
//! the start; those of a call are granted when a copy has taken the call, and the parts are sent to that copy's own
//! subject.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use wasmcage_core::call::CallAction;

use super::super::envelope::{HEAD_BYTES_MAX, Message};
use super::super::fabric::CopyId;

const VERSION: u8 = 1;
/// Bytes of a packet without its content.
const FIXED_BYTES: usize = 18;
/// Bytes of a packet in addition to the head and body that it carries.
pub(super) const OVERHEAD_BYTES: usize = FIXED_BYTES + 8;
/// Bytes of a message, so that a large body does not delay small calls on the shared connection. The server's limit may
/// be smaller.
pub(super) const MESSAGE_BYTES_MAX: usize = 128 << 10;
/// Bytes of one body in flight, which the server must be able to buffer for a slow reader.
pub(super) const WINDOW_BYTES: usize = 1 << 20;
/// Messages of one call that wait to be read; beyond this, the call is cancelled. It is more than a window needs, unless
/// the server's limit for a message is below 4 KiB.
pub(super) const WINDOW_MESSAGES: usize = 512;
/// A label of a machine, or a version, is cut to this many bytes.
const LABEL_BYTES_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) copy: CopyId,
    pub(super) number: u64,
    pub(super) content: PacketContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PacketContent {
    Call(Opening),
    Answer(Opening),
    Part { offset: u32, bytes: Bytes },
    Granted { upto: u32 },
    Cancel,
    Away,
    Probe,
    Beat { state: BeatState, node: String, version: String },
}

/// The first packet of a call or an answer: the head, and the body if it fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) head: Bytes,
    pub(super) body_bytes: u32,
    /// The whole body, or nothing of it.
    pub(super) body: Bytes,
}

/// The state of a copy in its heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BeatState {
    Serving,
    Leaving,
    Gone,
}

/// The bytes are no packet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub(super) struct MalformedPacket(String);

impl Opening {
    /// Leaves the body out when it does not fit into a message of `message_bytes_max`.
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
            PacketContent::Call(opening) => (1, 8 + opening.head.len() + opening.body.len()),
            PacketContent::Answer(opening) => (2, 8 + opening.head.len() + opening.body.len()),
            PacketContent::Part { bytes, .. } => (3, 4 + bytes.len()),
            PacketContent::Granted { .. } => (4, 4),
            PacketContent::Cancel => (5, 0),
            PacketContent::Away => (6, 0),
            PacketContent::Probe => (7, 0),
            PacketContent::Beat { .. } => (8, 3 + 2 * LABEL_BYTES_MAX),
        };
        let mut out = BytesMut::with_capacity(FIXED_BYTES + bytes);
        out.put_u8(VERSION);
        out.put_u8(kind);
        out.put_u64(self.copy.0);
        out.put_u64(self.number);
        match &self.content {
            PacketContent::Call(opening) | PacketContent::Answer(opening) => {
                out.put_u32(opening.head.len() as u32);
                out.put_u32(opening.body_bytes);
                out.put_slice(&opening.head);
                out.put_slice(&opening.body);
            }
            PacketContent::Part { offset, bytes } => {
                out.put_u32(*offset);
                out.put_slice(bytes);
            }
            PacketContent::Granted { upto } => out.put_u32(*upto),
            PacketContent::Cancel | PacketContent::Away | PacketContent::Probe => {}
            PacketContent::Beat { state, node, version } => {
                out.put_u8(*state as u8);
                put_label(&mut out, node);
                put_label(&mut out, version);
            }
        }
        out.freeze()
    }

    pub(super) fn decode(bytes: Bytes) -> Result<Self, MalformedPacket> {
        let mut reader = PacketReader(bytes);
        match reader.u8()? {
            VERSION => {}
            other => return Err(MalformedPacket(format!("version {other}, this is version {VERSION}"))),
        }
        let kind = reader.u8()?;
        let (copy, number) = (CopyId(reader.u64()?), reader.u64()?);
        let content = match kind {
            1 => PacketContent::Call(reader.opening()?),
            2 => PacketContent::Answer(reader.opening()?),
            3 => PacketContent::Part { offset: reader.u32()?, bytes: std::mem::take(&mut reader.0) },
            4 => PacketContent::Granted { upto: reader.u32()? },
            5 => PacketContent::Cancel,
            6 => PacketContent::Away,
            7 => PacketContent::Probe,
            8 => {
                let state = match reader.u8()? {
                    0 => BeatState::Serving,
                    1 => BeatState::Leaving,
                    2 => BeatState::Gone,
                    other => return Err(MalformedPacket(format!("unknown state {other}"))),
                };
                PacketContent::Beat { state, node: reader.label()?, version: reader.label()? }
            }
            other => return Err(MalformedPacket(format!("unknown kind {other}"))),
        };
        match reader.0.len() {
            0 => Ok(Self { copy, number, content }),
            more => Err(MalformedPacket(format!("{more} bytes more than expected"))),
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

struct PacketReader(Bytes);

impl PacketReader {
    fn split(&mut self, bytes: usize) -> Result<Bytes, MalformedPacket> {
        match self.0.len() {
            there if there < bytes => Err(MalformedPacket(format!("{bytes} bytes expected, {there} there"))),
            _ => Ok(self.0.split_to(bytes)),
        }
    }

    fn u8(&mut self) -> Result<u8, MalformedPacket> {
        Ok(self.split(1)?.get_u8())
    }

    fn u32(&mut self) -> Result<u32, MalformedPacket> {
        Ok(self.split(4)?.get_u32())
    }

    fn u64(&mut self) -> Result<u64, MalformedPacket> {
        Ok(self.split(8)?.get_u64())
    }

    fn opening(&mut self) -> Result<Opening, MalformedPacket> {
        let (head_bytes, body_bytes) = (self.u32()? as usize, self.u32()?);
        if head_bytes > HEAD_BYTES_MAX {
            return Err(MalformedPacket(format!("a head of {head_bytes} bytes, more than {HEAD_BYTES_MAX}")));
        }
        let (head, body) = (self.split(head_bytes)?, std::mem::take(&mut self.0));
        let opening = Opening { head, body_bytes, body };
        match opening.is_whole() || opening.body.is_empty() {
            true => Ok(opening),
            false => Err(MalformedPacket(format!("{} bytes of a body of {body_bytes}", opening.body.len()))),
        }
    }

    /// Reads a label of a machine, or a version.
    fn label(&mut self) -> Result<String, MalformedPacket> {
        let bytes = self.u8()? as usize;
        let text = self.split(bytes)?;
        let text = std::str::from_utf8(&text).map_err(|_| MalformedPacket("a label that is not UTF-8".into()))?;
        match bytes <= LABEL_BYTES_MAX && !text.contains(char::is_control) {
            true => Ok(text.to_owned()),
            false => Err(MalformedPacket("a label that is too long or has control characters".into())),
        }
    }
}

/// Stands for the module in the subject of a retried call that is handed over. It cannot be the name of a module.
const ACCEPT_RETRIED: &str = "$retried";

/// Builds the subjects of a flock. Names of flocks, cages and modules are letters, digits, `-` and `_`, so that each is
/// one token.
pub(super) struct Subjects {
    flock: String,
}

impl Subjects {
    pub(super) fn new(flock: &str) -> Self {
        Self { flock: format!("wasmcage.{flock}") }
    }

    /// Returns the subject for a call of any copy of the cage: the server chooses one from the cage's queue group.
    pub(super) fn call(&self, cage: &str, action: &CallAction, caller: &str) -> String {
        let module = match action {
            CallAction::Run { module, .. } => module,
            CallAction::AcceptRetried => ACCEPT_RETRIED,
        };
        format!("{}.call.{cage}.{module}.{caller}", self.flock)
    }

    /// Returns the subject that every call of the cage by its queue group matches.
    pub(super) fn calls(&self, cage: &str) -> String {
        format!("{}.call.{cage}.*.*", self.flock)
    }

    /// Returns the subject for messages to one copy.
    pub(super) fn copy(&self, cage: &str, copy: CopyId, caller: &str) -> String {
        format!("{}.copy.{cage}.{copy}.{caller}", self.flock)
    }

    /// Returns the subject for a cancellation that goes to every copy of the cage, when the caller does not know yet
    /// which one took its call.
    pub(super) fn cancel(&self, cage: &str, caller: &str) -> String {
        format!("{}.cancel.{cage}.{caller}", self.flock)
    }

    pub(super) fn beat(&self, cage: &str) -> String {
        format!("{}.beat.{cage}", self.flock)
    }

    /// Returns the subject on which every copy of the flock is asked for a heartbeat.
    pub(super) fn ask(&self) -> String {
        format!("{}.ask", self.flock)
    }
}

/// Returns the part of a subject after its last dot.
pub(super) fn last_token(subject: &str) -> &str {
    subject.rsplit_once('.').map_or(subject, |(_, last)| last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Vec<PacketContent> {
        let head = Bytes::from_static(b"head");
        let opening =
            |body: &'static [u8]| Opening { head: head.clone(), body_bytes: 3, body: Bytes::from_static(body) };
        vec![
            PacketContent::Call(opening(b"abc")),
            PacketContent::Answer(opening(b"")),
            PacketContent::Answer(Opening { head: Bytes::new(), body_bytes: 0, body: Bytes::new() }),
            PacketContent::Part { offset: 7, bytes: Bytes::from_static(b"abc") },
            PacketContent::Granted { upto: u32::MAX },
            PacketContent::Cancel,
            PacketContent::Away,
            PacketContent::Probe,
            PacketContent::Beat { state: BeatState::Leaving, node: "node-1".into(), version: "0.1.0".into() },
        ]
    }

    #[test]
    fn packets_arrive_as_they_were_sent() {
        for content in contents() {
            let packet = Packet { copy: CopyId(u64::MAX), number: 9, content };
            assert_eq!(Packet::decode(packet.encode()).unwrap(), packet);
        }
        let long = PacketContent::Beat { state: BeatState::Serving, node: "é".repeat(200), version: String::new() };
        let received = Packet::decode(Packet { copy: CopyId(1), number: 0, content: long }.encode()).unwrap();
        assert!(matches!(received.content, PacketContent::Beat { node, .. } if node == "é".repeat(64)));
    }

    #[track_caller]
    fn check_malformed(bytes: &[u8], text: &str) {
        let error = Packet::decode(Bytes::copy_from_slice(bytes)).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn bytes_that_are_no_packet_are_refused() {
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
