//! What command `call` of the control socket takes and answers. Written by `wasmcage call`, read by the secondary, and the
//! other way round; one answer, or with `all` a list of `CopyAnswer`.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Payload, RetriedOptions};
use wasmcage_runtime::dispatcher::OperatorCall;

use super::{CONTENT_BYTES_MAX, Refusal, Reply};

/// The arguments of the command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CallRequest {
    /// Another cage than the one that is asked is called as that one.
    pub cage: String,
    pub module: String,
    pub function: String,
    pub arguments: Content,
    pub timeout_ms: u64,
    pub idempotent: bool,
    /// Every copy of the cage that is known.
    pub all: bool,
    /// Made later, until it succeeds; none: now.
    #[serde(default)]
    pub retried: Option<Retried>,
}

/// How a call is made later.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retried {
    pub id: Option<String>,
    pub queue: Option<String>,
    pub expires_ms: Option<u64>,
}

impl From<Retried> for RetriedOptions {
    fn from(Retried { id, queue, expires_ms }: Retried) -> Self {
        Self { id, queue, expires: expires_ms.map(Duration::from_millis), ..Self::default() }
    }
}

/// Arguments or a result.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Content {
    /// As text, so that it arrives digit by digit as it was.
    Json(String),
    /// Anything else.
    Base64(String),
}

/// What one copy answered.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CopyAnswer {
    pub copy: String,
    pub result: Reply<Content>,
}

impl CallRequest {
    /// # Errors
    /// Arguments that cannot be read.
    pub(crate) fn into_call(self) -> Result<OperatorCall, Refusal> {
        let Self { cage, module, function, arguments, timeout_ms, idempotent, all: _, retried: _ } = self;
        let arguments = arguments.payload().map_err(|error| Refusal::new("bad-request", error))?;
        let timeout = Duration::from_millis(timeout_ms);
        Ok(OperatorCall { cage, module, function, arguments, timeout, idempotent })
    }
}

/// What is answered to a call.
///
/// # Errors
/// A result that cannot be carried.
pub(crate) fn answer_one(result: Payload) -> Result<Value, Refusal> {
    value(&Content::of(result, &mut { CONTENT_BYTES_MAX })?)
}

/// What is answered to a call that is made later.
///
/// # Errors
/// None that depends on the id.
pub(crate) fn answer_id(id: String) -> Result<Value, Refusal> {
    value(&Content::Json(Value::String(id).to_string()))
}

/// What is answered to a call of every copy.
///
/// # Errors
/// None that depends on the results.
pub(crate) fn answer_all(results: Vec<(String, Result<Payload, DispatchError>)>) -> Result<Value, Refusal> {
    let mut room = CONTENT_BYTES_MAX;
    let answers = results.into_iter().map(|(copy, result)| {
        let result = match result.map_err(Refusal::from).and_then(|payload| Content::of(payload, &mut room)) {
            Ok(content) => Reply::Ok(content),
            Err(refusal) => Reply::Error(refusal),
        };
        CopyAnswer { copy, result }
    });
    value(&answers.collect::<Vec<_>>())
}

fn value(answer: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(answer).map_err(|error| Refusal::new("host-error", error))
}

impl Content {
    pub(crate) fn bytes(bytes: &[u8]) -> Self {
        Self::Base64(STANDARD.encode(bytes))
    }

    /// # Errors
    /// More than the socket carries; `room` is what is left of that, and gets less.
    pub(crate) fn of(payload: Payload, room: &mut usize) -> Result<Self, Refusal> {
        let bytes = match &payload {
            Payload::Json(json) => json.len(),
            Payload::Bytes(bytes) => bytes.len(),
            // Only a peer that does not keep to the rules answers a call by name with them.
            Payload::Values(_) => {
                return Err(Refusal { code: "failed".into(), text: "the answer is of component values".into() });
            }
        };
        *room = room.checked_sub(bytes).ok_or_else(|| Refusal {
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

    /// # Errors
    /// What makes it no base64.
    pub(crate) fn payload(self) -> Result<Payload, base64::DecodeError> {
        Ok(match self {
            Self::Json(json) => Payload::Json(json),
            Self::Base64(text) => Payload::Bytes(STANDARD.decode(text)?.into()),
        })
    }
}

impl From<DispatchError> for Refusal {
    fn from(error: DispatchError) -> Self {
        Self::new(error.code(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_carried_as_they_were() {
        let check = |payload: Payload, line: &str| {
            let content = Content::of(payload.clone(), &mut 100).unwrap();
            assert_eq!(serde_json::to_string(&content).unwrap(), line);
            let back: Content = serde_json::from_str(line).unwrap();
            assert_eq!(back.payload().unwrap(), payload);
        };
        check(Payload::Json("18446744073709551616.10".into()), r#"{"json":"18446744073709551616.10"}"#);
        check(Payload::Bytes(vec![0, 255].into()), r#"{"base64":"AP8="}"#);
        assert!(Content::Base64("no base64".into()).payload().is_err());
    }

    #[test]
    fn what_cannot_be_carried_is_refused() {
        let mut room = 10;
        Content::of(Payload::Json("123456".into()), &mut room).unwrap();
        let refusal = Content::of(Payload::Json("12345".into()), &mut room).unwrap_err();
        assert!(refusal.text.contains("5 bytes"), "{}", refusal.text);
    }
}
