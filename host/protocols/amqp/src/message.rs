//! Messages as Postage has them: JSON objects of format version 2. Read from deliveries and from replies, made for producers
//! and for replies.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::value::shown;

const VERSION: &str = "2";

/// Who sent a message; all strings.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Fingerprint {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) pid: String,
    pub(super) host: String,
    pub(super) user: String,
    pub(super) vhost: String,
}

/// A message that came. Contents stay as they were written.
#[derive(Debug, Deserialize)]
pub(super) struct Incoming<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) category: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) name: Cow<'a, str>,
    #[serde(default)]
    pub(super) fingerprint: Map<String, Value>,
    #[serde(borrow)]
    pub(super) content: &'a RawValue,
}

impl<'a> Incoming<'a> {
    /// # Errors
    /// Why these bytes are no such message; none of them is repeated.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| why(&error))
    }

    /// What handlers are found by.
    pub(super) fn key(&self) -> String {
        format!("{}/{}/{}", self.category, self.kind, self.name)
    }

    pub(super) fn is_rpc(&self) -> bool {
        self.category == "rpc"
    }
}

/// What is wrong with a text that should be a message: where, and not what, since that may be anybody's secret.
fn why(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    match error.is_data() {
        true => {
            format!("its type, category, name, content or fingerprint is missing or of the wrong type, column {column}")
        }
        false => format!("no JSON after line {line}, column {column}"),
    }
}

/// The content of a reply.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// `text` goes with the value, and is mostly empty.
    Success {
        value: Value,
        text: String,
    },
    Error(String),
    Exception {
        name: String,
        text: String,
    },
}

#[derive(Deserialize)]
struct ResultContent {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    value: Value,
    #[serde(default)]
    message: Value,
}

impl Outcome {
    pub(super) fn success(value: Value) -> Self {
        Self::Success { value, text: String::new() }
    }

    /// Of a reply; one that cannot be read is an error that says so.
    pub(super) fn read(body: &[u8]) -> Self {
        let read = Incoming::read(body).and_then(|reply| {
            serde_json::from_str::<ResultContent>(reply.content.get())
                .map_err(|_| "its content is no result".to_owned())
        });
        let text = |value: Value| match value {
            Value::String(text) => text,
            Value::Null => String::new(),
            other => other.to_string(),
        };
        match read {
            Ok(content) => match content.kind.as_str() {
                "success" => Self::Success { value: content.value, text: text(content.message) },
                "error" => Self::Error(text(content.message)),
                "exception" => Self::Exception { name: text(content.value), text: text(content.message) },
                other => Self::Error(format!("the reply is of unknown type {}", shown(other))),
            },
            Err(error) => Self::Error(format!("the reply cannot be read: {error}")),
        }
    }

    /// As the content of a message.
    pub(super) fn content(self) -> Value {
        match self {
            Self::Success { value, text } => json!({"type": "success", "value": value, "message": text}),
            Self::Error(text) => json!({"type": "error", "value": null, "message": text}),
            Self::Exception { name, text } => json!({"type": "exception", "value": name, "message": text}),
        }
    }

    pub(super) fn message(self, fingerprint: &Fingerprint) -> Vec<u8> {
        encode("message", "result", "none", self.content(), fingerprint)
    }
}

/// A whole message.
pub(super) fn encode(category: &str, kind: &str, name: &str, content: Value, fingerprint: &Fingerprint) -> Vec<u8> {
    let message = json!({
        "type": kind, "name": name, "category": category, "version": VERSION,
        "fingerprint": fingerprint, "content": content, "_reserved": {},
    });
    message.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint() -> Fingerprint {
        let text = || "x".to_owned();
        Fingerprint { name: text(), kind: text(), pid: text(), host: text(), user: text(), vhost: text() }
    }

    #[test]
    fn outcomes_survive_the_way() {
        for outcome in [
            Outcome::success(json!({"a": [1, null]})),
            Outcome::Success { value: json!(5), text: "as asked".into() },
            Outcome::Error("no".into()),
            Outcome::Exception { name: "ValueError".into(), text: "no".into() },
        ] {
            assert_eq!(Outcome::read(&outcome.clone().message(&fingerprint())), outcome);
        }
    }

    #[test]
    fn what_is_no_reply_is_an_error_that_says_so() {
        for body in [&b"{"[..], b"[1]", b"{\"type\": 1}", b"\xff", b""] {
            assert!(matches!(Outcome::read(body), Outcome::Error(text) if text.contains("cannot be read")));
        }
        let odd = encode("message", "result", "none", json!({"type": "odd"}), &fingerprint());
        assert!(matches!(Outcome::read(&odd), Outcome::Error(text) if text.contains("odd")));
    }

    #[test]
    fn what_is_wrong_with_a_message_is_told_without_its_contents() {
        let secret = "hush".repeat(1_000);
        for body in [
            format!("\"{secret}\""),
            format!("{{\"type\": \"{secret}\", {secret}"),
            format!("{{\"type\":[\"{secret}\"]}}"),
        ] {
            let told = Incoming::read(body.as_bytes()).unwrap_err();
            assert!(!told.contains("hush") && told.contains("column"), "{told}");
        }
    }

    #[test]
    fn messages_of_the_original_are_read() {
        let body = br#"{"_reserved": {}, "category": "rpc", "name": "echo", "version": "2", "type": "command",
            "content": {"parameters": {"a": 1.50}}, "fingerprint": {"name": null, "pid": "7"}}"#;
        let message = Incoming::read(body).unwrap();
        assert_eq!(message.key(), "rpc/command/echo");
        assert_eq!(message.content.get(), r#"{"parameters": {"a": 1.50}}"#);
        let deep = format!(r#"{{"type":"t","category":"c","content":{}1{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
        // The content's depth is its reader's concern.
        let _ = Incoming::read(deep.as_bytes());
    }
}
