//! NULL: each side says READY with its metadata (RFC 37, "The NULL Security Mechanism").

use bytes::{Bytes, BytesMut};

use super::{Done, Local, expect};
use crate::codec::{Metadata, ProtocolError, put_command};

pub(crate) struct Null;

impl Null {
    /// The side that connected speaks first; the other answers what it hears. That order lets the answer depend on the
    /// peer's type.
    pub(super) fn start(&self, local: &Local<'_>, out: &mut BytesMut) {
        if !local.accepted {
            put_ready(&local.metadata(None), out);
        }
    }

    pub(super) fn receive(
        &self,
        name: &[u8],
        data: Bytes,
        local: &Local<'_>,
        out: &mut BytesMut,
    ) -> Result<Done, ProtocolError> {
        expect("READY", name)?;
        let metadata = Metadata::parse(data, "READY")?;
        let peer_type = local.check(&metadata)?;
        if local.accepted {
            put_ready(&local.metadata(Some(peer_type)), out);
        }
        Ok(Done { metadata, peer_type, user: None, cipher: None })
    }
}

fn put_ready(metadata: &Metadata, out: &mut BytesMut) {
    let mut data = BytesMut::new();
    metadata.put(&mut data);
    put_command(out, "READY", &data);
}
