//! Messages of Postage: JSON objects of its format version 2. They are read from deliveries and replies, and made for
//! both.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::value::shown;

const VERSION: &str = "2";

/// The sender of a message, in Postage's term. All values are strings.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PostageFingerprint {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) pid: String,
    pub(super) host: String,
    pub(super) user: String,
    pub(super) vhost: String,
}

/// A message that was received. Its content stays JSON text, exactly as it was written.
#[derive(Debug, Deserialize)]
pub(super) struct PostageMessage<'a> {
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

impl<'a> PostageMessage<'a> {
    /// # Errors
    /// Why these bytes are no such message. The text repeats none of them.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| parse_error(&error))
    }

    /// The key in the table `handlers`.
    pub(super) fn key(&self) -> String {
        format!("{}/{}/{}", self.category, self.kind, self.name)
    }

    pub(super) fn is_rpc(&self) -> bool {
        self.category == "rpc"
    }
}

/// Says where a message is wrong. It does not say what is there, since that may be a secret.
fn parse_error(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    match error.is_data() {
        true => {
            format!("its type, category, name, content or fingerprint is missing or of the wrong type, column {column}")
        }
        false => format!("no JSON after line {line}, column {column}"),
    }
}

/// The content of a reply to an RPC.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ReplyContent {
    /// `text` is a message beside the value, and mostly empty.
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
struct WireContent {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    value: Value,
    #[serde(default)]
    message: Value,
}

impl ReplyContent {
    pub(super) fn success(value: Value) -> Self {
        Self::Success { value, text: String::new() }
    }

    /// Reads the body of a reply. One that is malformed becomes an error that says so.
    pub(super) fn read(body: &[u8]) -> Self {
        let read = PostageMessage::read(body).and_then(|reply| {
            serde_json::from_str::<WireContent>(reply.content.get()).map_err(|_| "its content is no result".to_owned())
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

    /// The `content` of the message.
    pub(super) fn content(self) -> Value {
        match self {
            Self::Success { value, text } => json!({"type": "success", "value": value, "message": text}),
            Self::Error(text) => json!({"type": "error", "value": null, "message": text}),
            Self::Exception { name, text } => json!({"type": "exception", "value": name, "message": text}),
        }
    }

    /// The whole message.
    pub(super) fn message(self, fingerprint: &PostageFingerprint) -> Vec<u8> {
        encode("message", "result", "none", self.content(), fingerprint)
    }
}

/// Encodes a message.
pub(super) fn encode(
    category: &str,
    kind: &str,
    name: &str,
    content: Value,
    fingerprint: &PostageFingerprint,
) -> Vec<u8> {
    let message = json!({
        "type": kind, "name": name, "category": category, "version": VERSION,
        "fingerprint": fingerprint, "content": content, "_reserved": {},
    });
    message.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint() -> PostageFingerprint {
        let text = || "x".to_owned();
        PostageFingerprint { name: text(), kind: text(), pid: text(), host: text(), user: text(), vhost: text() }
    }

    #[test]
    fn replies_are_read_as_they_were_written() {
        for content in [
            ReplyContent::success(json!({"a": [1, null]})),
            ReplyContent::Success { value: json!(5), text: "as asked".into() },
            ReplyContent::Error("no".into()),
            ReplyContent::Exception { name: "ValueError".into(), text: "no".into() },
        ] {
            assert_eq!(ReplyContent::read(&content.clone().message(&fingerprint())), content);
        }
    }

    #[test]
    fn a_malformed_reply_is_an_error_that_says_so() {
        for body in [&b"{"[..], b"[1]", b"{\"type\": 1}", b"\xff", b""] {
            assert!(matches!(ReplyContent::read(body), ReplyContent::Error(text) if text.contains("cannot be read")));
        }
        let odd = encode("message", "result", "none", json!({"type": "odd"}), &fingerprint());
        assert!(matches!(ReplyContent::read(&odd), ReplyContent::Error(text) if text.contains("odd")));
    }

    #[test]
    fn the_error_of_a_malformed_message_does_not_repeat_it() {
        let secret = "hush".repeat(1_000);
        for body in [
            format!("\"{secret}\""),
            format!("{{\"type\": \"{secret}\", {secret}"),
            format!("{{\"type\":[\"{secret}\"]}}"),
        ] {
            let error = PostageMessage::read(body.as_bytes()).unwrap_err();
            assert!(!error.contains("hush") && error.contains("column"), "{error}");
        }
    }

    #[test]
    fn messages_of_the_original_are_read() {
        let body = br#"{"_reserved": {}, "category": "rpc", "name": "echo", "version": "2", "type": "command",
            "content": {"parameters": {"a": 1.50}}, "fingerprint": {"name": null, "pid": "7"}}"#;
        let message = PostageMessage::read(body).unwrap();
        assert_eq!(message.key(), "rpc/command/echo");
        assert_eq!(message.content.get(), r#"{"parameters": {"a": 1.50}}"#);
        let deep = format!(r#"{{"type":"t","category":"c","content":{}1{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
        // The content is not parsed here, so its depth does not matter.
        let _ = PostageMessage::read(deep.as_bytes());
    }
}
