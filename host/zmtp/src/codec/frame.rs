//! Headers of frames.

use bytes::{BufMut, BytesMut};

use super::error::ProtocolError;

const MORE: u8 = 0b001;
const LONG: u8 = 0b010;
const COMMAND: u8 = 0b100;

/// What a frame is (RFC 37, "Framing").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// A frame of a message, with others behind it.
    More,
    /// The last frame of a message.
    Last,
    /// A command.
    Command,
}

impl Flags {
    const fn bits(self) -> u8 {
        match self {
            Self::More => MORE,
            Self::Last => 0,
            Self::Command => COMMAND,
        }
    }
}

/// The two or nine bytes before a frame's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub flags: Flags,
    /// The body's length. Whoever reads it has to bound it.
    pub body: u64,
}

impl FrameHeader {
    /// Reads a header from the start of `bytes`, and how long the header is; `None` until all of it is there.
    ///
    /// # Errors
    /// Flags that are reserved or contradict each other, as soon as the first byte is there.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        // RFC 37, "Framing": bits 7 to 3 are zero, and MORE is zero on commands.
        let flags = match first & !LONG {
            0 => Flags::Last,
            MORE => Flags::More,
            COMMAND => Flags::Command,
            _ => return Err(ProtocolError::Flags(first)),
        };
        if first & LONG == 0 {
            return Ok(bytes.get(1).map(|&body| (Self { flags, body: u64::from(body) }, 2)));
        }
        let body = bytes.get(1..).and_then(<[u8]>::first_chunk).map(|body| u64::from_be_bytes(*body));
        Ok(body.map(|body| (Self { flags, body }, 9)))
    }

    /// Writes the header in its shortest form.
    pub fn put(&self, out: &mut BytesMut) {
        match u8::try_from(self.body) {
            Ok(body) => out.put_slice(&[self.flags.bits(), body]),
            Err(_) => {
                out.put_u8(self.flags.bits() | LONG);
                out.put_u64(self.body);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flags: Flags, body: u64, expected: &[u8]) {
        let header = FrameHeader { flags, body };
        let mut out = BytesMut::new();
        header.put(&mut out);
        assert_eq!(out, expected);
        assert_eq!(FrameHeader::parse(expected), Ok(Some((header, expected.len()))));
        for end in 0..expected.len() {
            assert_eq!(FrameHeader::parse(&expected[..end]), Ok(None));
        }
    }

    /// RFC 37, "Formal Grammar": command-size, message-more, message-last.
    #[test]
    fn headers_are_short_up_to_255_bytes() {
        check(Flags::Last, 0, &[0, 0]);
        check(Flags::More, 255, &[1, 255]);
        check(Flags::Command, 41, &[4, 41]);
        check(Flags::Last, 256, &[2, 0, 0, 0, 0, 0, 0, 1, 0]);
        check(Flags::More, 1 << 62, &[3, 0x40, 0, 0, 0, 0, 0, 0, 0]);
        check(Flags::Command, 300, &[6, 0, 0, 0, 0, 0, 0, 1, 44]);
    }

    #[test]
    fn a_long_header_may_hold_a_short_length() {
        let parsed = FrameHeader::parse(&[2, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(parsed, Ok(Some((FrameHeader { flags: Flags::Last, body: 7 }, 9))));
    }

    #[test]
    fn reserved_flags_and_commands_with_more_are_refused() {
        for flags in (8..=255).chain([5, 7]) {
            assert_eq!(FrameHeader::parse(&[flags]), Err(ProtocolError::Flags(flags)));
        }
    }
}
