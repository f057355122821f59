//! Calls that are made later: checked and written down here for the store, which keeps them until they are done; made here,
//! attempt by attempt, when an interface says so; handed over to the cage that they are for, and taken over from others.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::calls::Served;
use super::{Dispatcher, OperatorCall, contained};
use crate::host_api::Home;
use wasmcage_config::is_name;
use wasmcage_core::admission::EntryKind;
use wasmcage_core::call::Call;
use wasmcage_core::envelope::{self, Message};
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings::Outcome;
use wasmcage_core::request::{
    Attempt, Deadline, Facts, Payload, RequestContext, RequestId, RetriedCall, RetriedOptions,
};
use wasmcage_protocol::Endpoint;
use wasmcage_store::{CallEntry, DEFAULT_QUEUE, ID_BYTES_MAX, NewCall, QueueView, StoredTarget, call_time};

/// Arguments of a retried call.
pub const RETRIED_ARGUMENTS_BYTES_MAX: usize = 16 << 20;
/// A longer id is refused, before its scope is added.
const GIVEN_ID_BYTES_MAX: usize = 256;
/// A longer name of a function is refused.
const FUNCTION_BYTES_MAX: usize = 1 << 10;
/// The function of no module by which a cage hands a call over.
const ACCEPT: &str = "accept-retried-call";

/// What goes beside the call itself when it is handed over.
#[derive(Debug, Serialize, Deserialize)]
struct HandOver {
    id: String,
    queue: String,
    /// Clocks of two machines need not agree.
    expires_in_ms: Option<u64>,
    attempts_max: Option<u32>,
    priority: i8,
}

