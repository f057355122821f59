//! How a socket behaves.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::limits::Limits;
use crate::mechanism::Security;

/// The name by which a ROUTER knows a peer (RFC 37, "The Identity Property").
///
/// One that an application gives has 1 to 255 bytes, the first of which is not zero. One that a ROUTER makes for a peer
/// without an identity starts with a zero byte, so the two never meet.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Bytes);

/// The bytes are no identity that an application may give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an identity has 1 to 255 bytes, the first of which is not zero, and this one is {0:?}")]
pub struct IdentityError(Bytes);

impl Identity {
    /// An identity to give a socket.
    ///
    /// # Errors
    /// The bytes are none, too many, or start with a zero byte.
    pub fn new(identity: impl Into<Bytes>) -> Result<Self, IdentityError> {
        let identity = identity.into();
        if identity.is_empty() || identity.len() > 255 || identity[0] == 0 {
            return Err(IdentityError(identity));
        }
        Ok(Self(identity))
    }

    /// One of whatever form.
    pub(crate) const fn from_wire(identity: Bytes) -> Self {
        Self(identity)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether a ROUTER made it for a peer that gave none.
    #[must_use]
    pub fn is_generated(&self) -> bool {
        self.0.first() == Some(&0)
    }
}

impl AsRef<[u8]> for Identity {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// As the keys of a map are found by.
impl std::borrow::Borrow<[u8]> for Identity {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<Identity> for Bytes {
    fn from(identity: Identity) -> Self {
        identity.0
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

/// What a ROUTER does with a peer whose identity another connected peer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DuplicateIdentity {
    /// The new connection is closed; the peer may try again. libzmq without `ZMQ_ROUTER_HANDOVER` keeps it and never uses it.
    #[default]
    Reject,
    /// The new connection has the identity from now on and the old one is closed. libzmq with `ZMQ_ROUTER_HANDOVER` keeps
    /// the old one and never uses it. Whoever can connect can take over; two live peers with the same identity close each
    /// other for ever.
    HandOver,
}

/// When a lost or refused connection is tried again (RFC 37, "Error Handling"). There is never more than one attempt at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// The pause before the first further attempt. None by default.
    pub first: Duration,
    /// The pause before the second one; each further pause is twice the one before. 1 s.
    pub second: Duration,
    /// The longest pause. 32 s.
    pub max: Duration,
    /// The pause after a peer refused for a reason that is unlikely to go away: another mechanism, wrong keys, ERROR. 32 s.
    /// RFC 37 wants no further attempt with the same credentials, which is `None`: nothing but a new `connect` helps then.
    pub refused: Option<Duration>,
    /// A connection that held for so long counts as good: pauses start from `first` again. 5 s.
    pub good_after: Duration,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            first: Duration::ZERO,
            second: Duration::from_secs(1),
            max: Duration::from_secs(32),
            refused: Some(Duration::from_secs(32)),
            good_after: Duration::from_secs(5),
        }
    }
}

impl Reconnect {
    /// The pause after `failures` attempts in a row that led to nothing. A random part of up to a half is taken off, so that
    /// many peers that lost the same server do not return together.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let pause = match failures {
            0 | 1 => self.first,
            _ => self.second.saturating_mul(1_u32.checked_shl(failures - 2).unwrap_or(u32::MAX)),
        };
        jittered(pause.min(self.max))
    }
}

pub(crate) fn jittered(pause: Duration) -> Duration {
    // No pause is meant to be longer than a year, and much longer ones cannot be multiplied.
    pause.min(Duration::from_secs(365 * 24 * 3600)).mul_f64(1.0 - 0.5 * fastrand::f64())
}

/// Heartbeats of a connection (RFC 37, "Connection Heartbeating"). A PING of a peer is answered in any case, and its time to
/// live obeyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Between two PINGs.
    pub interval: Duration,
    /// A peer that sends nothing at all for so long after a PING is disconnected.
    pub timeout: Duration,
    /// After so long without traffic from this side the peer is to disconnect; zero for never. At most 6553.5 s.
    pub ttl: Duration,
}

impl Heartbeat {
    /// PING at each interval, and three of them without any sign of life end the connection on both sides.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        Self { interval, timeout: interval * 3, ttl: interval * 3 }
    }

    /// RFC 37, "Connection Heartbeating": ping-ttl, in tenths of a second. Never zero for a time that is not.
    pub(crate) fn ttl_tenths(&self) -> u16 {
        u16::try_from(self.ttl.as_millis().div_ceil(100)).unwrap_or(u16::MAX)
    }
}

/// How a socket behaves. Fields of types that it does not concern have no effect.
#[derive(Clone, Debug)]
pub struct Options {
    /// The mechanism. NULL.
    pub security: Security,
    /// The name by which a ROUTER shall know this socket; for REQ, DEALER and ROUTER. None: the ROUTER makes one.
    pub identity: Option<Identity>,
    /// The bounds.
    pub limits: Limits,
    /// Heartbeats. None.
    pub heartbeat: Option<Heartbeat>,
    /// When a connection is tried again.
    pub reconnect: Reconnect,
    /// What a ROUTER does with a second peer of the same identity. It is rejected.
    pub duplicate_identity: DuplicateIdentity,
    /// Whether a bound ROUTER accepts PUSH peers and passes for a PULL to them. RFC 37 forbids it and libzmq 4 refuses it on
    /// both sides; programs of the time before did it. Such a peer gets an identity that the ROUTER makes, and nothing can
    /// be sent to it. No.
    pub router_accepts_push: bool,
    /// How long closing may take to send what waits, and to let peers read it. 1 s.
    pub linger: Duration,
    /// Events that wait for a reader; older ones give way. 256.
    pub events_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            security: Security::null(),
            identity: None,
            limits: Limits::default(),
            heartbeat: None,
            reconnect: Reconnect::default(),
            duplicate_identity: DuplicateIdentity::default(),
            router_accepts_push: false,
            linger: Duration::from_secs(1),
            events_max: 256,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let reconnect = Reconnect::default();
        for (failures, seconds) in
            [(1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (6, 16), (7, 32), (8, 32), (40, 32), (9999, 32)]
        {
            for _ in 0..20 {
                let pause = reconnect.pause(failures);
                let longest = Duration::from_secs(seconds);
                assert!(pause <= longest && pause >= longest / 2, "{failures}: {pause:?}");
            }
        }
    }

    #[test]
    fn given_identities_never_look_like_generated_ones() {
        assert!(Identity::new(&b""[..]).is_err());
        assert!(Identity::new(&b"\0a"[..]).is_err());
        assert!(Identity::new(vec![1; 256]).is_err());
        assert!(!Identity::new(vec![1; 255]).unwrap().is_generated());
    }

    #[test]
    fn a_time_to_live_is_tenths_of_a_second() {
        let ttl = |ttl| Heartbeat { ttl, ..Heartbeat::every(Duration::from_secs(1)) }.ttl_tenths();
        assert_eq!(ttl(Duration::ZERO), 0);
        assert_eq!(ttl(Duration::from_millis(1)), 1);
        assert_eq!(ttl(Duration::from_secs(30)), 300);
        assert_eq!(ttl(Duration::from_secs(90_000)), u16::MAX);
    }
}
