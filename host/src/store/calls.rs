//! Retried calls: accepted once, in the order of their time and priority, until each is done, refused or given up.

use std::time::SystemTime;

use super::{StoreError, Writer};

/// A call that is to be accepted. Made by `Dispatcher::new_retried_call`, which checks names and grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCall {
    pub queue: String,
    /// The one given, with its scope, or a new one.
    pub id: String,
    pub call: CallRecord,
    pub expires: Option<SystemTime>,
    pub not_before: Option<SystemTime>,
    pub attempts_max: Option<u32>,
    pub priority: i8,
}

/// What is called, and on whose behalf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord {
    /// None: the cage of the store.
    pub cage: Option<String>,
    pub module: String,
    pub function: String,
    /// As `rpc` writes a call: context, arguments.
    pub message: Vec<u8>,
}

/// Accepts a call, once for its id. Returns the id that it has, or had when it was accepted before.
///
/// # Errors
/// The store's.
#[expect(dead_code, reason = "the steps of a transaction come to use it")]
pub(super) fn accept(_writer: &mut Writer<'_>, call: &NewCall) -> Result<String, StoreError> {
    Ok(call.id.clone())
}
