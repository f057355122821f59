//! CURVE: both sides have key pairs, each connection has two more, and everything is encrypted (RFC 25, RFC 26).
//!
//! As in RFC 26, "S" and "C" are the lasting keys of server and client, "S'" and "C'" those of the connection.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crypto_box::aead::rand_core::RngCore;
use crypto_box::aead::{AeadInPlace, OsRng};
use crypto_box::{SalsaBox, Tag};

use super::keys::{AllowedKeys, KeyPair, PublicKey};
use super::{Done, Local, User, expect};
use crate::codec::{Flags, FrameHeader, Metadata, ProtocolError, put_command};

const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// RFC 26, "The WELCOME Command".
const COOKIE_BYTES: usize = 96;
/// RFC 26, "The INITIATE Command": the vouch's nonce and its box of two keys.
const VOUCH_BYTES: usize = 16 + TAG_BYTES + 2 * KEY_BYTES;
/// RFC 26, "The HELLO Command": version, padding, C', nonce, box.
const HELLO_BYTES: usize = 2 + 72 + KEY_BYTES + 8 + TAG_BYTES + 64;
/// The name of MESSAGE with its length, and the nonce.
const MESSAGE_HEADER_BYTES: usize = 16;
/// The lower bits of a frame in a MESSAGE. RFC 26 has MORE alone; libzmq marks commands with the next bit.
const MORE: u8 = 0b01;
const COMMAND: u8 = 0b10;

/// A nonce whose last 8 bytes count (RFC 26, "General Design").
fn short_nonce(prefix: &[u8; 16], count: u64) -> [u8; 24] {
    let mut nonce = [0; 24];
    nonce[..16].copy_from_slice(prefix);
    nonce[16..].copy_from_slice(&count.to_be_bytes());
    nonce
}

/// A nonce whose last 16 bytes are random (RFC 26, "General Design").
fn long_nonce(prefix: &[u8; 8], random: &[u8; 16]) -> [u8; 24] {
    let mut nonce = [0; 24];
    nonce[..8].copy_from_slice(prefix);
    nonce[8..].copy_from_slice(random);
    nonce
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    OsRng.fill_bytes(&mut bytes);
    bytes
}

/// Appends a box with what `put` writes.
fn seal(key: &SalsaBox, nonce: [u8; 24], out: &mut BytesMut, put: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_bytes(0, TAG_BYTES);
    put(out);
    let (tag, text) = out[at..].split_at_mut(TAG_BYTES);
    let sealed = key.encrypt_in_place_detached(&nonce.into(), &[], text).expect("the text is far below 256 GiB");
    tag.copy_from_slice(&sealed);
}

/// Opens a box in its place and removes the tag.
fn open(key: &SalsaBox, nonce: [u8; 24], boxed: &mut BytesMut) -> Option<()> {
    let tag = Tag::clone_from_slice(boxed.get(..TAG_BYTES)?);
    boxed.advance(TAG_BYTES);
    key.decrypt_in_place_detached(&nonce.into(), &[], boxed, &tag).ok()
}

/// Takes `N` bytes from the front.
fn take<const N: usize>(data: &mut impl Buf, command: &'static str) -> Result<[u8; N], ProtocolError> {
    let mut bytes = [0; N];
    data.try_copy_to_slice(&mut bytes).map_err(|_| ProtocolError::Malformed(command))?;
    Ok(bytes)
}

/// A key pair of one connection, forgotten with it.
fn transient() -> crypto_box::SecretKey {
    crypto_box::SecretKey::generate(&mut OsRng)
}

/// What encrypts and decrypts the frames of a connection.
pub(crate) struct Cipher {
    key: SalsaBox,
    send_prefix: &'static [u8; 16],
    receive_prefix: &'static [u8; 16],
    /// The last one used. RFC 26, "The HELLO Command": 2^64 - 1 at most, which no connection reaches.
    sent: u64,
    received: u64,
}

impl Cipher {
    const FROM_CLIENT: &'static [u8; 16] = b"CurveZMQMESSAGEC";
    const FROM_SERVER: &'static [u8; 16] = b"CurveZMQMESSAGES";

