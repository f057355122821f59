//! What the configuration needs to know about the protocols that it may name.

use crate::ExportChoice;

/// What a protocol says of itself, before any of its interfaces runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolInfo {
    /// The word after `protocol =` in `cage.toml`.
    pub name: &'static str,
    pub target: RequestTarget,
    /// Every cage has an interface of this protocol, named like the protocol, even when `cage.toml` does not mention it.
    pub in_every_cage: bool,
    /// Each interface of this protocol makes the retried calls of the queue that has the interface's name.
    pub serves_queue: bool,
}

/// Which module a request of a protocol is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestTarget {
    /// The interface's module, by its `handler` export.
    Handler,
    /// The interface's module, by its `wasi:http` export if it has one, otherwise by its `handler` export.
    HandlerOrWasiHttp,
    /// The module that the request names. The interface has none.
    NamedModule,
}

impl ProtocolInfo {
    /// A protocol like most: its interfaces are those of `cage.toml`, each for the `handler` of one module.
    pub const fn new(name: &'static str) -> Self {
        Self { name, target: RequestTarget::Handler, in_every_cage: false, serves_queue: false }
    }

    #[must_use]
    pub const fn target(self, target: RequestTarget) -> Self {
        Self { target, ..self }
    }

    #[must_use]
    pub const fn in_every_cage(self) -> Self {
        Self { in_every_cage: true, ..self }
    }

    #[must_use]
    pub const fn serves_queue(self) -> Self {
        Self { serves_queue: true, ..self }
    }

    /// The export that an interface uses whose `cage.toml` says `configured`.
    pub fn export(&self, configured: ExportChoice) -> ExportChoice {
        match (configured, self.target) {
            (ExportChoice::Auto, RequestTarget::Handler | RequestTarget::NamedModule) => ExportChoice::Handler,
            (chosen, _) => chosen,
        }
    }
}

/// A protocol that this program was built without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OmittedProtocol {
    /// The name in `cage.toml`.
    pub protocol: &'static str,
    /// The cargo feature of the program that adds it.
    pub feature: &'static str,
}
