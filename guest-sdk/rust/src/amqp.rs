//! Messages to other programs, through a resource of protocol `amqp`.
//!
//! ```no_run
//! use wasmcage_guest::amqp::producer;
//! use wasmcage_guest::serde_json::{Value, json};
//! # fn f() -> wasmcage_guest::Result<()> {
//! let logs = producer("logs");
//! logs.command("rotate", json!({"keep": 7}))?;
//! logs.clone().key("archive").status("online")?;
//! let echoed: Value = producer("echo").rpc("echo", json!({"text": "hello"}))?;
//! # Ok(()) }
//! ```
//!
//! A message may be a part of a transaction: it is published when that commits, and not if it is rolled back.
//!
//! ```no_run
//! # use wasmcage_guest::{Result, amqp::producer, params, serde_json::json, sql::Statements, transaction};
//! # fn f() -> Result<()> {
//! let row = Statements::new().add("insert into rotations (days) values ({days})", params! { days: 7 });
//! let mut rotation = transaction();
//! rotation.operation("db", row.operation()?);
//! rotation.operation("logs", producer("logs").operation().command("rotate", json!({"keep": 7}))?);
//! rotation.execute()?;
//! # Ok(()) }
//! ```
//!
//! The broker confirms each message, or returns it as an error ([`AmqpError::is_unroutable`]) when there is no queue for it. A
//! handler replies by its own result; see [`RpcReply`] for replies that are more than a value.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::resource::{Operation, Reply, ResourceError, resource};
use crate::{Error, Response, Result};

/// A resource, with settings for the messages that are sent through it. A clone may have other settings.
#[derive(Clone, Debug)]
#[must_use = "a producer sends nothing by itself"]
pub struct Producer {
    resource: String,
    headers: Vec<(String, String)>,
    /// Headers of messages, with types.
    own: Map<String, Value>,
}

/// The producer for `[resources.NAME]`.
pub fn producer(resource: impl Into<String>) -> Producer {
    Producer { resource: resource.into(), headers: Vec::new(), own: Map::new() }
}

/// Why a message was not sent, or a request has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AmqpError {
    /// The other side replied with an error.
    Refused(String),
    /// The other side replied with an exception.
    Exception { name: String, text: String },
    /// The reply does not have the expected form.
    Reply(String),
    /// The message was not sent, or there was no reply. Codes are those of the resource: `timed-out`, `unroutable`, `connect`, ...
    Failed {
        code: String,
        text: String,
        /// Nothing irreversible happened: the operation may be retried.
        recoverable: bool,
    },
}

impl AmqpError {
    /// Returns whether there was no queue for the message.
    pub fn is_unroutable(&self) -> bool {
        matches!(self, Self::Failed { code, .. } if code == "unroutable")
    }

    /// Returns whether there was no reply in time, or no confirmation by the broker.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Failed { code, .. } if code == "timed-out")
    }
}

impl fmt::Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(text) => write!(f, "the other side refused: {text}"),
            Self::Exception { name, text } => write!(f, "the other side failed: {name}: {text}"),
            Self::Reply(text) => write!(f, "the reply is not what was expected: {text}"),
            Self::Failed { code, text, .. } => write!(f, "{code}: {text}"),
        }
    }
}

impl std::error::Error for AmqpError {}

impl From<ResourceError> for AmqpError {
    fn from(error: ResourceError) -> Self {
        Self::Failed { code: error.code, text: error.text, recoverable: error.recoverable }
    }
}

/// Settings.
impl Producer {
    /// Sends to the first exchange with this routing key, instead of all exchanges and keys of the resource.
    pub fn key(self, key: impl Into<String>) -> Self {
        self.setting("key", key)
    }

    /// Sends to these exchanges and keys, instead of those of the resource.
    pub fn eks(self, eks: &[(&str, &str)]) -> Self {
        self.setting("eks", serde_json::json!(eks).to_string())
    }

    /// Sets whether a message without a queue is an error.
    pub fn mandatory(self, mandatory: bool) -> Self {
        self.setting("mandatory", mandatory.to_string())
    }

    /// Sets whether a durable queue keeps the message when the broker restarts.
    pub fn persistent(self, persistent: bool) -> Self {
        self.setting("persistent", persistent.to_string())
    }