    /// How long the frame of a body is.
    pub(crate) const fn frame_len(body: usize) -> usize {
        9 + MESSAGE_HEADER_BYTES + TAG_BYTES + 1 + body
    }

    /// Appends a frame with the body that `put` writes, which has `len` bytes.
    ///
    /// RFC 37, "Wire Analysis of the Connection", wants MESSAGE to be a command. libzmq writes it as a frame of a message,
    /// and takes a command frame for one whose content is a command too.
    pub(crate) fn seal(&mut self, flags: Flags, len: usize, out: &mut BytesMut, put: impl FnOnce(&mut BytesMut)) {
        self.sent += 1;
        let body = MESSAGE_HEADER_BYTES + TAG_BYTES + 1 + len;
        FrameHeader { flags: Flags::Last, body: body as u64 }.put(out);
        out.put_slice(b"\x07MESSAGE");
        out.put_u64(self.sent);
        let bits = match flags {
            Flags::More => MORE,
            Flags::Last => 0,
            Flags::Command => COMMAND,
        };
        seal(&self.key, short_nonce(self.send_prefix, self.sent), out, |out| {
            out.put_u8(bits);
            put(out);
        });
    }

    /// Opens the body of a frame in its place.
    pub(crate) fn open(&mut self, mut body: BytesMut) -> Result<(Flags, Bytes), ProtocolError> {
        // RFC 26, "The MESSAGE Command": at least 33 bytes.
        if body.len() < MESSAGE_HEADER_BYTES + TAG_BYTES + 1 || &body[..8] != b"\x07MESSAGE" {
            return Err(ProtocolError::Malformed("MESSAGE"));
        }
        body.advance(8);
        let nonce = body.get_u64();
        // RFC 26, "The HELLO Command": nonces increase.
        if nonce <= self.received {
            return Err(ProtocolError::Nonce);
        }
        open(&self.key, short_nonce(self.receive_prefix, nonce), &mut body).ok_or(ProtocolError::Box("MESSAGE"))?;
        // Only now is it known to be the peer's.
        self.received = nonce;
        let flags = match body.get_u8() {
            0 => Flags::Last,
            MORE => Flags::More,
            COMMAND => Flags::Command,
            other => return Err(ProtocolError::Flags(other)),
        };
        Ok((flags, body.freeze()))
    }
}

/// RFC 26, "High-level Grammar": C:hello S:welcome C:initiate S:ready.
pub(crate) struct Client {
    server: PublicKey,
    keys: Arc<KeyPair>,
    transient: crypto_box::SecretKey,
    /// The box between C' and S', once S' is known.
    session: Option<SalsaBox>,
}

impl Client {
    pub(super) fn new(server: &PublicKey, keys: Arc<KeyPair>) -> Self {
        Self { server: *server, keys, transient: transient(), session: None }
    }

    /// RFC 26, "The HELLO Command".
    pub(super) fn start(&self, out: &mut BytesMut) {
        let mut data = BytesMut::with_capacity(HELLO_BYTES);
        data.put_slice(&[1, 0]);
        data.put_bytes(0, 72);
        data.put_slice(self.transient.public_key().as_bytes());
        data.put_u64(1);
        let key = SalsaBox::new(&self.server.point(), &self.transient);
        seal(&key, short_nonce(b"CurveZMQHELLO---", 1), &mut data, |out| out.put_bytes(0, 64));
        put_command(out, "HELLO", &data);
    }

