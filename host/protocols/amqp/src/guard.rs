//! A filter on the bytes that a broker sends, in front of the client library. It withholds bodies that are too long,
//! properties that cannot be read and names that are not UTF-8, and ends the connection at an impossible frame. The
//! library alone would keep a body of any length in memory, read nested tables by recursion, and give up the whole
//! connection at a name that is not UTF-8. This is pure state without a socket: `stream.rs` feeds it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use lapin::BasicProperties;

use super::value::{DEPTH_MAX, FRAME_BYTES_MAX};

const FRAME_HEAD_BYTES: usize = 7;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Why the guard withheld a message from the client library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WithheldReason {
    /// The body is longer than the configured limit.
    TooLong { bytes: u64 },
    /// Properties or names cannot be read: a table is malformed or nested too deep, a text is not UTF-8.
    Unreadable,
}

/// The secret that marks a withheld message. Such a message reaches the library without its body and with a single
/// property, `cluster-id`, which AMQP leaves unused; its value begins with this secret. It is random so that no peer
/// can forge it.
#[derive(Debug)]
pub(super) struct Mark(String);

impl Mark {
    /// # Errors
    /// The operating system has no random numbers.
    pub(super) fn new() -> io::Result<Self> {
        let mut random = [0; 16];
        let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut random);
        filled.map_err(|_| io::Error::other("no random numbers can be had"))?;
        Ok(Self(format!("{:032x}", u128::from_be_bytes(random))))
    }

    /// The value of the property that marks a message.
    fn text(&self, reason: WithheldReason) -> String {
        let bytes = match reason {
            WithheldReason::TooLong { bytes } => bytes.to_string(),
            WithheldReason::Unreadable => String::new(),
        };
        format!("{}:{bytes}", self.0)
    }

    /// Why the message with these properties was withheld; none if it was not.
    pub(super) fn withheld_reason(&self, properties: &BasicProperties) -> Option<WithheldReason> {
        let text = properties.cluster_id().as_ref()?.as_str();
        let bytes = text.strip_prefix(&self.0)?.strip_prefix(':')?;
        Some(bytes.parse().map_or(WithheldReason::Unreadable, |bytes| WithheldReason::TooLong { bytes }))
    }
}

/// The filter on the incoming bytes of one connection.
#[derive(Debug)]
pub(super) struct Guard {
    body_bytes_max: u64,
    mark: Arc<Mark>,
    state: FrameState,
    /// The part that has arrived of a frame's head, or of a frame that has to be inspected whole.
    frame: Vec<u8>,
    channels: HashMap<u16, ContentState>,
}

/// The state of the parser, which decides about the next bytes.
#[derive(Debug)]
enum FrameState {
    /// They are collected until the frame's head is complete.
    Head,
    /// They are collected until the frame has this many bytes, and inspected then.
    Whole(usize),
    /// This many bytes of the frame are passed on.
    Pass(usize),
    /// This many bytes of the frame are dropped.
    Drop(usize),
}

/// The message that is arriving on a channel.
#[derive(Debug, Default)]
struct ContentState {
    /// The message was published by this process and is returned as unroutable: its length is not limited.
    is_returned: bool,
    /// The message's exchange or routing key is not UTF-8.
    is_misnamed: bool,
    /// Bytes of a withheld body that are still to arrive.
    withheld_bytes: u64,
}

impl Guard {
    pub(super) fn new(body_bytes_max: u64, mark: Arc<Mark>) -> Self {
        Self { body_bytes_max, mark, state: FrameState::Head, frame: Vec::new(), channels: HashMap::new() }
    }