    /// Sets the timeout of each attempt at an rpc.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.setting("timeout-ms", timeout.as_millis().to_string())
    }

    /// Sets how often an rpc without a reply is retried.
    pub fn max_retry(self, retries: u32) -> Self {
        self.setting("max-retry", retries.to_string())
    }

    /// Sets a property, such as `content-type` or `expiration`, or a header of the message, as `header.NAME`.
    pub fn property(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.setting(name, value)
    }

    /// Sets a header of the message, with its type, such as a number, a list or a table. Types that JSON lacks are objects with
    /// one key: `{"$timestamp": seconds}`, `{"$bytes": base64}`, `{"$decimal": "1.50"}`. A value that cannot be converted to JSON
    /// is left out.
    pub fn header(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        if let Ok(value) = serde_json::to_value(value) {
            self.own.insert(name.into(), value);
        }
        self
    }

    /// Sets the text that is sent with the value of a [`Producer::result`].
    pub fn result_message(self, text: impl Into<String>) -> Self {
        self.setting("message", text)
    }

    fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Sends messages. Each method returns when the broker has confirmed the message.
///
/// # Errors
/// See the kinds.
impl Producer {
    pub fn command(&self, name: &str, parameters: impl Serialize) -> Result<(), AmqpError> {
        self.send(self.operation().command(name, parameters)?)
    }

    pub fn status(&self, status: &str) -> Result<(), AmqpError> {
        self.send(self.operation().status(status))
    }

    pub fn result(&self, value: impl Serialize) -> Result<(), AmqpError> {
        self.send(self.operation().result(value)?)
    }

    /// Sends a message without a type: `{"args": [..], "kwds": {..}}`.
    pub fn message(&self, content: impl Serialize) -> Result<(), AmqpError> {
        self.send(self.operation().message(content)?)
    }

    /// Forwards a whole message as it was received, with its sender.
    pub fn forward(&self, message: impl Serialize) -> Result<(), AmqpError> {
        self.send(self.operation().forward(message)?)
    }

    /// Sends a message with any body.
    pub fn publish(&self, body: impl Into<Vec<u8>>) -> Result<(), AmqpError> {
        self.send(self.operation().publish(body))
    }

    /// Makes operations instead of sending, for participants of a [`transaction`](mod@crate::transaction).
    pub fn operation(&self) -> Operations<'_> {
        Operations(self)
    }

    /// Sends a request, and waits for the value of its reply.
    pub fn rpc<R: DeserializeOwned>(&self, name: &str, parameters: impl Serialize) -> Result<R, AmqpError> {
        value_of(self.ask("rpc", name, json_bytes(parameters)?)?)
    }

    /// As [`rpc`](Self::rpc), with the text that the other side sent with the value.
    pub fn rpc_answer<R: DeserializeOwned>(
        &self,
        name: &str,
        parameters: impl Serialize,
    ) -> Result<RpcAnswer<R>, AmqpError> {
        let reply = self.ask("rpc", name, json_bytes(parameters)?)?;
        let message = reply.headers.iter().find(|(name, _)| name == "message").map(|(_, text)| text.clone());
        Ok(RpcAnswer { value: value_of(reply)?, message: message.unwrap_or_default() })
    }

    /// Sends a request, and returns the name of the queue for the reply, which `fetch` takes. The queue is deleted with the cage's
    /// connection to the broker.
    pub fn rpc_queue(&self, name: &str, parameters: impl Serialize) -> Result<String, AmqpError> {
        let asking = self.clone().setting("queue-only", "true");
        let reply = asking.ask("rpc", name, json_bytes(parameters)?)?;
        String::from_utf8(reply.body).map_err(|error| AmqpError::Reply(error.to_string()))
    }

    /// Waits for the value in such a queue, and deletes the queue.
    pub fn fetch<R: DeserializeOwned>(&self, queue: &str) -> Result<R, AmqpError> {
        value_of(self.ask("fetch", queue, Vec::new())?)
    }

    fn send(&self, operation: Operation) -> Result<(), AmqpError> {
        resource(&self.resource).execute(operation)?;
        Ok(())
    }

    fn ask(&self, action: &str, target: &str, body: Vec<u8>) -> Result<Reply, AmqpError> {
        Ok(resource(&self.resource).execute(self.made(action, target, body))?)
    }

    fn made(&self, action: &str, target: &str, body: Vec<u8>) -> Operation {
        let mut headers = self.headers.clone();
        if !self.own.is_empty() {
            headers.push(("headers".into(), Value::Object(self.own.clone()).to_string()));
        }
        Operation { action: action.to_owned(), target: target.to_owned(), headers, body }
    }
}

