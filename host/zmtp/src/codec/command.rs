//! Commands: their names, their bodies, and the metadata in some of them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::error::ProtocolError;
use super::frame::{Flags, FrameHeader};

/// RFC 37, "Connection Heartbeating": ping-context.
const CONTEXT_BYTES_MAX: usize = 16;

/// What PING carries and PONG echoes: at most 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PingContext {
    bytes: [u8; CONTEXT_BYTES_MAX],
    len: u8,
}

impl PingContext {
    /// A longer context is cut, as libzmq does: RFC 37 says that it must not be, not what to do then.
    #[must_use]
    pub fn new(context: &[u8]) -> Self {
        let len = context.len().min(CONTEXT_BYTES_MAX);
        let mut bytes = [0; CONTEXT_BYTES_MAX];
        bytes[..len].copy_from_slice(&context[..len]);
        // At most 16.
        Self { bytes, len: len as u8 }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A command of traffic, or one that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// RFC 37, "The Publish-Subscribe Pattern".
    Subscribe(Bytes),
    /// RFC 37, "The Publish-Subscribe Pattern".
    Cancel(Bytes),
    /// RFC 37, "Connection Heartbeating".
    Ping {
        /// After so many tenths of a second without traffic the sender wants the connection to be closed; zero for never.
        ttl_tenths: u16,
        /// Is to be echoed.
        context: PingContext,
    },
    /// RFC 37, "Connection Heartbeating".
    Pong(PingContext),
    /// The peer refuses; the reason is text for people (RFC 37, "The NULL Security Mechanism").
    Error(String),
    /// Another command, which is passed over.
    Other,
}

/// Splits a command's body into its name and data (RFC 37, "Formal Grammar": command-body).
pub(crate) fn split(body: &Bytes) -> Result<(Bytes, Bytes), ProtocolError> {
    let len = usize::from(*body.first().ok_or(ProtocolError::Malformed("without a name"))?);
    if len == 0 || body.len() <= len {
        return Err(ProtocolError::Malformed("with an incomplete name"));
    }
    Ok((body.slice(1..=len), body.slice(len + 1..)))
}

impl Command {
    /// Reads the body of a command frame.
    ///
    /// # Errors
    /// The body has no name, or a known command's data is malformed.
    pub fn parse(body: &Bytes) -> Result<Self, ProtocolError> {
        let (name, mut data) = split(body)?;
        Ok(match &*name {
            b"SUBSCRIBE" => Self::Subscribe(data),
            b"CANCEL" => Self::Cancel(data),
            b"PING" => {
                let ttl_tenths = data.try_get_u16().map_err(|_| ProtocolError::Malformed("PING"))?;
                Self::Ping { ttl_tenths, context: PingContext::new(&data) }
            }
            b"PONG" => Self::Pong(PingContext::new(&data)),
            b"ERROR" => Self::Error(error_reason(&data)?),
            _ => Self::Other,
        })
    }

    /// Appends the command's body. [`Command::Other`] has none.
    pub fn put_body(&self, out: &mut BytesMut) {
        match self {
            Self::Subscribe(prefix) => put_body(out, "SUBSCRIBE", prefix),
            Self::Cancel(prefix) => put_body(out, "CANCEL", prefix),
            Self::Ping { ttl_tenths, context } => {
                put_body(out, "PING", &ttl_tenths.to_be_bytes());
                out.put_slice(context.as_bytes());
            }
            Self::Pong(context) => put_body(out, "PONG", context.as_bytes()),
            Self::Error(reason) => {
                put_body(out, "ERROR", &[]);
                put_short(out, reason.as_bytes());
            }
            Self::Other => {}
        }
    }
}

/// RFC 37, "The NULL Security Mechanism": error-reason. Only what can be printed is kept.
pub(crate) fn error_reason(data: &[u8]) -> Result<String, ProtocolError> {
    let malformed = ProtocolError::Malformed("ERROR");
    let (&len, rest) = data.split_first().ok_or(malformed.clone())?;
    let reason = rest.get(..usize::from(len)).ok_or(malformed)?;
    Ok(reason.escape_ascii().to_string())
}

/// Appends a name and data as the body of a command.
pub(crate) fn put_body(out: &mut BytesMut, name: &str, data: &[u8]) {
    put_short(out, name.as_bytes());
    out.put_slice(data);
}

/// Appends a command as a frame of its own.
pub(crate) fn put_frame(out: &mut BytesMut, name: &str, data: &[u8]) {
    FrameHeader { flags: Flags::Command, body: (1 + name.len() + data.len()) as u64 }.put(out);
    put_body(out, name, data);
}

/// Appends a length of one byte and that many bytes. A text longer than 255 bytes is cut: callers have checked what may not be.
pub(crate) fn put_short(out: &mut BytesMut, text: &[u8]) {
    let text = &text[..text.len().min(255)];
    out.put_u8(text.len() as u8);
    out.put_slice(text);
}

/// Names and values about a connection (RFC 37, "Connection Metadata").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    properties: Vec<(String, Bytes)>,
}

