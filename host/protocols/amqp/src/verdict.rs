//! The verdict on a delivery: which acknowledgement the broker gets, and what the requester of an RPC is answered.
//! Every outcome of a request is mapped here and nowhere else.

use lapin::message::Delivery;
use lapin::types::AMQPValue;

use super::message::ReplyContent;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::RequestContext;

/// How a delivery is settled. If several handlers got the message, the last of their verdicts in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DeliveryVerdict {
    Ack,
    /// The broker dead-letters the message, or drops it if its queue has no dead-letter exchange.
    Reject,
    /// The message goes back to its queue and has used one of its attempts.
    Requeue,
    /// The message goes back to its queue because of a fault that is not its own. RabbitMQ 3 counts this towards the
    /// queue's delivery limit all the same.
    Return,
}

impl DeliveryVerdict {
    /// The verdict on a message whose handling failed. `may_retry`: the message has attempts left.
    pub(super) fn on_error(error: &DispatchError, may_retry: bool) -> Self {
        match error {
            DispatchError::BadRequest(_)
            | DispatchError::NoSuchCage(_)
            | DispatchError::NotPermitted(_)
            | DispatchError::Refused(_) => Self::Reject,
            DispatchError::Failed(_)
            | DispatchError::Trap(_)
            | DispatchError::DeadlineExceeded(_)
            | DispatchError::Lost(_) => match may_retry {
                true => Self::Requeue,
                false => Self::Reject,
            },
            // The configuration names module and function, not the sender: either may still be deployed.
            DispatchError::NoSuchModule(_)
            | DispatchError::NoSuchFunction(_)
            | DispatchError::Unreachable(_)
            | DispatchError::Overloaded(_)
            | DispatchError::Draining
            | DispatchError::Host(_) => Self::Return,
        }
    }
}

/// The reply to an RPC that failed, or none if the request goes back to its queue and a later attempt will answer it.
pub(super) fn error_reply(error: &DispatchError, context: &RequestContext) -> Option<ReplyContent> {
    let text = format!("{} ({})", error.public_text(), context.id);
    match error {
        DispatchError::Refused(_) | DispatchError::BadRequest(_) => Some(ReplyContent::Error(text)),
        DispatchError::NoSuchCage(_)
        | DispatchError::NotPermitted(_)
        | DispatchError::Failed(_)
        | DispatchError::Trap(_)
        | DispatchError::DeadlineExceeded(_)
        | DispatchError::Lost(_)
        | DispatchError::Host(_) => Some(ReplyContent::Exception { name: error.code().into(), text }),
        DispatchError::NoSuchModule(_)
        | DispatchError::NoSuchFunction(_)
        | DispatchError::Unreachable(_)
        | DispatchError::Overloaded(_)
        | DispatchError::Draining => None,
    }
}

/// The number of this attempt, from 1. Quorum queues count deliveries; of other queues only one earlier delivery is
/// known.
pub(super) fn attempt(delivery: &Delivery) -> u64 {
    let headers = delivery.properties.headers().as_ref();
    let counted = headers.and_then(|headers| headers.inner().get("x-delivery-count")).and_then(|count| match count {
        AMQPValue::LongLongInt(count) => u64::try_from(*count).ok(),
        AMQPValue::LongInt(count) => u64::try_from(*count).ok(),
        AMQPValue::LongUInt(count) => Some((*count).into()),
        AMQPValue::ShortShortUInt(count) => Some((*count).into()),
        _ => None,
    });
    counted.unwrap_or_else(|| delivery.redelivered.into()).saturating_add(1)
}