/// The messages of a [`Producer`] as operations, for [`Transaction::operation`] on its resource.
///
/// [`Transaction::operation`]: crate::transaction::Transaction::operation
#[derive(Clone, Copy, Debug)]
pub struct Operations<'a>(&'a Producer);

/// A value that cannot be converted to JSON is [`AmqpError::Failed`].
impl Operations<'_> {
    pub fn command(self, name: &str, parameters: impl Serialize) -> Result<Operation, AmqpError> {
        Ok(self.0.made("command", name, json_bytes(parameters)?))
    }

    pub fn status(self, status: &str) -> Operation {
        self.0.made("status", status, Vec::new())
    }

    pub fn result(self, value: impl Serialize) -> Result<Operation, AmqpError> {
        Ok(self.0.made("result", "", json_bytes(value)?))
    }

    pub fn message(self, content: impl Serialize) -> Result<Operation, AmqpError> {
        Ok(self.0.made("message", "", json_bytes(content)?))
    }

    pub fn forward(self, message: impl Serialize) -> Result<Operation, AmqpError> {
        Ok(self.0.made("forward", "", json_bytes(message)?))
    }

    pub fn publish(self, body: impl Into<Vec<u8>>) -> Operation {
        self.0.made("publish", "", body.into())
    }
}

/// The value of a reply, and the text that was sent with it, which is mostly empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcAnswer<R> {
    pub value: R,
    pub message: String,
}

/// A reply to an rpc that is more than a value. Its texts are sent to the requester, while of an [`Error`] only a code is sent.
///
/// ```
/// use wasmcage_guest::Result;
/// use wasmcage_guest::amqp::RpcReply;
/// use wasmcage_guest::serde_json::Value;
///
/// pub fn withdraw(content: Value) -> Result<RpcReply> {
///     let Some(amount) = content["parameters"]["amount"].as_u64() else {
///         return Ok(RpcReply::exception("ValueError", "amount is no number"));
///     };
///     if amount > 100 {
///         return Ok(RpcReply::error("at most 100 at a time"));
///     }
///     Ok(RpcReply::value(amount).message("as asked").then("work.note", amount))
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RpcReply(Map<String, Value>);

impl RpcReply {
    /// A value. If it cannot be converted to JSON, the reply is an exception that says so.
    pub fn value(value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => Self::of("success", value, String::new()),
            Err(error) => Self::exception("TypeError", error.to_string()),
        }
    }

    /// An expected error.
    pub fn error(text: impl Into<String>) -> Self {
        Self::of("error", Value::Null, text.into())
    }

    /// An unexpected error, with the name of an exception.
    pub fn exception(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self::of("exception", Value::String(name.into()), text.into())
    }

    fn of(kind: &str, value: Value, text: String) -> Self {
        let fields = [("type", kind.into()), ("value", value), ("message", Value::String(text))];
        Self(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Sets the text that is sent with the value.
    #[must_use]
    pub fn message(mut self, text: impl Into<String>) -> Self {
        self.0.insert("message".into(), Value::String(text.into()));
        self
    }

    /// Sets a function of this cage, `"module.function"`, that is called with this argument once the reply is sent, within the
    /// request's deadline and before the request is acknowledged. If it fails, the request goes to the dead letters.
    #[must_use]
    pub fn then(mut self, function: impl Into<String>, argument: impl Serialize) -> Self {
        let argument = serde_json::to_value(argument).unwrap_or_default();
        self.0.insert("then".into(), json!({ "function": function.into(), "argument": argument }));
        self
    }
}

impl Serialize for RpcReply {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        std::collections::BTreeMap::from([("wasmcage:reply", &self.0)]).serialize(serializer)
    }
}

/// The reply as the response of a `handler`.
impl From<RpcReply> for Response {
    fn from(reply: RpcReply) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { status: 200, headers, body: json!({ "wasmcage:reply": reply.0 }).to_string().into_bytes() }
    }
}

/// Makes the response of a handler that answers an rpc with an expected error.
pub fn error_reply(text: impl Into<String>) -> Response {
    Response::text(text).status(422)
}

