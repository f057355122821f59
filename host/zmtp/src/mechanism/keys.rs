//! The keys of CURVE, and their form as text.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crypto_box::aead::OsRng;

/// RFC 32, "Formal Specification": the 85 characters in the order of their values.
const ALPHABET: &[u8; 85] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
const KEY_BYTES: usize = 32;
/// RFC 32: four bytes are five characters.
const KEY_CHARACTERS: usize = KEY_BYTES / 4 * 5;

/// A text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Keys have 40 characters of Z85.
    #[error("a key has {KEY_CHARACTERS} characters of Z85, and this text has {0}")]
    Length(usize),
    /// A character is not one of Z85, or five of them are more than four bytes.
    #[error("at character {} there is no Z85: a key has letters, digits and .-:+=^!/*?&<>()[]{{}}@%$#", .0 + 1)]
    Text(usize),
}

/// Characters to bytes (RFC 32).
fn decode(text: &str) -> Result<[u8; KEY_BYTES], KeyError> {
    let characters = text.chars().count();
    if characters != KEY_CHARACTERS {
        return Err(KeyError::Length(characters));
    }
    let mut bytes = [0; KEY_BYTES];
    let value = |at: usize, character: char| {
        let known = ALPHABET.iter().position(|known| char::from(*known) == character);
        known.and_then(|known| u32::try_from(known).ok()).ok_or(KeyError::Text(at))
    };
    let mut sum = 0_u32;
    for (at, character) in text.chars().enumerate() {
        let digit = value(at, character)?;
        sum = sum.checked_mul(85).and_then(|sum| sum.checked_add(digit)).ok_or(KeyError::Text(at))?;
        if at % 5 == 4 {
            bytes[at / 5 * 4..at / 5 * 4 + 4].copy_from_slice(&sum.to_be_bytes());
            sum = 0;
        }
    }
    Ok(bytes)
}

/// Bytes to characters (RFC 32).
fn encode(bytes: &[u8; KEY_BYTES]) -> String {
    let mut text = String::with_capacity(KEY_CHARACTERS);
    for part in bytes.as_chunks::<4>().0 {
        let value = u32::from_be_bytes(*part) as usize;
        for power in [85 * 85 * 85 * 85, 85 * 85 * 85, 85 * 85, 85, 1] {
            text.push(char::from(ALPHABET[value / power % 85]));
        }
    }
    text
}

/// The half of a key pair that others may know. Its text is Z85 (RFC 32), as in ZeroMQ.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// The bytes of a key.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    pub(super) fn point(&self) -> crypto_box::PublicKey {
        self.0.into()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The half of a key pair that nobody else may know. `Debug` does not show it, and memory is cleared when it is dropped.
#[derive(Clone)]
pub struct SecretKey(crypto_box::SecretKey);

impl SecretKey {
    /// The bytes of a key.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes.into())
    }

    /// The key as Z85, to be kept where only its owner can read it.
    #[must_use]
    pub fn reveal(&self) -> String {
        encode(&self.0.to_bytes())
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(*self.0.public_key().as_bytes())
    }

    pub(super) const fn scalar(&self) -> &crypto_box::SecretKey {
        &self.0
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self::from_bytes)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// A secret key with the public one that belongs to it.
#[derive(Clone, Debug)]
pub struct KeyPair {
    secret: SecretKey,
    public: PublicKey,
}

impl KeyPair {
    /// A new pair, from the operating system's random numbers.
    #[must_use]
    pub fn generate() -> Self {
        SecretKey(crypto_box::SecretKey::generate(&mut OsRng)).into()
    }

    /// The half that others may know.
    #[must_use]
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// The half that nobody else may know.
    #[must_use]
    pub const fn secret(&self) -> &SecretKey {
        &self.secret
    }
}

impl From<SecretKey> for KeyPair {
    fn from(secret: SecretKey) -> Self {
        let public = secret.public_key();
        Self { secret, public }
    }
}

/// The clients that a server of CURVE accepts.
#[derive(Clone, Debug)]
pub enum AllowedKeys {
    /// Whoever knows the server's public key.
    Any,
    /// Those whose public keys these are.
    These(Arc<HashSet<PublicKey>>),
}

impl AllowedKeys {
    pub(super) fn contains(&self, key: &PublicKey) -> bool {
        match self {
            Self::Any => true,
            Self::These(keys) => keys.contains(key),
        }
    }
}

impl FromIterator<PublicKey> for AllowedKeys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        Self::These(Arc::new(keys.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of libzmq's manual of `zmq_curve`.
    #[test]
    fn keys_are_read_and_written_as_libzmq_does() {
        let secret: SecretKey = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs".parse().unwrap();
        assert_eq!(secret.public_key().to_string(), "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID");
        assert_eq!(secret.reveal(), "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs");
        assert_eq!(format!("{secret:?}"), "SecretKey(..)");
    }

    #[test]
    fn a_text_that_is_no_key_says_why() {
        let check = |text: &str, expected| assert_eq!(text.parse::<PublicKey>(), Err(expected), "{text}");
        check("", KeyError::Length(0));
        check(&"a".repeat(41), KeyError::Length(41));
        check(&format!("{}~{}", "a".repeat(7), "a".repeat(32)), KeyError::Text(7));
        check(&"#".repeat(40), KeyError::Text(4));
        check(&"ä".repeat(40), KeyError::Text(0));
    }

    #[test]
    fn any_key_is_read_back() {
        arbtest::arbtest(|u| {
            let key = PublicKey::from_bytes(u.arbitrary()?);
            assert_eq!(key.to_string().parse(), Ok(key));
            Ok(())
        });
    }
}
