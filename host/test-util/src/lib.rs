//! For the tests of protocols: runs one interface without a cage, a guest, or another interface, and tests whether it keeps the
//! contract of `host/protocol/README.md`.

// A test ends with a panic when something is not as it should be.
#![allow(clippy::unwrap_used, reason = "the whole crate is test code")]

pub mod contract;
mod dispatch;
mod host;

pub use self::dispatch::{Behaviour, TestDispatch};
pub use self::host::{TestHost, TestInterface};
