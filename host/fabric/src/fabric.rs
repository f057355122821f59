//! What carries calls between processes and machines: the one trait that each fabric implements, and what a fabric hands
//! to the cage that it serves. Its contract is the test suite in `contract.rs`.

use std::sync::Arc;

use async_trait::async_trait;

use wasmcage_core::call::{Call, Remote};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_protocol::InterfaceError;

/// A way to other cages, and for other cages to this one. Members and calls are those of `Remote`.
#[async_trait]
pub trait Fabric: Remote {
    /// Lets other cages find this one and call it, until the drain begins; then takes nothing new, tells callers to go
    /// elsewhere, and resolves when every call in work has been answered.
    ///
    /// # Errors
    /// What keeps it from serving, such as a port in use.
    async fn advertise(&self, service: Arc<dyn Service>, drain: Drain) -> Result<(), InterfaceError>;

    /// Where others can reach this cage; empty while it is not advertised.
    fn addresses(&self) -> Vec<String>;
}

/// The cage that a fabric brings calls to.
#[async_trait]
pub trait Service: Send + Sync {
    /// Has a function run. The last of the context's callers belongs to the cage whose identity the fabric has checked.
    /// Dropping the future ends the call.
    ///
    /// # Errors
    /// What the caller gets to see.
    async fn serve(&self, call: Call) -> Result<Payload, DispatchError>;
}

/// Who a cage is on a fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    pub flock: Arc<str>,
    pub cage: Arc<str>,
    /// Tells running copies of a cage apart: 16 hexadecimal digits, random for each start.
    pub copy: CopyId,
    /// Label of the machine.
    pub node: Arc<str>,
}

/// Name of a running copy of a cage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CopyId(pub u64);

impl CopyId {
    pub fn random() -> Self {
        Self(fastrand::u64(1..))
    }

    /// From its 16 hexadecimal digits.
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

/// Bounds that every fabric keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Arguments or result of one call, in bytes.
    pub body_bytes_max: usize,
    /// Calls to one cage that have no answer yet.
    pub calls_per_cage_max: usize,
    /// Calls from one peer that have no answer yet.
    pub calls_per_peer_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body_bytes_max: 32 << 20, calls_per_cage_max: 500, calls_per_peer_max: 1_000 }
    }
}