/// Makes the response of a handler that answers an rpc with an unexpected error, with the name of an exception.
pub fn exception_reply(name: impl Into<String>, text: impl Into<String>) -> Response {
    Response::text(text).status(500).header("exception", name)
}

fn json_bytes(value: impl Serialize) -> Result<Vec<u8>, AmqpError> {
    serde_json::to_vec(&value).map_err(|error| AmqpError::Failed {
        code: "bad-operation".to_owned(),
        text: format!("the message cannot be put into JSON: {error}"),
        recoverable: true,
    })
}

fn value_of<R: DeserializeOwned>(reply: Reply) -> Result<R, AmqpError> {
    let Reply { status, headers, body } = reply;
    let text = || String::from_utf8_lossy(&body).into_owned();
    match status {
        200 => serde_json::from_slice::<Value>(&body)
            .and_then(serde_json::from_value)
            .map_err(|error| AmqpError::Reply(error.to_string())),
        422 => Err(AmqpError::Refused(text())),
        _ => {
            let name = headers.into_iter().find(|(name, _)| name == "exception").map(|(_, value)| value);
            Err(AmqpError::Exception { name: name.unwrap_or_default(), text: text() })
        }
    }
}

impl AmqpError {
    /// Converts this to the module's own error. An error reply becomes a refusal.
    pub fn into_error(self) -> Error {
        match self {
            Self::Refused(text) => Error::refused(text),
            other => Error::failed(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, headers: &[(&str, &str)], body: &str) -> Reply {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Reply { status, headers, body: body.into() }
    }

    #[test]
    fn replies_are_values_or_say_whose_fault_it_was() {
        assert_eq!(value_of(reply(200, &[], "5")), Ok(5));
        assert_eq!(value_of::<i32>(reply(422, &[], "no")), Err(AmqpError::Refused("no".into())));
        let exception = AmqpError::Exception { name: "ValueError".into(), text: "no".into() };
        assert_eq!(value_of::<i32>(reply(500, &[("exception", "ValueError")], "no")), Err(exception));
        assert!(matches!(value_of::<i32>(reply(200, &[], "\"x\"")), Err(AmqpError::Reply(_))));
    }

    #[test]
    fn replies_say_more_than_a_value() {
        let reply = RpcReply::value(5).message("five").then("work.tidy", [1]);
        let expected = serde_json::json!({ "wasmcage:reply": {
            "type": "success", "value": 5, "message": "five", "then": { "function": "work.tidy", "argument": [1] },
        } });
        assert_eq!(serde_json::to_value(&reply).unwrap(), expected);
        let exception = serde_json::to_value(RpcReply::exception("KeyError", "no")).unwrap();
        assert_eq!(exception["wasmcage:reply"]["value"], "KeyError");
        assert_eq!(serde_json::to_value(RpcReply::error("no")).unwrap()["wasmcage:reply"]["value"], Value::Null);
        let unfit = RpcReply::value(std::collections::BTreeMap::from([((1, 2), 3)]));
        assert_eq!(serde_json::to_value(unfit).unwrap()["wasmcage:reply"]["value"], "TypeError");
    }

    #[test]
    fn headers_have_their_types() {
        let operation = producer("out").header("count", 5).header("list", ["a"]).operation().status("on");
        assert_eq!(operation.headers, [("headers".to_owned(), r#"{"count":5,"list":["a"]}"#.to_owned())]);
    }

    #[test]
    fn messages_are_operations_with_the_settings_of_their_producer() {
        let logs = producer("logs").key("k");
        let check = |operation: Operation, action: &str, target: &str, body: &str| {
            let headers = vec![("key".to_owned(), "k".to_owned())];
            assert_eq!(operation, Operation { headers, ..Operation::of(action, target).body(body) });
        };
        let value = serde_json::json!([1]);
        check(logs.operation().command("rotate", &value).unwrap(), "command", "rotate", "[1]");
        check(logs.operation().status("on"), "status", "on", "");
        check(logs.operation().result(&value).unwrap(), "result", "", "[1]");
        check(logs.operation().message(&value).unwrap(), "message", "", "[1]");
        check(logs.operation().forward(&value).unwrap(), "forward", "", "[1]");
        check(logs.operation().publish("raw"), "publish", "", "raw");
        let unfit = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(matches!(logs.operation().result(unfit), Err(AmqpError::Failed { .. })));
    }
}
