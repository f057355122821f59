//! One connection from its first byte to its last, without any input or output.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::command::{self, Command, Metadata, PingContext};
use super::error::ProtocolError;
use super::frame::{Flags, FrameHeader};
use super::greeting::{GREETING_BYTES, Greeting};
use super::write::WriteBuffer;
use crate::limits::Limits;
use crate::mechanism::{Cipher, Done, Handshake, Local, Security, User, refusal};
use crate::message::Message;
use crate::socket_type::SocketType;

/// With more than this to write, PONG waits; of several that wait, the last one is sent. A peer that sends PING and does not
/// read makes nothing grow.
const PONG_BEHIND_BYTES_MAX: usize = 64 * 1024;

/// What all connections of a socket have in common.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// This side's socket type.
    pub socket_type: SocketType,
    /// This side's identity; empty for none.
    pub identity: Bytes,
    /// The security mechanism.
    pub security: Security,
    /// Whether a ROUTER to which a PUSH connects passes for a PULL.
    pub router_accepts_push: bool,
    /// The bounds on frames, messages and commands.
    pub limits: Limits,
}

/// The peer at the end of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The peer's socket type.
    pub socket_type: SocketType,
    /// The identity that the peer gave itself. Empty if it gave none, or one that starts with a zero byte, which peers must
    /// not.
    pub identity: Bytes,
    /// Whom the mechanism found the peer to be.
    pub user: Option<User>,
    /// Everything that the peer said about itself.
    pub metadata: Metadata,
}

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The handshake is complete: from now on messages may be sent.
    Ready(Box<Peer>),
    /// A whole message.
    Message(Message),
    /// The peer subscribes to messages that start with these bytes.
    Subscribe(Bytes),
    /// The peer takes back one subscription to these bytes.
    Cancel(Bytes),
    /// The peer sent a PING, which has been answered.
    Ping {
        /// After so many tenths of a second without traffic the peer wants the connection to be closed; zero for never.
        ttl_tenths: u16,
    },
    /// The peer sent a PONG.
    Pong,
}

enum Stage {
    Greeting,
    Handshake(Handshake),
    Traffic,
    /// After an error nothing is read any more.
    Failed,
}

/// The state of one connection. Bytes of the peer go through [`receive`](Self::receive), bytes for the peer come from
/// [`output`](Self::output).
pub struct Connection {
    config: Arc<ConnectionConfig>,
    accepted: bool,
    stage: Stage,
    /// The minor version of the peer.
    minor: u8,
    cipher: Option<Box<Cipher>>,
    partial: Message,
    partial_bytes: usize,
    pong: Option<PingContext>,
    out: WriteBuffer,
}

impl Connection {
    /// A connection that was just made: by the peer, if it is `accepted`, or by this side.
    #[must_use]
    pub fn new(config: Arc<ConnectionConfig>, accepted: bool) -> Self {
        let greeting = Greeting::new(config.security.mechanism(), config.security.is_server());
        let mut out = WriteBuffer::default();
        // RFC 37, "Version Negotiation": a peer that does not downgrade sends its whole greeting at once.
        out.put_with(|out| out.extend_from_slice(&greeting.to_bytes()));
        Self {
            config,
            accepted,
            stage: Stage::Greeting,
            minor: 0,
            cipher: None,
            partial: Message::new(),
            partial_bytes: 0,
            pong: None,
            out,
        }
    }

