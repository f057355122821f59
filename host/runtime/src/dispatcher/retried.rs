//! Accepts retried calls: checks the calls that modules and operators ask for, and gives them to the store, which keeps them
//! until they are done. `attempt.rs` makes the attempts.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::{Dispatcher, OperatorCall};
use crate::host_api::Home;
use wasmcage_config::is_name;
use wasmcage_core::call::{Call, CallAction};
use wasmcage_core::envelope::{self, Message};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Deadline, Facts, Payload, RequestContext, RequestId, RetriedCall, RetriedOptions};
use wasmcage_store::{DEFAULT_QUEUE, ID_BYTES_MAX, NewCall, QueueView, StoredTarget, call_time};

/// The greatest size of a retried call's arguments.
pub const RETRIED_ARGUMENTS_BYTES_MAX: usize = 16 << 20;
/// The greatest length of an id that a caller chooses, without its scope.
const GIVEN_ID_BYTES_MAX: usize = 256;
/// The greatest length of a function's name.
const FUNCTION_BYTES_MAX: usize = 1 << 10;

impl Dispatcher {
    /// Makes the retried call that a module asks for while it works on `request`. Checks names and grants, and adds the scope
    /// to the id. The store has not accepted the call yet.
    ///
    /// # Errors
    /// `BadRequest` if a part of the call is invalid, `NotPermitted` if the module may not call that cage.
    pub fn new_retried_call(
        &self,
        home: &Home,
        request: &RequestContext,
        call: RetriedCall,
    ) -> Result<NewCall, DispatchError> {
        let RetriedCall { target, arguments, options } = call;
        if let Some(cage) = target.cage.as_ref().filter(|cage| **cage != *home.cage) {
            self.check_grant(home, cage)?;
        }
        let context = Arc::new(request.for_call(&home.cage, &home.module, None));
        let cage = target.cage.unwrap_or_else(|| home.cage.to_string());
        let action = CallAction::Run { module: target.module, function: target.function };
        self.new_call(Call { context, cage, action, arguments, idempotent: false }, &home.cage, options)
    }

    /// Checks a retried call that `origin`, a cage or the command line, asks for, and makes it ready for the store.
    fn new_call(&self, call: Call, origin: &str, options: RetriedOptions) -> Result<NewCall, DispatchError> {
        let RetriedOptions { queue, id, expires, not_before, attempts_max, priority } = options;
        let queue = queue.unwrap_or_else(|| DEFAULT_QUEUE.to_owned());
        check_name("queue", &queue)?;
        let (module, function) = function_of(call.action.clone())?;
        check_target(&call.cage, &module, &function)?;
        check_attempts(attempts_max)?;
        let bytes = envelope::body_bytes(&call.arguments);
        if bytes > RETRIED_ARGUMENTS_BYTES_MAX {
            let text = format!("{bytes} bytes of arguments, more than {RETRIED_ARGUMENTS_BYTES_MAX}");
            return Err(DispatchError::BadRequest(text));
        }
        let id = match id {
            Some(id) => scoped(&call.context, id)?,
            None => fresh_id(),
        };
        self.warn_of_missing(&queue);
        let now = SystemTime::now();
        // A time that `SystemTime` cannot represent counts as never.
        let after = |time| now.checked_add(time);
        let message = envelope::encode_call(&call)?.into_bytes();
        let cage = Some(call.cage).filter(|cage| **cage != *self.0.cage);
        Ok(NewCall {
            queue,
            id,
            target: StoredTarget { origin: origin.to_owned(), cage, module, function },
            message,
            expires: expires.and_then(after),
            not_before: not_before.map(|time| after(time).unwrap_or_else(|| call_time(u64::MAX))),
            attempts_max,
            priority,
        })
    }

    /// Accepts a call, once for each id. The call is durable when its id is returned.
    ///
    /// # Errors
    /// See the variants of `DispatchError`. After `DeadlineExceeded` the call may have been accepted.
    pub async fn accept_retried(&self, call: NewCall, deadline: Deadline) -> Result<String, DispatchError> {
        Ok(self.services().store.accept_call(call, deadline).await?)
    }

    /// Accepts a call that an operator asks for.
    ///
    /// # Errors
    /// See the variants of `DispatchError`.
    pub async fn retry_for_operator(
        &self,
        call: OperatorCall,
        options: RetriedOptions,
    ) -> Result<String, DispatchError> {
        let deadline = Deadline::after(call.timeout);
        let call = self.operators(call);
        let origin = call.context.calling_cage().to_owned();
        let call = self.new_call(call, &origin, options)?;
        self.accept_retried(call, deadline).await
    }

    /// Returns whether an enabled interface makes the calls of the queue.
    pub(super) fn serves_queue(&self, queue: &str) -> bool {
        let config = self.0.config.load();
        let interface = config.interfaces.get(queue).filter(|interface| interface.enabled);
        interface.is_some_and(|interface| interface.serves_queue)
    }