    /// Takes bytes that have arrived, and appends to `out` those that the library may read.
    ///
    /// # Errors
    /// `InvalidData`: this is not AMQP, and the connection has to be closed.
    pub(super) fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        while !input.is_empty() {
            match self.state {
                FrameState::Head => {
                    if self.fill(&mut input, FRAME_HEAD_BYTES) {
                        self.head(out)?;
                    }
                }
                FrameState::Whole(size) => {
                    if self.fill(&mut input, size) {
                        self.whole(out)?;
                        self.frame.clear();
                        self.state = FrameState::Head;
                    }
                }
                FrameState::Pass(left) => {
                    let taken = take(&mut input, left);
                    out.extend_from_slice(taken);
                    self.state =
                        if taken.len() < left { FrameState::Pass(left - taken.len()) } else { FrameState::Head };
                }
                FrameState::Drop(left) => {
                    let taken = take(&mut input, left).len();
                    self.state = if taken < left { FrameState::Drop(left - taken) } else { FrameState::Head };
                }
            }
        }
        Ok(())
    }

    /// Moves bytes from `input` to the frame until it has `size` of them; whether it has.
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
        if size > FRAME_BYTES_MAX - FRAME_HEAD_BYTES - 1 {
            return Err(invalid(format!("a frame of {size} bytes")));
        }
        // The byte after the payload marks its end.
        self.state = match kind {
            METHOD | HEADER => FrameState::Whole(FRAME_HEAD_BYTES + size + 1),
            BODY => match self.channels.get_mut(&channel).filter(|channel| channel.withheld_bytes > 0) {
                Some(channel) => {
                    channel.withheld_bytes = channel.withheld_bytes.saturating_sub(size as u64);
                    FrameState::Drop(size + 1)
                }
                None => FrameState::Pass(size + 1),
            },
            _ => FrameState::Pass(size + 1),
        };
        if let FrameState::Pass(_) = self.state {
            out.extend_from_slice(&self.frame);
        }
        if !matches!(self.state, FrameState::Whole(_)) {
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
        let content = self.channels.entry(channel).or_default();
        let reason = if content.is_misnamed || !properties_fit(&payload[12..]) {
            WithheldReason::Unreadable
        } else if size > self.body_bytes_max && !content.is_returned {
            WithheldReason::TooLong { bytes: size }
        } else {
            out.extend_from_slice(frame);
            return Ok(());
        };
        content.withheld_bytes = size;
        replace_content(frame, &self.mark.text(reason), out);
        Ok(())
    }

    /// Remembers what kind of content a method frame announces.
    ///
    /// # Errors
    /// The broker's greeting cannot be read.
    fn method(&mut self, channel: u16) -> io::Result<()> {
        let end = self.frame.len() - 1;
        let payload = &mut self.frame[FRAME_HEAD_BYTES..end];
        let content = match payload.get(..4) {
            // connection.start, with the server's properties after two bytes of version
            Some([0, 10, 0, 10]) => {
                return match payload.get(6..).is_some_and(|rest| table_size(rest).is_some()) {
                    true => Ok(()),
                    false => Err(invalid("a greeting whose properties cannot be read".into())),
                };
            }
            // basic.deliver
            Some([0, 60, 0, 60]) => ContentState { is_misnamed: mend_names(payload), ..ContentState::default() },
            // basic.return
            Some([0, 60, 0, 50]) => ContentState { is_returned: true, ..ContentState::default() },
            // basic.get-ok
            Some([0, 60, 0, 71]) => ContentState::default(),
            // connection.close, channel.close: the broker may cut the text with its reason within a character
            Some([0, 10, 0, 50] | [0, 20, 0, 40]) => {
                mend_text(payload, 6);
                self.channels.remove(&channel);
                return Ok(());
            }
            // channel.close-ok: the channel's number may be used again
            Some([0, 20, 0, 41]) => {
                self.channels.remove(&channel);
                return Ok(());
            }
            Some(_) | None => return Ok(()),
        };
        self.channels.insert(channel, content);
        Ok(())
    }
}

/// Appends the header of an empty content of the same class whose only property, `cluster-id`, is this text.
fn replace_content(frame: &[u8], text: &str, out: &mut Vec<u8>) {
    const CLUSTER_ID: u16 = 1 << 2;
    let payload = &frame[FRAME_HEAD_BYTES..];
    out.extend_from_slice(&frame[..3]);
    // 4 bytes of class and weight, 8 of size, 2 of flags, 1 before the text.
    out.extend_from_slice(&(15 + text.len() as u32).to_be_bytes());
    out.extend_from_slice(&payload[..4]);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&CLUSTER_ID.to_be_bytes());
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
    out.push(frame[frame.len() - 1]);
}

/// Replaces the non-ASCII bytes of exchange and routing key in a `basic.deliver` by question marks if they are not
/// UTF-8. Returns whether it did.
fn mend_names(payload: &mut [u8]) -> bool {
    // The consumer's tag, then 8 bytes of delivery tag and one for the redelivered flag.
    let exchange = 5 + usize::from(payload.get(4).copied().unwrap_or(0)) + 9;
    let key = exchange + 1 + usize::from(payload.get(exchange).copied().unwrap_or(0));
    let mended = [mend_text(payload, exchange), mend_text(payload, key)];
    mended.contains(&true)
}

/// Does the same for one text; `at` is the position of its length byte.
fn mend_text(payload: &mut [u8], at: usize) -> bool {
    let end = at + 1 + usize::from(payload.get(at).copied().unwrap_or(0));
    let Some(text) = payload.get_mut(at + 1..end).filter(|text| std::str::from_utf8(text).is_err()) else {
        return false;
    };
    text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    true
}

