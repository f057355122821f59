//! What a module answers to an rpc of format "postage". A function returns any JSON value, which is the reply's; or, where it has
//! more to say, an object with the one key `wasmcage:reply`, which the SDK's `RpcReply` writes: an error or an exception in the
//! module's own words, a text beside the value, and a function that goes on when the reply is sent.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::handlers::Function;
use super::message::Outcome;
use wasmcage_core::request::Reply;

/// The one key of such an object.
const REPLY: &str = "wasmcage:reply";
/// A reply's header that names the exception of a reply with a status of 500 or more.
const EXCEPTION_HEADER: &str = "exception";
/// A reply's header with the text that goes with a value.
const MESSAGE_HEADER: &str = "message";

/// A reply, and what is done after it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    /// Called with this argument once the reply is at the broker; the request is acknowledged after that.
    pub(super) then: Option<(Function, Value)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default)]
    value: Value,
    #[serde(default)]
    message: String,
    then: Option<Then>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Success,
    Error,
    Exception,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Then {
    function: String,
    #[serde(default)]
    argument: Value,
}

impl Answer {
    pub(super) fn plain(outcome: Outcome) -> Self {
        Self { outcome, then: None }
    }

    /// Of what a function returned.
    ///
    /// # Errors
    /// It has the key, and what is beneath it cannot be understood.
    pub(super) fn read(value: Value) -> Result<Self, String> {
        match value {
            Value::Object(mut object) if object.len() == 1 && object.contains_key(REPLY) => Self::written(&mut object),
            value => Ok(Self::plain(Outcome::success(value))),
        }
    }

    fn written(object: &mut Map<String, Value>) -> Result<Self, String> {
        let written = object.remove(REPLY).unwrap_or_default();
        let Written { kind, value, message: text, then } =
            serde_json::from_value(written).map_err(|error| format!("{REPLY}: {error}"))?;
        let outcome = match kind {
            Kind::Success => Outcome::Success { value, text },
            Kind::Error => Outcome::Error(text),
            Kind::Exception => match value {
                Value::String(name) => Outcome::Exception { name, text },
                _ => return Err(format!("{REPLY}: the value of an exception is its name")),
            },
        };
        let then = then.map(|Then { function, argument }| match Function::read(&function) {
            Some(function) => Ok((function, argument)),
            None => Err(format!("{REPLY}: then: expected MODULE.FUNCTION")),
        });
        Ok(Self { outcome, then: then.transpose()? })
    }

    /// Of the reply of a `handler`: by its status a value, an error or an exception.
    ///
    /// # Errors
    /// As `read`, for a body that is such an object.
    pub(super) fn of(reply: Reply) -> Result<Self, String> {
        let text = || String::from_utf8_lossy(&reply.body).into_owned();
        let header = |name: &str| {
            let found = reply.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        let outcome = match reply.status {
            400..=499 => Outcome::Error(text()),
            500.. => {
                let name = header(EXCEPTION_HEADER).unwrap_or_else(|| "Error".into());
                Outcome::Exception { name, text: text() }
            }
            _ => {
                let value = match reply.body.is_empty() {
                    true => Value::Null,
                    false => serde_json::from_slice(&reply.body).unwrap_or_else(|_| text().into()),
                };
                let mut answer = Self::read(value)?;
                if let (Outcome::Success { text, .. }, Some(said)) = (&mut answer.outcome, header(MESSAGE_HEADER)) {
                    *text = said;
                }
                return Ok(answer);
            }
        };
        Ok(Self::plain(outcome))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(value: Value, outcome: Outcome) {
        assert_eq!(Answer::read(value), Ok(Answer::plain(outcome)));
    }

    #[test]
    fn a_value_is_the_replys_and_a_reply_says_more() {
        check(json!({"a": 1}), Outcome::success(json!({"a": 1})));
        check(json!({"wasmcage:reply": 1, "a": 1}), Outcome::success(json!({"wasmcage:reply": 1, "a": 1})));
        let reply = |value: Value| json!({ "wasmcage:reply": value });
        check(
            reply(json!({"type": "success", "value": 5, "message": "five"})),
            Outcome::Success { value: json!(5), text: "five".into() },
        );
        check(reply(json!({"type": "error", "message": "no"})), Outcome::Error("no".into()));
        check(
            reply(json!({"type": "exception", "value": "ValueError", "message": "no"})),
            Outcome::Exception { name: "ValueError".into(), text: "no".into() },
        );
        let then = reply(json!({"type": "success", "then": {"function": "work.tidy", "argument": [1]}}));
        let function = Function { module: "work".into(), name: "tidy".into() };
        assert_eq!(Answer::read(then).unwrap().then, Some((function, json!([1]))));
    }

    #[test]
    fn a_reply_that_cannot_be_understood_is_told() {
        for (value, text) in [
            (json!(1), "wasmcage:reply"),
            (json!({"type": "odd"}), "odd"),
            (json!({"type": "success", "valu": 1}), "valu"),
            (json!({"type": "exception", "value": 1}), "its name"),
            (json!({"type": "success", "then": {"function": "tidy"}}), "MODULE.FUNCTION"),
        ] {
            let told = Answer::read(json!({ "wasmcage:reply": value })).unwrap_err();
            assert!(told.contains(text), "{told}");
        }
    }

    #[test]
    fn a_handlers_reply_is_read_by_its_status() {
        let of = |status: u16, headers: &[(&str, &str)], body: &str| {
            let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Answer::of(Reply { status, headers, body: body.to_owned().into() }).unwrap().outcome
        };
        assert_eq!(of(200, &[], "5"), Outcome::success(json!(5)));
        assert_eq!(of(200, &[("Message", "m")], "text"), Outcome::Success { value: json!("text"), text: "m".into() });
        assert_eq!(of(204, &[], ""), Outcome::success(Value::Null));
        assert_eq!(of(404, &[], "no"), Outcome::Error("no".into()));
        let exception = Outcome::Exception { name: "KeyError".into(), text: "no".into() };
        assert_eq!(of(500, &[("exception", "KeyError")], "no"), exception);
        assert_eq!(
            of(200, &[], r#"{"wasmcage:reply": {"type": "error", "message": "no"}}"#),
            Outcome::Error("no".into())
        );
    }
}