    pub(super) fn receive(
        &mut self,
        name: &[u8],
        data: Bytes,
        local: &Local<'_>,
        out: &mut BytesMut,
    ) -> Result<Option<Done>, ProtocolError> {
        let Some(session) = self.session.take() else {
            expect("WELCOME", name)?;
            self.session = Some(self.initiate(data, local, out)?);
            return Ok(None);
        };
        expect("READY", name)?;
        // RFC 26, "The READY Command".
        let mut data = BytesMut::from(data);
        let nonce = u64::from_be_bytes(take(&mut data, "READY")?);
        if data.len() < TAG_BYTES {
            return Err(ProtocolError::Malformed("READY"));
        }
        open(&session, short_nonce(b"CurveZMQREADY---", nonce), &mut data).ok_or(ProtocolError::Box("READY"))?;
        let metadata = Metadata::parse(data.freeze(), "READY")?;
        let peer_type = local.check(&metadata)?;
        let cipher = Cipher {
            key: session,
            send_prefix: Cipher::FROM_CLIENT,
            receive_prefix: Cipher::FROM_SERVER,
            // HELLO and INITIATE had 1 and 2.
            sent: 2,
            received: nonce,
        };
        let user = Some(User::Curve(self.server));
        Ok(Some(Done { metadata, peer_type, user, cipher: Some(Box::new(cipher)) }))
    }

    /// RFC 26, "The WELCOME Command", "The INITIATE Command".
    fn initiate(&self, welcome: Bytes, local: &Local<'_>, out: &mut BytesMut) -> Result<SalsaBox, ProtocolError> {
        let mut welcome = BytesMut::from(welcome);
        let nonce = long_nonce(b"WELCOME-", &take(&mut welcome, "WELCOME")?);
        if welcome.len() != TAG_BYTES + KEY_BYTES + COOKIE_BYTES {
            return Err(ProtocolError::Malformed("WELCOME"));
        }
        let key = SalsaBox::new(&self.server.point(), &self.transient);
        open(&key, nonce, &mut welcome).ok_or(ProtocolError::Box("WELCOME"))?;
        let server_transient = crypto_box::PublicKey::from(take::<KEY_BYTES>(&mut welcome, "WELCOME")?);
        let session = SalsaBox::new(&server_transient, &self.transient);

        let mut data = BytesMut::new();
        data.put_slice(&welcome);
        data.put_u64(2);
        seal(&session, short_nonce(b"CurveZMQINITIATE", 2), &mut data, |out| {
            out.put_slice(self.keys.public().as_bytes());
            let vouch_nonce = random();
            out.put_slice(&vouch_nonce);
            let key = SalsaBox::new(&server_transient, self.keys.secret().scalar());
            seal(&key, long_nonce(b"VOUCH---", &vouch_nonce), out, |out| {
                out.put_slice(self.transient.public_key().as_bytes());
                out.put_slice(self.server.as_bytes());
            });
            local.metadata(None).put(out);
        });
        put_command(out, "INITIATE", &data);
        Ok(session)
    }
}

pub(crate) struct Server {
    keys: Arc<KeyPair>,
    allowed: AllowedKeys,
    greeted: Option<Greeted>,
}

/// What the server knows after HELLO.
struct Greeted {
    client_transient: crypto_box::PublicKey,
    session: SalsaBox,
    transient: crypto_box::SecretKey,
    /// RFC 26, "The WELCOME Command", has the server put its state into the cookie and forget it, which pays on transports
    /// where a server need not keep anything per connection. A connection is kept here in any case, so the cookie, which
    /// only the server can read, is random bytes that have to come back.
    cookie: [u8; COOKIE_BYTES],
    nonce: u64,
}

impl Server {
    pub(super) const fn new(keys: Arc<KeyPair>, allowed: AllowedKeys) -> Self {
        Self { keys, allowed, greeted: None }
    }

    pub(super) fn receive(
        &mut self,
        name: &[u8],
        data: Bytes,
        local: &Local<'_>,
        out: &mut BytesMut,
    ) -> Result<Option<Done>, ProtocolError> {
        match self.greeted.take() {
            None => {
                expect("HELLO", name)?;
                self.greeted = Some(self.welcome(data, out)?);
                Ok(None)
            }
            Some(greeted) => {
                expect("INITIATE", name)?;
                self.ready(greeted, data, local, out).map(Some)
            }
        }
    }