    /// Whether the handshake is complete.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Traffic)
    }

    /// Takes bytes from the front of `input` until something has come in, and returns it; `None` if more bytes are needed.
    ///
    /// # Errors
    /// The peer is to be disconnected. What [`output`](Self::output) has is still to be sent: it may tell the peer why.
    pub fn receive(&mut self, input: &mut BytesMut) -> Result<Option<Received>, ProtocolError> {
        let received = self.advance(input);
        if let Err(error) = &received {
            if let (Stage::Handshake(_), Some(reason)) = (&self.stage, refusal(error)) {
                let mut data = BytesMut::new();
                command::put_short(&mut data, reason.as_bytes());
                self.out.put_with(|out| command::put_frame(out, "ERROR", &data));
            }
            self.stage = Stage::Failed;
            self.partial = Message::new();
        }
        received
    }

    fn advance(&mut self, input: &mut BytesMut) -> Result<Option<Received>, ProtocolError> {
        loop {
            match &self.stage {
                Stage::Greeting => {
                    let Some(greeting) = Greeting::parse(input)? else { return Ok(None) };
                    input.advance(GREETING_BYTES);
                    self.greeted(&greeting)?;
                }
                Stage::Handshake(_) => {
                    let Some((flags, body)) = self.frame(input)? else { return Ok(None) };
                    if let Some(peer) = self.handshake(flags, body.freeze())? {
                        return Ok(Some(Received::Ready(Box::new(peer))));
                    }
                }
                Stage::Traffic => {
                    let Some((flags, body)) = self.frame(input)? else { return Ok(None) };
                    let (flags, body) = match &mut self.cipher {
                        Some(cipher) => cipher.open(body)?,
                        None => (flags, body.freeze()),
                    };
                    if let Some(received) = self.traffic(flags, body)? {
                        return Ok(Some(received));
                    }
                }
                Stage::Failed => {
                    input.clear();
                    return Ok(None);
                }
            }
        }
    }

    /// How many bytes are missing for what comes next, as far as that is known; at least one.
    #[must_use]
    pub fn wanted(&self, input: &[u8]) -> usize {
        let whole = match self.stage {
            Stage::Greeting => GREETING_BYTES,
            Stage::Handshake(_) | Stage::Traffic => match FrameHeader::parse(input) {
                Ok(Some((header, len))) => len.saturating_add(usize::try_from(header.body).unwrap_or(usize::MAX)),
                Ok(None) | Err(_) => 2,
            },
            Stage::Failed => 1,
        };
        whole.saturating_sub(input.len()).max(1)
    }

    /// What is to be written.
    pub fn output(&mut self) -> &mut WriteBuffer {
        if self.pong.is_some() && self.out.len() < PONG_BEHIND_BYTES_MAX {
            let pong = self.pong.take().expect("it was just seen");
            self.put_command(&Command::Pong(pong));
        }
        &mut self.out
    }

    /// Appends a message to the output.
    ///
    /// # Panics
    /// The handshake is not complete, or the message has no frame.
    pub fn send(&mut self, message: &Message) {
        assert!(self.is_ready(), "messages are sent after the handshake");
        let (last, others) = message.frames().split_last().expect("a message has a frame");
        for frame in others {
            self.put_frame(Flags::More, frame);
        }
        self.put_frame(Flags::Last, last);
    }

    /// Appends a command to the output.
    ///
    /// # Panics
    /// The handshake is not complete.
    pub fn send_command(&mut self, command: &Command) {
        assert!(self.is_ready(), "commands are sent after the handshake");
        let (first, prefix) = match command {
            Command::Subscribe(prefix) => (1, prefix),
            Command::Cancel(prefix) => (0, prefix),
            Command::Ping { .. } | Command::Pong(_) | Command::Error(_) | Command::Other => {
                return self.put_command(command);
            }
        };
        // RFC 23, "The Publish-Subscribe Pattern", has subscriptions in messages; RFC 37 has commands for them.
        if self.minor >= 1 {
            return self.put_command(command);
        }
        let mut body = BytesMut::with_capacity(1 + prefix.len());
        body.extend_from_slice(&[first]);
        body.extend_from_slice(prefix);
        self.put_frame(Flags::Last, &body.freeze());
    }

    fn put_command(&mut self, command: &Command) {
        let mut body = BytesMut::new();
        command.put_body(&mut body);
        self.put_frame(Flags::Command, &body.freeze());
    }

    fn put_frame(&mut self, flags: Flags, body: &Bytes) {
        match &mut self.cipher {
            None => self.out.put_frame(flags, body),
            Some(cipher) => self.out.put_sized(Cipher::frame_len(body.len()), |out| {
                cipher.seal(flags, body.len(), out, |out| out.extend_from_slice(body));
            }),
        }
    }

    fn greeted(&mut self, greeting: &Greeting) -> Result<(), ProtocolError> {
        let security = &self.config.security;
        // RFC 37, "Authentication and Confidentiality": the mechanisms have to be the same.
        let ours = security.mechanism();
        if greeting.mechanism != ours {
            return Err(ProtocolError::Mechanism { ours, theirs: greeting.mechanism });
        }
        // RFC 24 and RFC 25 have the field say who is the server. libzmq never sets it, so only two that do are sure to be
        // wrong. Two clients find out with their first commands.
        if greeting.as_server && security.is_server() {
            return Err(ProtocolError::Roles { mechanism: ours });
        }
        self.minor = greeting.minor;
        let mut handshake = security.handshake();
        let local = local(&self.config, self.accepted);
        self.out.put_with(|out| handshake.start(&local, out));
        self.stage = Stage::Handshake(handshake);
        Ok(())
    }

    /// Takes a whole frame from the front of `input`.
    fn frame(&self, input: &mut BytesMut) -> Result<Option<(Flags, BytesMut)>, ProtocolError> {
        let Some((header, len)) = FrameHeader::parse(input)? else { return Ok(None) };
        let limits = &self.config.limits;
        // What encryption adds is not counted.
        let added = if self.cipher.is_some() { Cipher::frame_len(0) as u64 } else { 0 };
        let handshaking = matches!(self.stage, Stage::Handshake(_));
        if header.flags == Flags::Command || handshaking {
            let max = limits.command_bytes_max;
            if header.body > (max as u64).saturating_add(added) && (handshaking || self.cipher.is_none()) {
                return Err(ProtocolError::CommandTooLong { bytes: header.body, max });
            }
        }
        let max = limits.frame_bytes_max.min(limits.message_bytes_max);
        if header.body > (max as u64).saturating_add(added) {
            return Err(ProtocolError::FrameTooLong { bytes: header.body, max });
        }
        // On a machine where that is more than there can be, it will not come.
        let body = usize::try_from(header.body).unwrap_or(usize::MAX);
        if input.len() - len < body {
            // The rest of the message is not read before it is known to be too long.
            self.check_message(header.flags, body)?;
            return Ok(None);
        }
        input.advance(len);
        Ok(Some((header.flags, input.split_to(body))))
    }

    /// Whether the message that is being received may have another frame.
    fn check_message(&self, flags: Flags, body: usize) -> Result<(), ProtocolError> {
        if flags == Flags::Command || !self.is_ready() {
            return Ok(());
        }
        let limits = &self.config.limits;
        if self.partial.len() >= limits.message_frames_max {
            return Err(ProtocolError::TooManyFrames { max: limits.message_frames_max });
        }
        let added = if self.cipher.is_some() { Cipher::frame_len(0) } else { 0 };
        if self.partial_bytes.saturating_add(body).saturating_sub(added) > limits.message_bytes_max {
            return Err(ProtocolError::MessageTooLong { max: limits.message_bytes_max });
        }
        Ok(())
    }

    fn handshake(&mut self, flags: Flags, body: Bytes) -> Result<Option<Peer>, ProtocolError> {
        if flags != Flags::Command {
            return Err(ProtocolError::Unexpected {
                expected: "a command of the handshake",
                found: "a message".to_owned(),
            });
        }
        // libzmq's server of PLAIN says this for "\x05ERROR": in C the escape takes the E for a digit.
        if let Some(reason) = body.strip_prefix(b"^RROR") {
            return Err(ProtocolError::Refused(command::error_reason(reason)?));
        }
        let (name, data) = command::split(&body)?;
        // RFC 37, "Error Handling".
        if &*name == b"ERROR" {
            return Err(ProtocolError::Refused(command::error_reason(&data)?));
        }
        let Stage::Handshake(handshake) = &mut self.stage else { return Ok(None) };
        let local = local(&self.config, self.accepted);
        let mut done = Ok(None);
        self.out.put_with(|out| done = handshake.receive(&name, data, &local, out));
        let Some(Done { metadata, peer_type, user, cipher }) = done? else { return Ok(None) };
        self.cipher = cipher;
        self.stage = Stage::Traffic;
        // RFC 37, "The Identity Property": identities that start with zero are this side's own. As libzmq does, such a peer
        // is treated as one without an identity.
        let given = metadata.get("Identity").filter(|identity| identity.first().is_some_and(|first| *first != 0));
        let identity = given.cloned().unwrap_or_default();
        Ok(Some(Peer { socket_type: peer_type, identity, user, metadata }))
    }

    fn traffic(&mut self, flags: Flags, body: Bytes) -> Result<Option<Received>, ProtocolError> {
        let limits = &self.config.limits;
        match flags {
            // libzmq sends heartbeats between two frames of a message too.
            Flags::Command => {
                if body.len() > limits.command_bytes_max {
                    let bytes = body.len() as u64;
                    return Err(ProtocolError::CommandTooLong { bytes, max: limits.command_bytes_max });
                }
                match Command::parse(&body)? {
                    Command::Subscribe(prefix) => Ok(Some(Received::Subscribe(prefix))),
                    Command::Cancel(prefix) => Ok(Some(Received::Cancel(prefix))),
                    Command::Ping { ttl_tenths, context } => {
                        self.pong = Some(context);
                        Ok(Some(Received::Ping { ttl_tenths }))
                    }
                    Command::Pong(_) => Ok(Some(Received::Pong)),
                    Command::Error(reason) => Err(ProtocolError::Refused(reason)),
                    Command::Other => Ok(None),
                }
            }
            Flags::More | Flags::Last => {
                if body.len() > limits.frame_bytes_max {
                    let bytes = body.len() as u64;
                    return Err(ProtocolError::FrameTooLong { bytes, max: limits.frame_bytes_max });
                }
                self.partial_bytes += body.len();
                if self.partial_bytes > limits.message_bytes_max {
                    return Err(ProtocolError::MessageTooLong { max: limits.message_bytes_max });
                }
                if self.partial.len() >= limits.message_frames_max {
                    return Err(ProtocolError::TooManyFrames { max: limits.message_frames_max });
                }
                self.partial.push(body);
                if flags == Flags::More {
                    return Ok(None);
                }
                self.partial_bytes = 0;
                let message = std::mem::take(&mut self.partial);
                Ok(Some(self.received(message)))
            }
        }
    }

    /// RFC 23, "The Publish-Subscribe Pattern": a message of a subscriber that starts with 1 or 0 is a subscription or takes
    /// one back. libzmq sends them to peers of version 3.0 and accepts them from all.
    fn received(&self, mut message: Message) -> Received {
        if matches!(self.config.socket_type, SocketType::Pub | SocketType::XPub) && message.len() == 1 {
            match message[0].first() {
                Some(1) => return Received::Subscribe(message.pop_front().unwrap_or_default().split_off(1)),
                Some(0) => return Received::Cancel(message.pop_front().unwrap_or_default().split_off(1)),
                Some(_) | None => {}
            }
        }
        Received::Message(message)
    }
}

fn local(config: &ConnectionConfig, accepted: bool) -> Local<'_> {
    Local {
        socket_type: config.socket_type,
        identity: &config.identity,
        accepted,
        accepts_push: config.router_accepts_push,
    }
}
