//! The first 64 bytes that each side sends.

use std::fmt;

use super::error::ProtocolError;

/// The length of a greeting (RFC 37, "Formal Grammar").
pub const GREETING_BYTES: usize = 64;
/// RFC 37, "Formal Grammar": signature.
const SIGNATURE_BYTES: usize = 10;
const MAJOR_AT: usize = 10;
const MINOR_AT: usize = 11;
const MECHANISM_AT: usize = 12;
const MECHANISM_BYTES: usize = 20;
const AS_SERVER_AT: usize = 32;

/// The name of a security mechanism, padded with zero bytes (RFC 37, "Authentication and Confidentiality").
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MechanismName([u8; MECHANISM_BYTES]);

impl MechanismName {
    /// No authentication.
    pub const NULL: Self = Self::padded(b"NULL");
    /// Name and password in clear text.
    pub const PLAIN: Self = Self::padded(b"PLAIN");
    /// Keys on both sides, everything encrypted.
    pub const CURVE: Self = Self::padded(b"CURVE");

    const fn padded(name: &[u8]) -> Self {
        let mut bytes = [0; MECHANISM_BYTES];
        let mut at = 0;
        while at < name.len() {
            bytes[at] = name[at];
            at += 1;
        }
        Self(bytes)
    }
}

impl fmt::Display for MechanismName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(MECHANISM_BYTES);
        self.0[..end].escape_ascii().fmt(f)
    }
}

impl fmt::Debug for MechanismName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// The first thing that each side of a connection says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The version's minor number. A major number greater than 3 counts as 3.1, which is how such a peer talks to this one.
    pub minor: u8,
    /// The only mechanism that the side accepts.
    pub mechanism: MechanismName,
    /// Whether the side is the server of the mechanism.
    pub as_server: bool,
}

impl Greeting {
    /// The greeting of this implementation, ZMTP 3.1.
    #[must_use]
    pub const fn new(mechanism: MechanismName, as_server: bool) -> Self {
        Self { minor: 1, mechanism, as_server }
    }

    /// The 64 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        bytes[0] = 0xff;
        // RFC 37, "Version Negotiation": a peer that does not downgrade leaves the padding zero.
        bytes[SIGNATURE_BYTES - 1] = 0x7f;
        bytes[MAJOR_AT] = 3;
        bytes[MINOR_AT] = self.minor;
        bytes[MECHANISM_AT..MECHANISM_AT + MECHANISM_BYTES].copy_from_slice(&self.mechanism.0);
        bytes[AS_SERVER_AT] = u8::from(self.as_server);
        bytes
    }

    /// Reads a greeting from the start of `bytes`; `None` until all of it is there. What shows a stranger is found as soon
    /// as it is there: an older peer never sends 64 bytes.
    ///
    /// # Errors
    /// The peer does not speak ZMTP 3.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, ProtocolError> {
        // RFC 37, "Formal Grammar": signature. RFC 37, "Version Negotiation": the padding is not looked at.
        let strange = bytes.first().is_some_and(|first| *first != 0xff)
            || bytes.get(SIGNATURE_BYTES - 1).is_some_and(|last| *last != 0x7f);
        if strange {
            let mut seen = [0; SIGNATURE_BYTES];
            let end = bytes.len().min(SIGNATURE_BYTES);
            seen[..end].copy_from_slice(&bytes[..end]);
            return Err(ProtocolError::NotZmtp(seen));
        }
        // RFC 37, "Version Negotiation": higher versions are accepted; one that cannot be matched ends the connection.
        if let Some(major) = bytes.get(MAJOR_AT)
            && *major < 3
        {
            return Err(ProtocolError::Version(*major));
        }
        let Some(bytes) = bytes.first_chunk::<GREETING_BYTES>() else { return Ok(None) };
        let mut mechanism = [0; MECHANISM_BYTES];
        mechanism.copy_from_slice(&bytes[MECHANISM_AT..MECHANISM_AT + MECHANISM_BYTES]);
        let minor = if bytes[MAJOR_AT] == 3 { bytes[MINOR_AT] } else { 1 };
        Ok(Some(Self { minor, mechanism: MechanismName(mechanism), as_server: bytes[AS_SERVER_AT] & 1 == 1 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 37, "Worked Example".
    #[test]
    fn the_greeting_is_that_of_the_worked_example() {
        let mut expected = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 1];
        expected.extend(b"NULL");
        expected.resize(64, 0);
        assert_eq!(Greeting::new(MechanismName::NULL, false).to_bytes().as_slice(), expected);
    }

    #[test]
    fn a_greeting_is_read_back_when_it_is_whole() {
        let greeting = Greeting::new(MechanismName::CURVE, true);
        let bytes = greeting.to_bytes();
        for end in 0..GREETING_BYTES {
            assert_eq!(Greeting::parse(&bytes[..end]), Ok(None));
        }
        assert_eq!(Greeting::parse(&bytes), Ok(Some(greeting)));
        assert_eq!(MechanismName::CURVE.to_string(), "CURVE");
    }

    #[test]
    fn the_padding_has_no_meaning() {
        let mut bytes = Greeting::new(MechanismName::PLAIN, false).to_bytes();
        bytes[1..9].fill(0xa5);
        assert!(Greeting::parse(&bytes).unwrap().is_some());
    }

    #[test]
    fn a_higher_version_is_accepted_and_a_lower_one_is_not() {
        let mut bytes = Greeting::new(MechanismName::NULL, false).to_bytes();
        bytes[MAJOR_AT..=MINOR_AT].copy_from_slice(&[4, 0]);
        assert_eq!(Greeting::parse(&bytes).unwrap().unwrap().minor, 1);
        bytes[MAJOR_AT..=MINOR_AT].copy_from_slice(&[3, 0]);
        assert_eq!(Greeting::parse(&bytes).unwrap().unwrap().minor, 0);
        bytes[MAJOR_AT] = 1;
        assert_eq!(Greeting::parse(&bytes[..11]), Err(ProtocolError::Version(1)));
    }

    #[test]
    fn strangers_are_seen_at_their_first_wrong_byte() {
        assert!(matches!(Greeting::parse(b"G"), Err(ProtocolError::NotZmtp(_))));
        assert!(matches!(Greeting::parse(b"\xff\0\0\0\0\0\0\0\0\0"), Err(ProtocolError::NotZmtp(_))));
        assert_eq!(Greeting::parse(b"\xff\0\0\0\0\0\0\0\0"), Ok(None));
    }
}
