//! Makes the attempts at retried calls in the cage's store. A call to a module of this cage is made; a call to another cage is
//! handed over to that cage, which then stores and makes it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::in_flight::InFlight;
use super::retried::{check_attempts, check_id, check_target, decode, function_of, is_fresh, malformed};
use super::{Dispatcher, contained};
use wasmcage_core::admission::EntryKind;
use wasmcage_core::call::{Call, CallAction};
use wasmcage_core::envelope::Message;
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings::Outcome;
use wasmcage_core::request::{Attempt, Deadline, Payload, RequestContext};
use wasmcage_protocol::Endpoint;
use wasmcage_store::{CallEntry, DEFAULT_QUEUE, ID_BYTES_MAX, NewCall, StoredTarget, call_time};

/// The properties of a retried call that are sent with it when it is handed over.
#[derive(Debug, Serialize, Deserialize)]
struct HandOver {
    id: String,
    queue: String,
    /// The time left until the call expires. It is relative because the clocks of two machines may differ.
    expires_in_ms: Option<u64>,
    attempts_max: Option<u32>,
    priority: i8,
}

impl Dispatcher {
    /// Makes one attempt at a call, or hands it over to the cage that it is for. The caller keeps it in its store meanwhile.
    ///
    /// # Errors
    /// See the variants of `DispatchError`.
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
        let in_flight = InFlight::call(self, endpoint, &call.context, || call.action.clone());
        let result = match entry.target.cage.is_some() {
            true => contained(self.call_cage(call)).await,
            false => contained(self.call_later(call, &entry.target.origin)).await,
        };
        in_flight.finish(Outcome::of(&result));
        result.map(|_| ())
    }

    /// Calls a module of this cage for the cage that has asked for the retried call.
    async fn call_later(&self, call: Call, origin: &str) -> Result<Payload, DispatchError> {
        let Call { context, action, arguments, .. } = call;
        let (module, function) = function_of(action)?;
        // The permissions may have changed since the call was accepted.
        self.check_caller(origin, &module, &function)?;
        self.enter_and_call(EntryKind::Outside, context, &module, function, arguments).await
    }

    /// Returns the call that asks the other cage to take over this one.
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
        let context = Arc::new(call.context.with_deadline(deadline));
        let (action, arguments) = (CallAction::AcceptRetried, Payload::Bytes(arguments.into()));
        // It is not idempotent: each copy of a cage has its own store, so if a second copy were asked, both might take the
        // call.
        Ok(Call { context, cage, action, arguments, idempotent: false })
    }

    /// Accepts a retried call that another cage hands over, once for each id. Returns the id that it has here.
    pub(super) async fn take_over(
        &self,
        context: &RequestContext,
        arguments: Payload,
    ) -> Result<Payload, DispatchError> {
        let Payload::Bytes(arguments) = arguments else { return Err(malformed("no bytes")) };
        let caller = context.calling_cage();
        let Message { head, body } = Message::from_bytes(arguments).ok_or_else(|| malformed("it is cut short"))?;
        let beside: HandOver = serde_json::from_slice(&head).map_err(malformed)?;
        let inner = decode(body.clone(), caller)?;
        let Call { cage, action, .. } = inner;
        let (module, function) = function_of(action)?;
        check_target(&cage, &module, &function)?;
        check_id(&beside.id, ID_BYTES_MAX)?;
        check_attempts(beside.attempts_max)?;
        if *cage != *self.0.cage {
            return Err(malformed(format_args!("it is for cage {cage}")));
        }
        self.check_caller(caller, &module, &function)?;
        // An id that a host made is unique everywhere, one that a module chose only in its own cage.
        let id = match is_fresh(&beside.id) {
            true => beside.id,
            false => format!("{caller}/{}", beside.id),
        };
        check_id(&id, ID_BYTES_MAX)?;
        let queue = if self.serves_queue(&beside.queue) { beside.queue } else { DEFAULT_QUEUE.to_owned() };
        let expires_in = beside.expires_in_ms.map(Duration::from_millis);
        let call_here = NewCall {
            queue,
            id,
            target: StoredTarget { origin: caller.to_owned(), cage: None, module, function },
            message: body.into(),
            expires: expires_in.and_then(|time| SystemTime::now().checked_add(time)),
            not_before: None,
            attempts_max: beside.attempts_max,
            priority: beside.priority,
        };
        let id = self.accept_retried(call_here, context.deadline).await?;
        Ok(Payload::Json(serde_json::Value::String(id).to_string()))
    }
}
