//! Arguments and answer of the control command `call`, exchanged by `wasmcage call` and the secondary. The answer is an
//! `EncodedPayload`, or with `all` a list of `CopyAnswer`.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Payload, RetriedOptions};
use wasmcage_runtime::dispatcher::OperatorCall;

use super::{CONTENT_BYTES_MAX, CommandRefusal, CommandResult};

/// The arguments of the command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CallRequest {
    /// The cage to call. If it is another one, it is called in the name of the cage that serves this socket.
    pub cage: String,
    pub module: String,
    pub function: String,
    pub arguments: EncodedPayload,
    pub timeout_ms: u64,
    pub idempotent: bool,
    /// Calls every known copy of the cage.
    pub all: bool,
    /// Has the call made later and retried until it succeeds; without it, the call is made now.
    #[serde(default)]
    pub retried: Option<RetryOptions>,
}

/// Options of a call that is made later.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetryOptions {
    pub id: Option<String>,
    pub queue: Option<String>,
    pub expires_ms: Option<u64>,
}

impl From<RetryOptions> for RetriedOptions {
    fn from(RetryOptions { id, queue, expires_ms }: RetryOptions) -> Self {
        Self { id, queue, expires: expires_ms.map(Duration::from_millis), ..Self::default() }
    }
}

/// Arguments or a result, encoded for a line of JSON.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncodedPayload {
    /// JSON as text, so that numbers keep all their digits.
    Json(String),
    /// Bytes.
    Base64(String),
}

/// The answer of one copy.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CopyAnswer {
    pub copy: String,
    pub result: CommandResult<EncodedPayload>,
}

impl CallRequest {
    /// Decodes the arguments.
    ///
    /// # Errors
    /// The arguments are invalid base64.
    pub(crate) fn into_call(self) -> Result<OperatorCall, CommandRefusal> {
        let Self { cage, module, function, arguments, timeout_ms, idempotent, all: _, retried: _ } = self;
        let arguments = arguments.payload().map_err(|error| CommandRefusal::new("bad-request", error))?;
        let timeout = Duration::from_millis(timeout_ms);
        Ok(OperatorCall { cage, module, function, arguments, timeout, idempotent })
    }
}

/// Encodes the answer to a call.
///
/// # Errors
/// The result is too long for the socket.
pub(crate) fn answer_one(result: Payload) -> Result<Value, CommandRefusal> {
    value(&EncodedPayload::of(result, &mut { CONTENT_BYTES_MAX })?)
}

/// Encodes the answer to a call that is made later: its id.
///
/// # Errors
/// None that depends on the id.
pub(crate) fn answer_id(id: String) -> Result<Value, CommandRefusal> {
    value(&EncodedPayload::Json(Value::String(id).to_string()))
}

/// Encodes the answer to a call of every copy.
///
/// # Errors
/// None that depends on the results.
pub(crate) fn answer_all(results: Vec<(String, Result<Payload, DispatchError>)>) -> Result<Value, CommandRefusal> {
    let mut room = CONTENT_BYTES_MAX;
    let answers = results.into_iter().map(|(copy, result)| {
        let result =
            match result.map_err(CommandRefusal::from).and_then(|payload| EncodedPayload::of(payload, &mut room)) {
                Ok(content) => CommandResult::Ok(content),
                Err(refusal) => CommandResult::Error(refusal),
            };
        CopyAnswer { copy, result }
    });
    value(&answers.collect::<Vec<_>>())
}

fn value(answer: &impl Serialize) -> Result<Value, CommandRefusal> {
    serde_json::to_value(answer).map_err(|error| CommandRefusal::new("host-error", error))
}

impl EncodedPayload {
    pub(crate) fn bytes(bytes: &[u8]) -> Self {
        Self::Base64(STANDARD.encode(bytes))
    }

    /// Encodes a payload. `room` is the number of bytes that the answer still has room for, and is reduced.
    ///
    /// # Errors
    /// The payload is longer than `room`.
    pub(crate) fn of(payload: Payload, room: &mut usize) -> Result<Self, CommandRefusal> {
        let bytes = match &payload {
            Payload::Json(json) => json.len(),
            Payload::Bytes(bytes) => bytes.len(),
            // Only a peer that breaks the protocol answers a call by name with values.
            Payload::Values(_) => {
                return Err(CommandRefusal { code: "failed".into(), text: "the answer has component values".into() });
            }
        };
        *room = room.checked_sub(bytes).ok_or_else(|| CommandRefusal {
            code: "failed".into(),
            text: format!(
                "a result of {bytes} bytes, where {CONTENT_BYTES_MAX} in all can be carried; the function has run"
            ),
        })?;
        Ok(match payload {
            Payload::Json(json) => Self::Json(json),
            Payload::Bytes(bytes) => Self::bytes(&bytes),
            Payload::Values(values) => Self::bytes(&values.bytes()),
        })
    }

    /// Decodes the payload.
    ///
    /// # Errors
    /// The text is invalid base64.
    pub(crate) fn payload(self) -> Result<Payload, base64::DecodeError> {
        Ok(match self {
            Self::Json(json) => Payload::Json(json),
            Self::Base64(text) => Payload::Bytes(STANDARD.decode(text)?.into()),
        })
    }
}

impl From<DispatchError> for CommandRefusal {
    fn from(error: DispatchError) -> Self {
        Self::new(error.code(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_the_same_after_encoding_and_decoding() {
        let check = |payload: Payload, line: &str| {
            let content = EncodedPayload::of(payload.clone(), &mut 100).unwrap();
            assert_eq!(serde_json::to_string(&content).unwrap(), line);
            let back: EncodedPayload = serde_json::from_str(line).unwrap();
            assert_eq!(back.payload().unwrap(), payload);
        };
        check(Payload::Json("18446744073709551616.10".into()), r#"{"json":"18446744073709551616.10"}"#);
        check(Payload::Bytes(vec![0, 255].into()), r#"{"base64":"AP8="}"#);
        assert!(EncodedPayload::Base64("no base64".into()).payload().is_err());
    }

    #[test]
    fn payloads_that_are_too_long_are_refused() {
        let mut room = 10;
        EncodedPayload::of(Payload::Json("123456".into()), &mut room).unwrap();
        let refusal = EncodedPayload::of(Payload::Json("12345".into()), &mut room).unwrap_err();
        assert!(refusal.text.contains("5 bytes"), "{}", refusal.text);
    }
}