/// Removes up to `most` bytes from the beginning of `input`.
fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    taken
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// How a property is encoded.
#[derive(Clone, Copy)]
enum Property {
    Text,
    Table,
    Bytes(usize),
}

/// The properties in the order of their flags, from the highest bit on; the two lowest bits have no property.
const PROPERTIES: [Property; 14] = {
    use Property::{Bytes, Table, Text};
    // Content type and encoding, headers, delivery mode, priority, correlation id, reply-to, expiration, message id,
    // timestamp, type, user id, app id, cluster id.
    [Text, Text, Table, Bytes(1), Bytes(1), Text, Text, Text, Text, Bytes(8), Text, Text, Text, Text]
};

/// Returns whether the library can read these properties, which begin with their flags, and no bytes are left behind
/// them.
fn properties_fit(bytes: &[u8]) -> bool {
    let Some(flags) = bytes.get(..2).map(|flags| u16::from_be_bytes([flags[0], flags[1]])) else { return false };
    let mut at = 2;
    let set = |index: &usize| flags & (0x8000 >> index) != 0;
    for property in (0..PROPERTIES.len()).filter(set).map(|index| PROPERTIES[index]) {
        let rest = bytes.get(at..).unwrap_or_default();
        let size = match property {
            Property::Text => text_size(rest),
            Property::Table => table_size(rest),
            Property::Bytes(size) => Some(size),
        };
        match size {
            Some(size) => at += size,
            None => return false,
        }
    }
    flags & 0b11 == 0 && at == bytes.len()
}

/// The size of a text with its length byte; none if it is cut off or not UTF-8.
fn text_size(bytes: &[u8]) -> Option<usize> {
    let end = 1 + usize::from(*bytes.first()?);
    std::str::from_utf8(bytes.get(1..end)?).ok().map(|_| end)
}