impl Dispatcher {
    /// What the store is to accept for a call that a module asks for while it works on `request`: names and grants are
    /// checked, the id is given its scope.
    ///
    /// # Errors
    /// `BadRequest`, `NotPermitted`.
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
        let (module, function) = (target.module, target.function);
        self.new_call(Call { context, cage, module, function, arguments, idempotent: false }, &home.cage, options)
    }

    /// What the store is to accept for a call that `origin` asks for.
    fn new_call(&self, call: Call, origin: &str, options: RetriedOptions) -> Result<NewCall, DispatchError> {
        let RetriedOptions { queue, id, expires, not_before, attempts_max, priority } = options;
        let queue = queue.unwrap_or_else(|| DEFAULT_QUEUE.to_owned());
        check_name("queue", &queue)?;
        check_target(&call)?;
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
        // A time that the clock cannot tell is never.
        let after = |time| now.checked_add(time);
        let message = envelope::encode_call(&call)?.into_bytes();
        let cage = Some(call.cage).filter(|cage| **cage != *self.0.cage);
        Ok(NewCall {
            queue,
            id,
            target: StoredTarget { origin: origin.to_owned(), cage, module: call.module, function: call.function },
            message,
            expires: expires.and_then(after),
            not_before: not_before.map(|time| after(time).unwrap_or_else(|| call_time(u64::MAX))),
            attempts_max,
            priority,
        })
    }

    /// Accepts a call, once for its id. It is durable when its id is returned, and made soon.
    ///
    /// # Errors
    /// See the kinds; after `DeadlineExceeded` it may be accepted.
    pub async fn accept_retried(&self, call: NewCall, deadline: Deadline) -> Result<String, DispatchError> {
        Ok(self.services().store.accept_call(call, deadline).await?)
    }

    /// Accepts a call that an operator asks for.
    ///
    /// # Errors
    /// See the kinds.
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

    /// Makes one attempt at a call, or hands it over to the cage that it is for. The caller holds it in its store.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn attempt(
        &self,
        endpoint: &Endpoint,
        queue: &str,
        entry: &CallEntry,
        message: Vec<u8>,
        deadline: Deadline,
    ) -> Result<(), DispatchError> {
        let message = Bytes::from(message);
        let call = decode(message.clone(), &entry.target.origin)?;
        let call = match &entry.target.cage {
            Some(cage) => self.hand_over(queue, entry, call, cage.clone(), &message, deadline)?,
            None => {
                let attempt = Attempt {
                    id: entry.id.clone(),
                    number: entry.attempts,
                    first_started: entry.first_started_ms.map_or_else(SystemTime::now, call_time),
                    expires: entry.expires_ms.map(call_time),
                };
                let context = Arc::new(call.context.retried(&self.0.cage, attempt, deadline));
                Call { context, ..call }
            }
        };
        let mut served = Served::begin(self, endpoint, &call);
        let result = match entry.target.cage.is_some() {
            true => contained(self.call_cage(call)).await,
            false => contained(self.call_later(call, &entry.target.origin)).await,
        };
        served.outcome = Outcome::of(&result);
        result.map(|_| ())
    }

    /// A call of a module of this cage that `origin` has asked for.
    async fn call_later(&self, call: Call, origin: &str) -> Result<Payload, DispatchError> {
        let Call { context, module, function, arguments, .. } = call;
        // What may be called can have changed since.
        self.check_caller(origin, &module, &function)?;
        self.enter_and_call(EntryKind::Outside, context, &module, function, arguments).await
    }

    /// The call by which the other cage is asked to take this one.
    fn hand_over(
        &self,
        queue: &str,
        entry: &CallEntry,
        call: Call,
        cage: String,
        message: &Bytes,
        deadline: Deadline,
    ) -> Result<Call, DispatchError> {
        let left = |at_ms: u64| call_time(at_ms).duration_since(SystemTime::now()).unwrap_or_default();
        let beside = HandOver {
            id: entry.id.clone(),
            queue: queue.to_owned(),
            expires_in_ms: entry.expires_ms.map(|at| u64::try_from(left(at).as_millis()).unwrap_or(u64::MAX)),
            attempts_max: entry.attempts_max,
            priority: entry.priority,
        };
        let beside = serde_json::to_vec(&beside).map_err(|error| DispatchError::Host(error.to_string()))?;
        let arguments = Message { head: beside.into(), body: message.clone() }.into_bytes();
        let (module, function) = (String::new(), ACCEPT.to_owned());
        let context = Arc::new(call.context.with_deadline(deadline));
        // Copies of a cage have stores of their own: to ask another one could have both take it.
        Ok(Call { context, cage, module, function, arguments: Payload::Bytes(arguments.into()), idempotent: false })
    }

    /// Takes over a call of another cage, once for its id. Answers with the id that it has here.
    pub(super) async fn take_over(&self, call: Call) -> Result<Payload, DispatchError> {
        let Payload::Bytes(arguments) = call.arguments else { return Err(malformed("no bytes")) };
        if call.function != ACCEPT {
            return Err(DispatchError::NoSuchFunction(format!("{} of no module", call.function)));
        }
        let caller = call.context.calling_cage();
        let Message { head, body } = Message::from_bytes(arguments).ok_or_else(|| malformed("it is cut short"))?;
        let beside: HandOver = serde_json::from_slice(&head).map_err(malformed)?;
        let inner = decode(body.clone(), caller)?;
        check_target(&inner)?;
        check_id(&beside.id, ID_BYTES_MAX)?;
        check_attempts(beside.attempts_max)?;
        if *inner.cage != *self.0.cage {
            return Err(malformed(format_args!("it is for cage {}", inner.cage)));
        }
        self.check_caller(caller, &inner.module, &inner.function)?;
        // What a host made is unique everywhere; what a module chose, in its own cage.
        let id = match is_fresh(&beside.id) {
            true => beside.id,
            false => format!("{caller}/{}", beside.id),
        };
        check_id(&id, ID_BYTES_MAX)?;
        let queue = if self.works_off(&beside.queue) { beside.queue } else { DEFAULT_QUEUE.to_owned() };
        let expires_in = beside.expires_in_ms.map(std::time::Duration::from_millis);
        let call_here = NewCall {
            queue,
            id,
            target: StoredTarget {
                origin: caller.to_owned(),
                cage: None,
                module: inner.module,
                function: inner.function,
            },
            message: body.into(),
            expires: expires_in.and_then(|time| SystemTime::now().checked_add(time)),
            not_before: None,
            attempts_max: beside.attempts_max,
            priority: beside.priority,
        };
        let id = self.accept_retried(call_here, call.context.deadline).await?;
        Ok(Payload::Json(serde_json::Value::String(id).to_string()))
    }

    /// Whether an interface does.
    fn works_off(&self, queue: &str) -> bool {
        let config = self.0.config.load();
        let interface = config.interfaces.get(queue).filter(|interface| interface.enabled);
        interface.is_some_and(|interface| interface.has_queue)
    }

    /// Tells of calls that are pending in queues that no interface works off: it was renamed or removed from `cage.toml`.
    /// Waits for a store that is being opened.
    pub async fn warn_of_stranded(&self) {
        let store = &self.services().store;
        store.ready().await;
        // A store that cannot be read has been told.
        let queues = store.read_without_blocking(|store| store.call_queues()).await.unwrap_or_default();
        for QueueView { queue, pending, .. } in queues {
            if pending > 0 && !self.works_off(&queue) && store.retried_queues().should_warn_missing(&queue) {
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

    /// A call may wait for an interface that is still to come, or that is misspelt.
    fn warn_of_missing(&self, queue: &str) {
        if !self.works_off(queue) && self.services().store.retried_queues().should_warn_missing(queue) {
            tracing::warn!(
                cage = %self.0.cage,
                queue,
                "a call was put into a queue that no interface works off: it waits until cage.toml has one of that name"
            );
        }
    }
}

/// The arguments of a call that is kept.
///
/// # Errors
/// `BadRequest` when they are damaged.
pub fn retried_arguments(message: Vec<u8>) -> Result<Payload, DispatchError> {
    decode(message.into(), "").map(|call| call.arguments)
}

fn decode(message: Bytes, caller: &str) -> Result<Call, DispatchError> {
    let message = Message::from_bytes(message).ok_or_else(|| malformed("it is cut short"))?;
    envelope::decode_call(message, caller).map_err(malformed)
}

fn malformed(text: impl std::fmt::Display) -> DispatchError {
    DispatchError::BadRequest(format!("malformed retried call: {text}"))
}

fn check_name(what: &str, name: &str) -> Result<(), DispatchError> {
    if is_name(name) {
        return Ok(());
    }
    Err(DispatchError::BadRequest(format!("{name:?} cannot name a {what}")))
}

fn check_target(call: &Call) -> Result<(), DispatchError> {
    check_name("cage", &call.cage)?;
    check_name("module", &call.module)?;
    if (1..=FUNCTION_BYTES_MAX).contains(&call.function.len()) {
        return Ok(());
    }
    Err(DispatchError::BadRequest(format!("the function's name has {} bytes", call.function.len())))
}

/// A call of another cage says it, too.
fn check_attempts(attempts_max: Option<u32>) -> Result<(), DispatchError> {
    match attempts_max {
        Some(0) => Err(DispatchError::BadRequest("a call with no attempt at all".into())),
        _ => Ok(()),
    }
}

fn check_id(id: &str, bytes_max: usize) -> Result<(), DispatchError> {
    if !(1..=bytes_max).contains(&id.len()) || id.chars().any(char::is_control) {
        let text = format!("{id:?} cannot name a call: an id is 1 to {bytes_max} bytes without control characters");
        return Err(DispatchError::BadRequest(text));
    }
    Ok(())
}

/// A name that was given counts within the retried call on whose behalf it was, if any.
fn scoped(context: &RequestContext, id: String) -> Result<String, DispatchError> {
    check_id(&id, GIVEN_ID_BYTES_MAX)?;
    let Some(outer) = context.facts.get(Facts::RETRIED_CALL) else { return Ok(id) };
    let id = format!("{outer}/{id}");
    check_id(&id, ID_BYTES_MAX)?;
    Ok(id)
}

/// `RT-<local time, 14 digits>-<12 hex>`.
fn fresh_id() -> String {
    let id = RequestId::new().to_string();
    format!("RT{}", id.get(2..).unwrap_or_default())
}

/// Whether an id was made by a host, or begins with one that was.
fn is_fresh(id: &str) -> bool {
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