impl Metadata {
    /// Reads what a command has behind its name.
    ///
    /// # Errors
    /// The data does not follow the grammar of metadata.
    pub fn parse(mut data: Bytes, command: &'static str) -> Result<Self, ProtocolError> {
        let malformed = || ProtocolError::Malformed(command);
        let mut properties = Vec::new();
        while !data.is_empty() {
            // RFC 37, "The NULL Security Mechanism": name, value.
            let len = usize::from(data.get_u8());
            if len == 0 || data.len() < len {
                return Err(malformed());
            }
            let name = data.split_to(len);
            let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(byte);
            let name = std::str::from_utf8(&name).ok().filter(|name| name.bytes().all(|byte| valid(&byte)));
            let name = name.ok_or_else(malformed)?.to_owned();
            let size = data.try_get_u32().ok().and_then(|size| usize::try_from(size).ok()).ok_or_else(malformed)?;
            if data.len() < size {
                return Err(malformed());
            }
            properties.push((name, data.split_to(size)));
        }
        Ok(Self { properties })
    }

    /// Adds a property. Its name is 1 to 255 letters, digits, `-`, `_`, `.` and `+`; others would make the peer close the
    /// connection.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Bytes>) -> Self {
        self.properties.push((name.to_owned(), value.into()));
        self
    }

    /// The value of a property. Upper and lower case are not told apart (RFC 37, "Connection Metadata").
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.properties.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All properties in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.properties.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Appends the properties.
    pub fn put(&self, out: &mut BytesMut) {
        for (name, value) in &self.properties {
            put_short(out, name.as_bytes());
            // Values of 4 GiB do not fit into a command anyway.
            out.put_u32(value.len() as u32);
            out.put_slice(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(command: &Command, expected: &[u8]) {
        let mut body = BytesMut::new();
        command.put_body(&mut body);
        assert_eq!(body, expected);
        assert_eq!(Command::parse(&body.freeze()).as_ref(), Ok(command));
    }

    /// RFC 37, "Connection Heartbeating", "The Publish-Subscribe Pattern", "The NULL Security Mechanism".
    #[test]
    fn commands_are_those_of_the_grammar() {
        check(&Command::Ping { ttl_tenths: 300, context: PingContext::new(b"ab") }, b"\x04PING\x01\x2cab");
        check(&Command::Ping { ttl_tenths: 0, context: PingContext::default() }, b"\x04PING\0\0");
        check(&Command::Pong(PingContext::new(b"ab")), b"\x04PONGab");
        check(&Command::Subscribe("A".into()), b"\x09SUBSCRIBEA");
        check(&Command::Cancel(Bytes::new()), b"\x06CANCEL");
        check(&Command::Error("400".into()), b"\x05ERROR\x03400");
    }

    #[test]
    fn a_context_is_never_longer_than_16_bytes() {
        let ping = Command::parse(&Bytes::from_static(b"\x04PING\0\x0a0123456789abcdefXYZ")).unwrap();
        assert_eq!(ping, Command::Ping { ttl_tenths: 10, context: PingContext::new(b"0123456789abcdef") });
    }

    #[test]
    fn malformed_commands_are_refused_and_unknown_ones_are_not() {
        for body in [&b""[..], b"\0", b"\x05PING", b"\x04PING\0", b"\x05ERROR", b"\x05ERROR\x02x"] {
            assert!(Command::parse(&Bytes::from_static(body)).is_err(), "{body:?}");
        }
        assert_eq!(Command::parse(&Bytes::from_static(b"\x04JOINg")), Ok(Command::Other));
    }

    /// RFC 37, "Worked Example".
    #[test]
    fn ready_is_that_of_the_worked_example() {
        let metadata = Metadata::default().with("Socket-Type", "DEALER").with("Identity", "");
        let mut data = BytesMut::new();
        metadata.put(&mut data);
        let mut out = BytesMut::new();
        put_frame(&mut out, "READY", &data);
        assert_eq!(out, &b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"[..]);
        assert_eq!(out[1], 41);
        let read = Metadata::parse(data.freeze(), "READY").unwrap();
        assert_eq!(read, metadata);
        assert_eq!(read.get("socket-TYPE").unwrap(), "DEALER");
    }

    #[test]
    fn malformed_metadata_is_refused() {
        for data in [
            &b"\0\0\0\0\0"[..],
            b"\x01",
            b"\x01a",
            b"\x01a\0\0\0",
            b"\x01a\0\0\0\x02x",
            b"\x01!\0\0\0\0",
            b"\x01a\xff\xff\xff\xff",
        ] {
            assert!(Metadata::parse(Bytes::from_static(data), "READY").is_err(), "{data:?}");
        }
    }
}
