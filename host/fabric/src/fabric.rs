//! The trait `Fabric` for what carries calls between processes and machines, and the trait by which a fabric hands calls
//! to its cage. The contract of fabrics is the test suite in `contract.rs`.

use std::sync::Arc;

use async_trait::async_trait;

use wasmcage_core::call::{Call, Remote};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_protocol::InterfaceError;

/// Connects a cage with others, in both directions. `Remote` is the outbound half: members and calls.
#[async_trait]
pub trait Fabric: Remote {
    /// Lets other cages find this one and call it, until the drain begins. Then refuses new calls, so that callers try
    /// another copy, and returns when every call in flight has been answered.
    ///
    /// # Errors
    /// The reason why the cage cannot be reached, such as a port in use.
    async fn advertise(&self, handler: Arc<dyn CallHandler>, drain: Drain) -> Result<(), InterfaceError>;

    /// Returns the addresses at which others can reach this cage; empty while it is not advertised.
    fn addresses(&self) -> Vec<String>;
}

/// Runs the calls that a fabric receives for its cage.
#[async_trait]
pub trait CallHandler: Send + Sync {
    /// Runs a function. The last of the context's callers is of the cage whose identity the fabric has checked. Dropping
    /// the future cancels the call.
    ///
    /// # Errors
    /// The error that the caller gets.
    async fn serve(&self, call: Call) -> Result<Payload, DispatchError>;
}

/// The identity of this copy on a fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalCopy {
    pub flock: Arc<str>,
    pub cage: Arc<str>,
    /// Distinguishes running copies of a cage; random for each start.
    pub copy: CopyId,
    /// Label of the machine.
    pub node: Arc<str>,
}

/// Identifies a running copy of a cage; written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CopyId(pub u64);

impl CopyId {
    pub fn random() -> Self {
        Self(fastrand::u64(1..))
    }

    /// Parses 16 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let hexadecimal = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        u64::from_str_radix(text, 16).ok().filter(|_| hexadecimal).map(Self)
    }
}

impl std::fmt::Display for CopyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Bounds that every fabric enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// Bytes of the arguments, or of the result, of one call.
    pub body_bytes_max: usize,
    /// Calls in flight to one cage.
    pub calls_per_cage_max: usize,
    /// Calls in flight from one peer.
    pub calls_per_peer_max: usize,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self { body_bytes_max: 32 << 20, calls_per_cage_max: 500, calls_per_peer_max: 1_000 }
    }
}