    /// Warns of calls that are pending in queues without an interface, which may have been renamed or removed in `cage.toml`.
    /// Waits for a store that is being opened.
    pub async fn warn_of_stranded(&self) {
        let store = &self.services().store;
        store.ready().await;
        // The store itself has logged that it cannot be read.
        let queues = store.read_without_blocking(|store| store.call_queues()).await.unwrap_or_default();
        for QueueView { queue, pending, .. } in queues {
            if pending > 0 && !self.serves_queue(&queue) && store.retried_queues().should_warn_missing(&queue) {
                tracing::warn!(
                    cage = %self.0.cage,
                    queue,
                    pending,
                    "calls wait in a queue that no interface works off: let cage.toml have one of that name, or move them to \
                     another queue with `wasmcage retry move`"
                );
            }
        }
    }

    /// Warns of a queue without an interface. The call is accepted, since the interface may be added later, but the queue's
    /// name may be misspelt.
    fn warn_of_missing(&self, queue: &str) {
        if !self.serves_queue(queue) && self.services().store.retried_queues().should_warn_missing(queue) {
            tracing::warn!(
                cage = %self.0.cage,
                queue,
                "a call was put into a queue that no interface works off: it waits until cage.toml has one of that name"
            );
        }
    }
}

/// Returns the arguments of a stored call.
///
/// # Errors
/// `BadRequest` when they are damaged.
pub fn retried_arguments(message: Vec<u8>) -> Result<Payload, DispatchError> {
    decode(message.into(), "").map(|call| call.arguments)
}

pub(super) fn decode(message: Bytes, caller: &str) -> Result<Call, DispatchError> {
    let message = Message::from_bytes(message).ok_or_else(|| malformed("it is cut short"))?;
    envelope::decode_call(message, caller).map_err(malformed)
}

pub(super) fn malformed(text: impl std::fmt::Display) -> DispatchError {
    DispatchError::BadRequest(format!("malformed retried call: {text}"))
}

fn check_name(what: &str, name: &str) -> Result<(), DispatchError> {
    if is_name(name) {
        return Ok(());
    }
    Err(DispatchError::BadRequest(format!("{name:?} cannot name a {what}")))
}

pub(super) fn check_target(cage: &str, module: &str, function: &str) -> Result<(), DispatchError> {
    check_name("cage", cage)?;
    check_name("module", module)?;
    if (1..=FUNCTION_BYTES_MAX).contains(&function.len()) {
        return Ok(());
    }
    Err(DispatchError::BadRequest(format!("the function's name has {} bytes", function.len())))
}

/// Returns the module and the function that a retried call runs.
///
/// # Errors
/// `BadRequest` if the call runs no function, such as one that hands over a retried call.
pub(super) fn function_of(action: CallAction) -> Result<(String, String), DispatchError> {
    match action {
        CallAction::Run { module, function } => Ok((module, function)),
        CallAction::AcceptRetried => Err(malformed("it names no function")),
    }
}

/// Checks the number of attempts of a call, which may come from another cage.
pub(super) fn check_attempts(attempts_max: Option<u32>) -> Result<(), DispatchError> {
    match attempts_max {
        Some(0) => Err(DispatchError::BadRequest("a call with no attempt at all".into())),
        _ => Ok(()),
    }
}

pub(super) fn check_id(id: &str, bytes_max: usize) -> Result<(), DispatchError> {
    if !(1..=bytes_max).contains(&id.len()) || id.chars().any(char::is_control) {
        let text = format!("{id:?} cannot name a call: an id is 1 to {bytes_max} bytes without control characters");
        return Err(DispatchError::BadRequest(text));
    }
    Ok(())
}

/// Returns an id with its scope: an id that was chosen during a retried call is unique within that call only.
fn scoped(context: &RequestContext, id: String) -> Result<String, DispatchError> {
    check_id(&id, GIVEN_ID_BYTES_MAX)?;
    let Some(outer) = context.facts.get(Facts::RETRIED_CALL) else { return Ok(id) };
    let id = format!("{outer}/{id}");
    check_id(&id, ID_BYTES_MAX)?;
    Ok(id)
}

/// Makes a new id, of the form `RT-<local time, 14 digits>-<12 hex>`.
fn fresh_id() -> String {
    let id = RequestId::new().to_string();
    format!("RT{}", id.get(2..).unwrap_or_default())
}

/// Returns whether an id has the form of one that a host has made, or begins with such an id.
pub(super) fn is_fresh(id: &str) -> bool {
    let own = id.split('/').next().unwrap_or_default();
    let Some((digits, hex)) = own.strip_prefix("RT-").and_then(|rest| rest.split_once('-')) else { return false };
    digits.len() == 14
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && hex.len() == 12
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_made_by_hosts_are_known() {
        let fresh = fresh_id();
        assert!(is_fresh(&fresh) && is_fresh(&format!("{fresh}/step")), "{fresh}");
        for given in ["", "RT-1-2", "order-7", "RT-20261121000000-00000000000G", "x/RT-20261121000000-000000000000"] {
            assert!(!is_fresh(given), "{given}");
        }
    }
}