/// The size of a table with its length field; none if it does not end within the bytes, is nested too deep, or has a
/// name that is not UTF-8. It does not recurse, so that the nesting cannot exhaust the stack.
fn table_size(bytes: &[u8]) -> Option<usize> {
    let length = |at: usize| {
        let length = bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes(length.try_into().expect("4 bytes")) as usize)
    };
    let whole = 4 + length(0)?;
    let mut at = 4;
    // The end of each open table or list, and whether it is a list.
    let mut open = vec![(whole, false)];
    while let Some(&(end, is_list)) = open.last() {
        if at >= end {
            if at > end || end > bytes.len() {
                return None;
            }
            open.pop();
            continue;
        }
        if !is_list {
            at += text_size(bytes.get(at..)?)?;
        }
        let kind = bytes.get(at)?;
        at += 1;
        match kind {
            b'V' => {}
            b't' | b'b' | b'B' => at += 1,
            b's' | b'u' | b'U' => at += 2,
            b'i' | b'I' | b'f' => at += 4,
            b'D' => at += 5,
            b'l' | b'L' | b'd' | b'T' => at += 8,
            b'S' | b'x' => at += 4 + length(at)?,
            b'A' | b'F' => {
                let size = length(at).filter(|_| open.len() < DEPTH_MAX)?;
                at += 4;
                open.push((at + size, *kind == b'A'));
            }
            _ => return None,
        }
    }
    Some(whole)
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

    fn deliver(key: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 60, 1, b'c'];
        payload.extend(7_u64.to_be_bytes());
        payload.extend([0, 0, key.len() as u8]);
        payload.extend(key);
        frame(METHOD, &payload)
    }

    /// A content header with a content type, and with a table of headers if there is one.
    fn header(size: u64, table: Option<&[u8]>) -> Vec<u8> {
        let mut properties = vec![if table.is_some() { 0xa0 } else { 0x80 }, 0, 1, b't'];
        properties.extend(table.unwrap_or_default());
        header_with(size, &properties)
    }

    fn header_with(size: u64, properties: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0];
        payload.extend(size.to_be_bytes());
        payload.extend(properties);
        frame(HEADER, &payload)
    }

    /// A table that is nested so deep.
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

    fn mark() -> Arc<Mark> {
        Arc::new(Mark("mark".into()))
    }

    fn fed(input: &[u8], piece: usize) -> Vec<u8> {
        let (mut guard, mut out) = (Guard::new(10, mark()), Vec::new());
        for part in input.chunks(piece) {
            guard.feed(part, &mut out).unwrap();
        }
        out
    }

    /// Checks that the output is the same whatever pieces the input arrives in.
    #[track_caller]
    fn check(input: &[u8], expected: &[u8]) {
        for piece in [1, 3, 7, 100, input.len()] {
            assert_eq!(fed(input, piece), expected);
        }
    }

    /// The header in place of a withheld content.
    fn marked(text: &str) -> Vec<u8> {
        let mut properties = vec![0, 4, text.len() as u8];
        properties.extend(text.as_bytes());
        header_with(0, &properties)
    }

    #[test]
    fn what_fits_passes_unchanged() {
        let input = [deliver(b"k"), header(3, Some(&nested(16))), frame(BODY, b"abc"), frame(HEARTBEAT, b"")].concat();
        check(&input, &input);
    }

    #[test]
    fn a_long_body_is_left_out_and_the_next_message_passes() {
        let bodies = [frame(BODY, &[1; 6]), frame(BODY, &[2; 5])].concat();
        let next = [deliver(b"k"), header(1, None), frame(BODY, b"x")].concat();
        let input = [deliver(b"k"), header(11, None), bodies, next.clone()].concat();
        check(&input, &[deliver(b"k"), marked("mark:11"), next].concat());
    }

    #[test]
    fn a_message_that_is_returned_to_its_sender_may_be_long() {
        let returned = frame(METHOD, &[0, 60, 0, 50, 1, 56, 0, 0, 0]);
        let input = [returned, header(11, None), frame(BODY, &[1; 11])].concat();
        check(&input, &input);
    }

    #[test]
    fn properties_that_cannot_be_read_are_left_out() {
        let odd_name = [&[0, 0, 0, 3, 1, 0xff, b'V'][..]].concat();
        for table in [nested(17), nested(10_000), vec![0, 0, 0, 9, 1, b'a', b'?'], vec![255; 4], odd_name] {
            let input = [deliver(b"k"), header(2, Some(&table)), frame(BODY, b"ab")].concat();
            check(&input, &[deliver(b"k"), marked("mark:")].concat());
        }
        // Not UTF-8, cut off, more bytes than the flags announce, unknown flags.
        for properties in
            [&[0x80, 0, 1, 0xff][..], &[0x80, 0, 9, b't'], &[0x80, 0, 1, b't', 0], &[0x80, 1, 1, b't'], &[0x80]]
        {
            let input = [deliver(b"k"), header_with(2, properties), frame(BODY, b"ab")].concat();
            check(&input, &[deliver(b"k"), marked("mark:")].concat());
        }
    }

    #[test]
    fn a_message_with_names_that_are_not_utf_8_is_left_out() {
        let input = [deliver(b"a\xffb"), header(2, None), frame(BODY, b"ab"), deliver("é".as_bytes()), header(0, None)];
        let expected = [deliver(b"a?b"), marked("mark:"), deliver("é".as_bytes()), header(0, None)];
        check(&input.concat(), &expected.concat());
    }

    #[test]
    fn a_reason_that_was_cut_within_a_character_can_be_read() {
        let close = |text: &[u8]| {
            let head = [0, 20, 0, 40, 1, 148, text.len() as u8];
            frame(METHOD, &[&head, text, &[0, 0, 0, 0]].concat())
        };
        check(&close(b"no exchange \xc3.."), &close(b"no exchange ?.."));
    }

    #[test]
    fn a_mark_says_why_and_nobody_else_can_write_one() {
        let mark = Mark::new().unwrap();
        let of = |text: &str| BasicProperties::default().with_cluster_id(text.into());
        for reason in [WithheldReason::TooLong { bytes: u64::MAX }, WithheldReason::Unreadable] {
            assert_eq!(mark.withheld_reason(&of(&mark.text(reason))), Some(reason));
            assert_eq!(Mark::new().unwrap().withheld_reason(&of(&mark.text(reason))), None);
        }
        assert_eq!(mark.withheld_reason(&of(":5")), None);
        assert_eq!(mark.withheld_reason(&BasicProperties::default()), None);
    }

    #[test]
    fn bytes_that_are_not_amqp_end_the_connection() {
        let greeting = [&[0, 10, 0, 10, 0, 9][..], &nested(1_000)].concat();
        for input in [b"HTTP/1.1 400".to_vec(), vec![BODY, 0, 1, 255, 0, 0, 0], frame(METHOD, &greeting)] {
            let mut guard = Guard::new(10, mark());
            let error = guard.feed(&input, &mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        arbtest::arbtest(|bytes| {
            let input: Vec<u8> = bytes.arbitrary()?;
            let _ = Guard::new(10, mark()).feed(&input, &mut Vec::new());
            let _ = table_size(&input);
            let _ = properties_fit(&input);
            let _ = mend_names(&mut input.clone());
            Ok(())
        });
    }
}
