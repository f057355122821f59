//! This module's durable data: keys and queues. When a function returns, its writes are on the disk.
//!
//! ```no_run
//! # use wasmcage_guest::{Result, state};
//! # fn f() -> Result<()> {
//! let visits = state::increment("visits", 1)?;
//! state::set("customer/7", &("Alice", visits))?;
//! let customer: Option<(String, i64)> = state::get("customer/7")?;
//! state::queue("mail").push(&"Welcome, Alice !")?;
//! # Ok(()) }
//! ```
//!
//! Values are anything that serde can convert to JSON; functions with `bytes` in their names store bytes. Other modules have
//! their own data, and so have copies of the cage in other processes.

mod error;
mod queue;
mod scan;
mod transaction;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::error::StateError;
pub use self::queue::{Queue, queue};
pub use self::scan::{Entries, Scan, scan};
pub use self::transaction::{Outcomes, Pending, Transaction, transaction};
use crate::bindings::imports::wasmcage::cage::state;
use crate::bindings::imports::wasmcage::cage::types::Payload;

/// Returns the value of a key; none when the key does not exist.
///
/// # Errors
/// [`StateError::BadValue`] when the value cannot be converted to `T`; see the other kinds.
pub fn get<T: DeserializeOwned>(key: &str) -> Result<Option<T>, StateError> {
    get_raw(key)?.map(|value| from_payload(key, value)).transpose()
}

/// Returns the bytes of a key's value; for a JSON value, its text.
///
/// # Errors
/// See the kinds.
pub fn get_bytes(key: &str) -> Result<Option<Vec<u8>>, StateError> {
    Ok(get_raw(key)?.map(bytes_of))
}

/// Returns the value of a key, unconverted.
///
/// # Errors
/// See the kinds.
pub fn get_raw(key: &str) -> Result<Option<Payload>, StateError> {
    Ok(state::get(key)?)
}

/// Sets a key. The value is durable when this returns.
///
/// # Errors
/// See the kinds.
pub fn set<T: Serialize + ?Sized>(key: &str, value: &T) -> Result<(), StateError> {
    set_raw(key, &to_payload(value)?)
}

/// Sets a key to bytes.
///
/// # Errors
/// See the kinds.
pub fn set_bytes(key: &str, value: impl Into<Vec<u8>>) -> Result<(), StateError> {
    set_raw(key, &Payload::Bytes(value.into()))
}

/// Sets a key to a value as it is.
///
/// # Errors
/// See the kinds.
pub fn set_raw(key: &str, value: &Payload) -> Result<(), StateError> {
    Ok(state::set(key, value)?)
}

/// Removes a key. Returns whether it existed.
///
/// # Errors
/// See the kinds.
pub fn delete(key: &str) -> Result<bool, StateError> {
    Ok(state::delete(key)?)
}

/// Adds to a number, which is 0 if the key does not exist, and returns the sum.
///
/// # Errors
/// [`StateError::Invalid`] when the value is no integer, or the sum does not fit in 64 bits; see the other kinds.
pub fn increment(key: &str, by: i64) -> Result<i64, StateError> {
    Ok(state::increment(key, by)?)
}

/// Replaces the value if it is the expected one. Returns whether it was replaced. `None` stands for a key that does not exist,
/// for both values.
///
/// ```no_run
/// # use wasmcage_guest::{Result, state};
/// # fn f() -> Result<()> {
/// let is_leader = state::compare_and_set("leader", None, Some("me"))?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// See the kinds.
pub fn compare_and_set<T: Serialize + ?Sized>(
    key: &str,
    expected: Option<&T>,
    value: Option<&T>,
) -> Result<bool, StateError> {
    let expected = expected.map(to_payload).transpose()?;
    let value = value.map(to_payload).transpose()?;
    compare_and_set_raw(key, expected.as_ref(), value.as_ref())
}

/// As [`compare_and_set`], with unconverted values.
///
/// # Errors
/// See the kinds.
pub fn compare_and_set_raw(key: &str, expected: Option<&Payload>, value: Option<&Payload>) -> Result<bool, StateError> {
    Ok(state::compare_and_set(key, expected, value)?)
}

/// Reads a value, changes it by `change`, and writes it back. This is repeated if another request has changed it meanwhile.
/// `None` stands for a key that does not exist. Returns the value that was written.
///
/// ```no_run
/// # use wasmcage_guest::{Result, state};
/// # fn f() -> Result<()> {
/// state::update("names", |names: Option<Vec<String>>| {
///     let mut names = names.unwrap_or_default();
///     names.push("Bob".into());
///     Some(names)
/// })?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// See the kinds.
pub fn update<T: Serialize + DeserializeOwned>(
    key: &str,
    change: impl Fn(Option<T>) -> Option<T>,
) -> Result<Option<T>, StateError> {
    // The host ends this at the request's deadline at the latest.
    loop {
        let old = get_raw(key)?;
        let new = change(old.clone().map(|value| from_payload(key, value)).transpose()?);
        if compare_and_set_raw(key, old.as_ref(), new.as_ref().map(to_payload).transpose()?.as_ref())? {
            return Ok(new);
        }
    }
}

fn to_payload<T: Serialize + ?Sized>(value: &T) -> Result<Payload, StateError> {
    let json = serde_json::to_string(value);
    json.map(Payload::Json).map_err(|error| StateError::BadValue(format!("it has no JSON: {error}")))
}

fn from_payload<T: DeserializeOwned>(name: &str, value: Payload) -> Result<T, StateError> {
    match value {
        Payload::Json(json) => {
            serde_json::from_str(&json).map_err(|error| StateError::BadValue(format!("{name}: {error}")))
        }
        Payload::Bytes(_) => Err(StateError::BadValue(format!("{name}: bytes are kept where JSON was expected"))),
    }
}

fn bytes_of(value: Payload) -> Vec<u8> {
    match value {
        Payload::Json(json) => json.into_bytes(),
        Payload::Bytes(bytes) => bytes,
    }
}
