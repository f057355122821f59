//! PLAIN: a client shows a name and a password in clear text (RFC 24).

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::{Done, Local, User, Verifier, expect};
use crate::codec::{Metadata, ProtocolError, put_command, put_short};

/// RFC 24, "Implementation": C:hello S:welcome C:initiate S:ready.
pub(crate) struct Client {
    username: Arc<str>,
    password: Arc<str>,
    welcomed: bool,
}

impl Client {
    pub(super) const fn new(username: Arc<str>, password: Arc<str>) -> Self {
        Self { username, password, welcomed: false }
    }

    pub(super) fn start(&self, out: &mut BytesMut) {
        let mut data = BytesMut::new();
        put_short(&mut data, self.username.as_bytes());
        put_short(&mut data, self.password.as_bytes());
        put_command(out, "HELLO", &data);
    }

    pub(super) fn receive(
        &mut self,
        name: &[u8],
        data: Bytes,
        local: &Local<'_>,
        out: &mut BytesMut,
    ) -> Result<Option<Done>, ProtocolError> {
        if !self.welcomed {
            expect("WELCOME", name)?;
            if !data.is_empty() {
                return Err(ProtocolError::Malformed("WELCOME"));
            }
            self.welcomed = true;
            let mut metadata = BytesMut::new();
            local.metadata(None).put(&mut metadata);
            put_command(out, "INITIATE", &metadata);
            return Ok(None);
        }
        expect("READY", name)?;
        let metadata = Metadata::parse(data, "READY")?;
        let peer_type = local.check(&metadata)?;
        Ok(Some(Done { metadata, peer_type, user: None, cipher: None }))
    }
}

pub(crate) struct Server {
    accepts: Arc<Verifier>,
    /// The name that was accepted.
    username: Option<String>,
}

impl Server {
    pub(super) const fn new(accepts: Arc<Verifier>) -> Self {
        Self { accepts, username: None }
    }

    pub(super) fn receive(
        &mut self,
        name: &[u8],
        data: Bytes,
        local: &Local<'_>,
        out: &mut BytesMut,
    ) -> Result<Option<Done>, ProtocolError> {
        let Some(username) = &self.username else {
            expect("HELLO", name)?;
            let (username, password) = credentials(data).ok_or(ProtocolError::Malformed("HELLO"))?;
            if !(self.accepts)(&username, &password) {
                return Err(ProtocolError::Denied);
            }
            self.username = Some(username);
            put_command(out, "WELCOME", &[]);
            return Ok(None);
        };
        expect("INITIATE", name)?;
        let metadata = Metadata::parse(data, "INITIATE")?;
        let peer_type = local.check(&metadata)?;
        let mut ours = BytesMut::new();
        local.metadata(Some(peer_type)).put(&mut ours);
        put_command(out, "READY", &ours);
        Ok(Some(Done { metadata, peer_type, user: Some(User::Plain(username.clone())), cipher: None }))
    }
}

/// RFC 24, "Implementation": username, password; nothing behind them.
fn credentials(mut data: Bytes) -> Option<(String, String)> {
    let mut text = || {
        let len = usize::from(data.try_get_u8().ok()?);
        let text = (data.len() >= len).then(|| data.split_to(len))?;
        String::from_utf8(text.into()).ok()
    };
    let (username, password) = (text()?, text()?);
    data.is_empty().then_some((username, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_two_short_texts_and_nothing_else() {
        let read = |data: &'static [u8]| credentials(Bytes::from_static(data));
        assert_eq!(read(b"\x05admin\x06secret"), Some(("admin".to_owned(), "secret".to_owned())));
        assert_eq!(read(b"\0\0"), Some((String::new(), String::new())));
        for wrong in [&b""[..], b"\x05admin", b"\x05admi", b"\x01a\x01bc", b"\x01a\x02b", b"\x01\xff\0"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
