//! What a configuration has to know of the protocols that it may name.

/// One protocol, as far as the configuration is concerned with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolInfo {
    /// The name in `cage.toml`.
    pub name: &'static str,
    /// Whether every cage has an interface of this protocol, called like it, without naming it.
    pub unnamed: bool,
    /// Whether its interfaces work off the queue of retried calls that is called like them.
    pub has_queue: bool,
}

impl ProtocolInfo {
    /// A protocol whose interfaces are named, and work off no queue.
    pub const fn named(name: &'static str) -> Self {
        Self { name, unnamed: false, has_queue: false }
    }
}

/// A protocol that this program was built without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The name in `cage.toml`.
    pub protocol: &'static str,
    /// The cargo feature of the program that brings it.
    pub feature: &'static str,
}
