//! What the configuration needs to know about the protocols that it may name.

/// A protocol, for the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolInfo {
    /// The name in `cage.toml`.
    pub name: &'static str,
    /// Whether every cage has an interface of this protocol, with its name, without naming it in `cage.toml`.
    pub unnamed: bool,
    /// Whether its interfaces work off the queues of retried calls that have their names.
    pub has_queue: bool,
}

impl ProtocolInfo {
    /// A protocol whose interfaces are named in `cage.toml` and work off no queue.
    pub const fn named(name: &'static str) -> Self {
        Self { name, unnamed: false, has_queue: false }
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
