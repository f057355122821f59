//! The protocol without any input or output: bytes in, messages out, and the other way.
//!
//! [`Connection`] is one connection's whole state. `greeting.rs`, `frame.rs` and `command.rs` know one layer each of what is
//! on the wire, `write.rs` collects what is to be written. Nothing here allocates by a length that a peer merely announces.

mod command;
mod connection;
mod error;
mod frame;
mod greeting;
mod write;

#[cfg(test)]
mod tests;

pub use command::{Command, Metadata, PingContext};
pub(crate) use command::{put_frame as put_command, put_short};
pub use connection::{Connection, ConnectionConfig, Peer, Received};
pub use error::ProtocolError;
pub use frame::{Flags, FrameHeader};
pub use greeting::{GREETING_BYTES, Greeting, MechanismName};
pub use write::WriteBuffer;
