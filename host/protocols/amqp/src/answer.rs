//! A module's answer to an RPC of format "postage". A function returns any JSON value, which becomes the reply's value;
//! or an object with the single key `wasmcage:reply` (written by the SDK's `RpcReply`), which can hold an error, an
//! exception, a text beside the value, and a function to call after the reply is sent.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::handlers::ModuleFunction;
use super::message::ReplyContent;
use wasmcage_core::request::Reply;

/// The single key of such an object.
const REPLY: &str = "wasmcage:reply";
/// The header that names the exception in a reply with a status of 500 or more.
const EXCEPTION_HEADER: &str = "exception";
/// The header with the text beside a value.
const MESSAGE_HEADER: &str = "message";

/// The reply to an RPC, and the call that follows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HandlerAnswer {
    pub(super) content: ReplyContent,
    /// The function and its argument. It is called once the broker has confirmed the reply; the request is acknowledged
    /// after that.
    pub(super) follow_up: Option<(ModuleFunction, Value)>,
}

/// The object beneath `wasmcage:reply`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyObject {
    #[serde(rename = "type")]
    kind: ReplyType,
    #[serde(default)]
    value: Value,
    #[serde(default)]
    message: String,
    #[serde(rename = "then")]
    follow_up: Option<FollowUp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ReplyType {
    Success,
    Error,
    Exception,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FollowUp {
    function: String,
    #[serde(default)]
    argument: Value,
}

impl HandlerAnswer {
    pub(super) fn plain(content: ReplyContent) -> Self {
        Self { content, follow_up: None }
    }

    /// The answer in what a function returned.
    ///
    /// # Errors
    /// The value beneath `wasmcage:reply` is malformed.
    pub(super) fn of_value(value: Value) -> Result<Self, String> {
        match value {
            Value::Object(mut object) if object.len() == 1 && object.contains_key(REPLY) => {
                Self::of_object(&mut object)
            }
            value => Ok(Self::plain(ReplyContent::success(value))),
        }
    }

    fn of_object(object: &mut Map<String, Value>) -> Result<Self, String> {
        let object = object.remove(REPLY).unwrap_or_default();
        let ReplyObject { kind, value, message: text, follow_up } =
            serde_json::from_value(object).map_err(|error| format!("{REPLY}: {error}"))?;
        let content = match kind {
            ReplyType::Success => ReplyContent::Success { value, text },
            ReplyType::Error => ReplyContent::Error(text),
            ReplyType::Exception => match value {
                Value::String(name) => ReplyContent::Exception { name, text },
                _ => return Err(format!("{REPLY}: the value of an exception is its name")),
            },
        };
        let follow_up = follow_up.map(|FollowUp { function, argument }| match ModuleFunction::read(&function) {
            Some(function) => Ok((function, argument)),
            None => Err(format!("{REPLY}: then: expected MODULE.FUNCTION")),
        });
        Ok(Self { content, follow_up: follow_up.transpose()? })
    }

    /// The answer in the reply of a `handler` module: its status tells a value (below 400), an error (4xx) and an
    /// exception (5xx) apart.
    ///
    /// # Errors
    /// As for `of_value`, if the body is such an object.
    pub(super) fn of_reply(reply: Reply) -> Result<Self, String> {
        let text = || String::from_utf8_lossy(&reply.body).into_owned();
        let header = |name: &str| {
            let found = reply.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        let content = match reply.status {
            400..=499 => ReplyContent::Error(text()),
            500.. => {
                let name = header(EXCEPTION_HEADER).unwrap_or_else(|| "Error".into());
                ReplyContent::Exception { name, text: text() }
            }
            _ => {
                let value = match reply.body.is_empty() {
                    true => Value::Null,
                    false => serde_json::from_slice(&reply.body).unwrap_or_else(|_| text().into()),
                };
                let mut answer = Self::of_value(value)?;
                if let (ReplyContent::Success { text, .. }, Some(message)) =
                    (&mut answer.content, header(MESSAGE_HEADER))
                {
                    *text = message;
                }
                return Ok(answer);
            }
        };
        Ok(Self::plain(content))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(value: Value, content: ReplyContent) {
        assert_eq!(HandlerAnswer::of_value(value), Ok(HandlerAnswer::plain(content)));
    }

    #[test]
    fn a_value_is_the_reply_and_a_reply_object_holds_more() {
        check(json!({"a": 1}), ReplyContent::success(json!({"a": 1})));
        check(json!({"wasmcage:reply": 1, "a": 1}), ReplyContent::success(json!({"wasmcage:reply": 1, "a": 1})));
        let reply = |value: Value| json!({ "wasmcage:reply": value });
        check(
            reply(json!({"type": "success", "value": 5, "message": "five"})),
            ReplyContent::Success { value: json!(5), text: "five".into() },
        );
        check(reply(json!({"type": "error", "message": "no"})), ReplyContent::Error("no".into()));
        check(
            reply(json!({"type": "exception", "value": "ValueError", "message": "no"})),
            ReplyContent::Exception { name: "ValueError".into(), text: "no".into() },
        );
        let then = reply(json!({"type": "success", "then": {"function": "work.tidy", "argument": [1]}}));
        let function = ModuleFunction { module: "work".into(), name: "tidy".into() };
        assert_eq!(HandlerAnswer::of_value(then).unwrap().follow_up, Some((function, json!([1]))));
    }

    #[test]
    fn a_malformed_reply_object_is_an_error() {
        for (value, text) in [
            (json!(1), "wasmcage:reply"),
            (json!({"type": "odd"}), "odd"),
            (json!({"type": "success", "valu": 1}), "valu"),
            (json!({"type": "exception", "value": 1}), "its name"),
            (json!({"type": "success", "then": {"function": "tidy"}}), "MODULE.FUNCTION"),
        ] {
            let error = HandlerAnswer::of_value(json!({ "wasmcage:reply": value })).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_handlers_reply_is_read_by_its_status() {
        let of = |status: u16, headers: &[(&str, &str)], body: &str| {
            let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            HandlerAnswer::of_reply(Reply { status, headers, body: body.to_owned().into() }).unwrap().content
        };
        assert_eq!(of(200, &[], "5"), ReplyContent::success(json!(5)));
        assert_eq!(
            of(200, &[("Message", "m")], "text"),
            ReplyContent::Success { value: json!("text"), text: "m".into() }
        );
        assert_eq!(of(204, &[], ""), ReplyContent::success(Value::Null));
        assert_eq!(of(404, &[], "no"), ReplyContent::Error("no".into()));
        let exception = ReplyContent::Exception { name: "KeyError".into(), text: "no".into() };
        assert_eq!(of(500, &[("exception", "KeyError")], "no"), exception);
        assert_eq!(
            of(200, &[], r#"{"wasmcage:reply": {"type": "error", "message": "no"}}"#),
            ReplyContent::Error("no".into())
        );
    }
}
