//! Bytes of a `members` frame, by which peers tell each other of copies that can be reached over the network, so that one
//! address is enough to find a flock. `gossip.rs` decides what is sent and when. These are hints: a copy's identity is
//! proven by its certificate only.
//!
//! Payload: u16 number of members, each u64 copy, then as `u16 length, bytes` its cage, node and address.

use bytes::{Buf as _, BufMut as _};

use crate::discovery::{CopyAddress, CopyHint, FoundBy, PeerAddress};
use crate::fabric::CopyId;
use wasmcage_config::is_name;

/// Members in one frame.
pub(super) const MEMBERS_MAX: usize = 500;
const BYTES_MAX: usize = 64 << 10;
const NODE_BYTES_MAX: usize = 255;

/// Encodes as many of the members as fit.
pub(super) fn encode<'a>(members: impl IntoIterator<Item = &'a CopyHint>) -> Vec<u8> {
    let mut out = vec![0, 0];
    let mut count: u16 = 0;
    for member in members.into_iter().take(MEMBERS_MAX) {
        let CopyAddress::Tcp(address) = &member.address else { continue };
        if out.len() + 8 + 6 + member.cage.len() + member.node.len() + address.len() > BYTES_MAX {
            break;
        }
        out.put_u64(member.copy.0);
        for text in [&member.cage, &member.node, address] {
            out.put_u16(text.len() as u16);
            out.put_slice(text.as_bytes());
        }
        count += 1;
    }
    out[..2].copy_from_slice(&count.to_be_bytes());
    out
}

/// Decodes the members that are valid; others are left out.
pub(super) fn decode(mut bytes: &[u8]) -> Vec<CopyHint> {
    let mut members = Vec::new();
    if bytes.len() < 2 {
        return members;
    }
    for _ in 0..bytes.get_u16().min(MEMBERS_MAX as u16) {
        if bytes.len() < 8 {
            break;
        }
        let copy = CopyId(bytes.get_u64());
        let (Some(cage), Some(node), Some(address)) = (text(&mut bytes), text(&mut bytes), text(&mut bytes)) else {
            break;
        };
        let Ok(address) = address.parse::<PeerAddress>() else { continue };
        if is_name(&cage) && node.len() <= NODE_BYTES_MAX && !node.contains(char::is_control) {
            members.push(CopyHint {
                cage,
                copy,
                node,
                address: CopyAddress::Tcp(address.to_string()),
                found_by: FoundBy::Gossip,
            });
        }
    }
    members
}

fn text(bytes: &mut &[u8]) -> Option<String> {
    if bytes.len() < 2 {
        return None;
    }
    let length = usize::from(bytes.get_u16());
    let text = String::from_utf8(bytes.get(..length)?.to_vec()).ok();
    bytes.advance(length);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(cage: &str, address: &str) -> CopyHint {
        let address = CopyAddress::Tcp(address.into());
        CopyHint { cage: cage.into(), copy: CopyId(5), node: "n1".into(), address, found_by: FoundBy::Gossip }
    }

    #[test]
    fn members_arrive_and_nonsense_does_not() {
        let check = |members: &[CopyHint], expected: &[CopyHint]| assert_eq!(decode(&encode(members)), expected);
        let good = [member("worker", "10.0.0.1:7420"), member("a", "host.example:1")];
        check(&good, &good);
        check(&[member("not a name", "10.0.0.1:1"), member("a", "no port"), good[0].clone()], &good[..1]);
        let many: Vec<_> = (0..2_000).map(|_| good[0].clone()).collect();
        assert_eq!(decode(&encode(&many)).len(), MEMBERS_MAX);
    }

    #[test]
    fn fuzz_bytes_are_members_or_nothing() {
        arbtest::arbtest(|u| {
            decode(&u.arbitrary::<Vec<u8>>()?);
            Ok(())
        });
    }
}