    /// RFC 26, "The HELLO Command", "The WELCOME Command".
    fn welcome(&self, data: Bytes, out: &mut BytesMut) -> Result<Greeted, ProtocolError> {
        let mut data = BytesMut::from(data);
        if data.len() != HELLO_BYTES || data[..2] != [1, 0] {
            return Err(ProtocolError::Malformed("HELLO"));
        }
        data.advance(2 + 72);
        let client_transient = crypto_box::PublicKey::from(take::<KEY_BYTES>(&mut data, "HELLO")?);
        let nonce = u64::from_be_bytes(take(&mut data, "HELLO")?);
        let key = SalsaBox::new(&client_transient, self.keys.secret().scalar());
        open(&key, short_nonce(b"CurveZMQHELLO---", nonce), &mut data).ok_or(ProtocolError::Box("HELLO"))?;
        if data.iter().any(|byte| *byte != 0) {
            return Err(ProtocolError::Malformed("HELLO"));
        }

        let transient = transient();
        let cookie = random();
        let mut welcome = BytesMut::new();
        let welcome_nonce = random();
        welcome.put_slice(&welcome_nonce);
        seal(&key, long_nonce(b"WELCOME-", &welcome_nonce), &mut welcome, |out| {
            out.put_slice(transient.public_key().as_bytes());
            out.put_slice(&cookie);
        });
        put_command(out, "WELCOME", &welcome);
        let session = SalsaBox::new(&client_transient, &transient);
        Ok(Greeted { client_transient, session, transient, cookie, nonce })
    }

    /// RFC 26, "The INITIATE Command", "The READY Command".
    fn ready(
        &self,
        greeted: Greeted,
        data: Bytes,
        local: &Local<'_>,
        out: &mut BytesMut,
    ) -> Result<Done, ProtocolError> {
        let mut data = BytesMut::from(data);
        let cookie: [u8; COOKIE_BYTES] = take(&mut data, "INITIATE")?;
        if cookie != greeted.cookie {
            return Err(ProtocolError::Malformed("INITIATE"));
        }
        let nonce = u64::from_be_bytes(take(&mut data, "INITIATE")?);
        if nonce <= greeted.nonce {
            return Err(ProtocolError::Nonce);
        }
        if data.len() < TAG_BYTES + KEY_BYTES + VOUCH_BYTES {
            return Err(ProtocolError::Malformed("INITIATE"));
        }
        let opened = open(&greeted.session, short_nonce(b"CurveZMQINITIATE", nonce), &mut data);
        opened.ok_or(ProtocolError::Box("INITIATE"))?;
        let client = PublicKey::from_bytes(take(&mut data, "INITIATE")?);
        let vouch_nonce = long_nonce(b"VOUCH---", &take(&mut data, "INITIATE")?);
        let mut vouch = data.split_to(TAG_BYTES + 2 * KEY_BYTES);
        let key = SalsaBox::new(&client.point(), &greeted.transient);
        open(&key, vouch_nonce, &mut vouch).ok_or(ProtocolError::Box("INITIATE"))?;
        let (vouched_transient, vouched_server) = vouch.split_at(KEY_BYTES);
        if vouched_transient != greeted.client_transient.as_bytes() || vouched_server != self.keys.public().as_bytes() {
            return Err(ProtocolError::Malformed("INITIATE"));
        }
        // RFC 26, "The INITIATE Command": who is not authenticated gets no READY.
        if !self.allowed.contains(&client) {
            return Err(ProtocolError::Denied);
        }
        let metadata = Metadata::parse(data.freeze(), "INITIATE")?;
        let peer_type = local.check(&metadata)?;

        let mut ready = BytesMut::new();
        ready.put_u64(1);
        seal(&greeted.session, short_nonce(b"CurveZMQREADY---", 1), &mut ready, |out| {
            local.metadata(Some(peer_type)).put(out);
        });
        put_command(out, "READY", &ready);
        let cipher = Cipher {
            key: greeted.session,
            send_prefix: Cipher::FROM_SERVER,
            receive_prefix: Cipher::FROM_CLIENT,
            sent: 1,
            received: nonce,
        };
        Ok(Done { metadata, peer_type, user: Some(User::Curve(client)), cipher: Some(Box::new(cipher)) })
    }
}
