//! Parses the operations of a resource: the actions `message`, `command`, `status`, `result`, `forward`, `publish`,
//! `rpc`, `fetch`, and the headers that say how and where to send. Nothing here does I/O.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Map, Value, json};

use super::config::Format;
use super::message::{PostageFingerprint, ReplyContent, encode};
use super::raw::{HEADERS, typed_headers};
use super::value::{FRAME_BYTES_MAX, SHORT_BYTES_MAX, check_frame, short, shown};
use wasmcage_resource::Operation;

/// The most destinations of one message.
const DESTINATIONS_MAX: usize = 100;
const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

/// The headers by which RabbitMQ sends copies of a message. It closes the channel if one is not a list of texts.
const COPY_HEADERS: [&str; 2] = ["CC", "BCC"];

/// An exchange and a routing key.
pub(super) type Destination = (ShortString, ShortString);

/// The configuration of a resource: what holds for a message unless its headers say otherwise.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    pub(super) targets: Vec<Destination>,
    pub(super) format: Format,
    pub(super) fingerprint: PostageFingerprint,
    pub(super) mandatory: bool,
    pub(super) persistent: bool,
    pub(super) rpc_timeout: Duration,
    pub(super) rpc_retries: u32,
}

/// A message to be sent.
#[derive(Clone, Debug)]
pub(super) struct OutgoingMessage {
    pub(super) targets: Vec<Destination>,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
    pub(super) mandatory: bool,
}

/// An operation, parsed.
#[derive(Clone, Debug)]
pub(super) enum AmqpAction {
    Publish(OutgoingMessage),
    Rpc {
        request: OutgoingMessage,
        timeout: Duration,
        retries: u32,
        queue_only: bool,
    },
    /// Fetches the next reply from a queue that an earlier `queue_only` returned.
    Fetch {
        queue: ShortString,
        timeout: Duration,
    },
}

impl AmqpAction {
    /// # Errors
    /// Why the operation is invalid.
    pub(super) fn read(operation: &Operation, defaults: &Defaults) -> Result<Self, String> {
        let Operation { action, target, headers, body } = operation;
        let mut headers = Headers::read(headers, defaults)?;
        if action == "fetch" {
            if target.is_empty() {
                return Err("fetch needs the name of a queue, in `target`".into());
            }
            let queue = short(target, "a queue's name")?;
            return Ok(Self::Fetch { queue, timeout: headers.timeout });
        }
        let is_raw = action == "publish" || (action == "rpc" && defaults.format == Format::Raw);
        let body = match is_raw {
            true => body.to_vec(),
            false => {
                headers.properties = headers.properties.with_content_type("application/json".into());
                encode_postage(action, target, body, headers.text.take(), &defaults.fingerprint)?
            }
        };
        if headers.text.is_some() {
            return Err("header message: it goes with the value of a result".into());
        }
        check_frame(&headers.properties, FRAME_BYTES_MAX)?;
        let Headers { mut targets, properties, mandatory, timeout, retries, queue_only, .. } = headers;
        if targets.is_empty() {
            return Err("no exchange: `eks` of the resource, or the header key or eks, says where to".into());
        }
        if action != "rpc" {
            return Ok(Self::Publish(OutgoingMessage { targets, properties, body, mandatory }));
        }
        targets.truncate(1);
        let request = OutgoingMessage { targets, properties, body, mandatory };
        Ok(Self::Rpc { request, timeout, retries, queue_only })
    }
}

/// Encodes the body of a Postage message.
fn encode_postage(
    action: &str,
    name: &str,
    body: &[u8],
    text: Option<String>,
    fingerprint: &PostageFingerprint,
) -> Result<Vec<u8>, String> {
    if text.is_some() && action != "result" {
        return Err("header message: it goes with the value of a result".into());
    }
    let json = || match body.is_empty() {
        true => Ok(json!({})),
        false => serde_json::from_slice::<Value>(body).map_err(|error| format!("the body is no JSON: {error}")),
    };
    let named = match name.is_empty() && matches!(action, "command" | "rpc" | "status") {
        true => Err(format!("{action} needs a name, in `target`")),
        false => Ok(name),
    };
    Ok(match action {
        "message" => encode("message", "none", if name.is_empty() { "none" } else { name }, json()?, fingerprint),
        "command" => encode("message", "command", named?, json!({"parameters": json()?}), fingerprint),
        "rpc" => encode("rpc", "command", named?, json!({"parameters": json()?}), fingerprint),
        "status" => encode("message", "status", named?, json!({}), fingerprint),
        "result" => ReplyContent::Success { value: json()?, text: text.unwrap_or_default() }.message(fingerprint),
        // A forwarded message keeps its first sender's fingerprint.
        "forward" => match serde_json::from_slice::<Map<String, Value>>(body) {
            Ok(_) => body.to_vec(),
            Err(error) => return Err(format!("what is forwarded is no message: {error}")),
        },
        other => {
            return Err(format!(
                "there is no action {}: message, command, status, result, forward, publish, rpc, fetch",
                shown(other)
            ));
        }
    })
}

/// An operation's headers, parsed.
struct Headers {
    targets: Vec<Destination>,
    properties: BasicProperties,
    mandatory: bool,
    timeout: Duration,
    retries: u32,
    queue_only: bool,
    /// The text beside the value of a result.
    text: Option<String>,
}

impl Headers {
    fn read(headers: &[(String, String)], defaults: &Defaults) -> Result<Self, String> {
        let mut persistent = defaults.persistent;
        let (mut key, mut eks, mut own, mut typed) = (None, None, FieldTable::default(), Vec::new());
        let mut read = Self {
            targets: Vec::new(),
            properties: BasicProperties::default(),
            mandatory: defaults.mandatory,
            timeout: defaults.rpc_timeout,
            retries: defaults.rpc_retries,
            queue_only: false,
            text: None,
        };
        for (name, value) in headers {
            let flag = || {
                value
                    .parse::<bool>()
                    .map_err(|_| format!("header {name}: expected true or false, got {}", shown(value)))
            };
            let number =
                || value.parse::<u32>().map_err(|_| format!("header {name}: expected a number, got {}", shown(value)));
            let text = || short(value, name);
            let properties = std::mem::take(&mut read.properties);
            read.properties = match name.as_str() {
                "content-type" => properties.with_content_type(text()?),
                "content-encoding" => properties.with_content_encoding(text()?),
                "correlation-id" => properties.with_correlation_id(text()?),
                "reply-to" => properties.with_reply_to(text()?),
                "expiration" => {
                    // RabbitMQ closes the channel if this is no number.
                    number()?;
                    properties.with_expiration(text()?)
                }
                "timestamp" => {
                    let seconds =
                        value.parse().map_err(|_| format!("header {name}: expected seconds, got {}", shown(value)))?;
                    properties.with_timestamp(seconds)
                }
                "message-id" => properties.with_message_id(text()?),
                "type" => properties.with_type(text()?),
                "app-id" => properties.with_app_id(text()?),
                "priority" => properties.with_priority(number()?.min(255) as u8),
                _ => properties,
            };
            match name.as_str() {
                "key" => key = Some(text()?),
                "message" => read.text = Some(value.clone()),
                HEADERS => typed.push(typed_headers(value)?),
                "eks" => eks = Some(targets(value)?),
                "persistent" => persistent = flag()?,
                "mandatory" => read.mandatory = flag()?,
                "timeout-ms" => read.timeout = Duration::from_millis(number()?.into()),
                "max-retry" => read.retries = number()?,
                "queue-only" => read.queue_only = flag()?,
                "content-type" | "content-encoding" | "correlation-id" | "reply-to" | "expiration" | "message-id"
                | "type" | "app-id" | "priority" | "timestamp" => {}
                other => match other.strip_prefix("header.") {
                    Some(name) => {
                        own.insert(short(name, "the name of a header")?, AMQPValue::LongString(value.as_str().into()));
                    }
                    None => {
                        return Err(format!("there is no header {}; a message's own are header.NAME", shown(other)));
                    }
                },
            }
        }
        read.targets = match (eks, key) {
            (Some(eks), _) => eks,
            (None, Some(key)) => {
                defaults.targets.first().map(|(exchange, _)| (exchange.clone(), key)).into_iter().collect()
            }
            (None, None) => defaults.targets.clone(),
        };
        read.properties = read.properties.with_delivery_mode(if persistent { PERSISTENT } else { TRANSIENT });
        for (name, value) in typed.iter().flat_map(FieldTable::inner) {
            own.insert(name.clone(), value.clone());
        }
        check_copies(&own)?;
        if !own.inner().is_empty() {
            read.properties = read.properties.with_headers(own);
        }
        Ok(read)
    }
}

/// Parses `[["exchange", "key"], ..]`.
fn targets(text: &str) -> Result<Vec<Destination>, String> {
    let read: Vec<(String, String)> = serde_json::from_str(text)
        .map_err(|_| format!("header eks: expected [[\"exchange\", \"key\"], ..], got {}", shown(text)))?;
    if read.len() > DESTINATIONS_MAX {
        return Err(format!("header eks: at most {DESTINATIONS_MAX}"));
    }
    read.iter().map(|(exchange, key)| Ok((short(exchange, "exchange")?, short(key, "key")?))).collect()
}

fn check_copies(table: &FieldTable) -> Result<(), String> {
    let is_text = |value: &AMQPValue| matches!(value, AMQPValue::LongString(text) if text.len() <= SHORT_BYTES_MAX);
    for name in COPY_HEADERS {
        let fits = match table.inner().get(name) {
            None => true,
            Some(AMQPValue::FieldArray(keys)) => keys.as_slice().iter().all(is_text),
            Some(_) => false,
        };
        if !fits {
            return Err(format!(
                "header {name}: expected a list of routing keys, each of at most {SHORT_BYTES_MAX} bytes"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(format: Format) -> Defaults {
        let text = || "x".to_owned();
        Defaults {
            targets: vec![("first".into(), "a".into()), ("second".into(), "b".into())],
            format,
            fingerprint: PostageFingerprint {
                name: text(),
                kind: text(),
                pid: text(),
                host: text(),
                user: text(),
                vhost: text(),
            },
            mandatory: true,
            persistent: true,
            rpc_timeout: Duration::from_secs(30),
            rpc_retries: 4,
        }
    }

    fn read(action: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Result<AmqpAction, String> {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let body = body.to_owned().into();
        let operation = Operation { action: action.into(), target: target.into(), headers, body };
        AmqpAction::read(&operation, &defaults(Format::Postage))
    }

    fn targets_of(targets: &[Destination]) -> Vec<(&str, &str)> {
        targets.iter().map(|(exchange, key)| (exchange.as_str(), key.as_str())).collect()
    }

    fn published(action: &str, target: &str, headers: &[(&str, &str)], body: &str) -> (Vec<Destination>, Value) {
        let Ok(AmqpAction::Publish(out)) = read(action, target, headers, body) else { panic!("it is published") };
        (out.targets, serde_json::from_slice(&out.body).unwrap())
    }

    #[test]
    fn messages_equal_those_of_postage() {
        let (targets, body) = published("command", "rotate", &[], r#"{"size": 1}"#);
        assert_eq!(targets.len(), 2);
        assert_eq!(
            (&body["type"], &body["category"], &body["name"]),
            (&json!("command"), &json!("message"), &json!("rotate"))
        );
        assert_eq!((&body["version"], &body["_reserved"]), (&json!("2"), &json!({})));
        assert_eq!(body["content"], json!({"parameters": {"size": 1}}));
        let (_, body) = published("status", "online", &[], "");
        assert_eq!((&body["type"], &body["name"], &body["content"]), (&json!("status"), &json!("online"), &json!({})));
        let (_, body) = published("result", "", &[], "5");
        assert_eq!(body["content"], json!({"type": "success", "value": 5, "message": ""}));
        let (_, body) = published("message", "", &[], r#"{"args": [1], "kwds": {"a": 2}}"#);
        assert_eq!((&body["type"], &body["content"]), (&json!("none"), &json!({"args": [1], "kwds": {"a": 2}})));
    }

    #[test]
    fn a_key_takes_the_first_exchange_and_eks_wins() {
        let (targets, _) = published("command", "x", &[("key", "k")], "");
        assert_eq!(targets_of(&targets), [("first", "k")]);
        let (targets, _) = published("command", "x", &[("key", "k"), ("eks", r#"[["e", "l"]]"#)], "");
        assert_eq!(targets_of(&targets), [("e", "l")]);
        let Ok(AmqpAction::Rpc { request, .. }) = read("rpc", "x", &[], "") else { panic!("it is an rpc") };
        assert_eq!(targets_of(&request.targets), [("first", "a")]);
    }

    #[test]
    fn headers_have_types_and_a_result_a_text() {
        let headers =
            [("headers", r#"{"N": 5, "list": ["a", null], "when": {"$timestamp": 7}}"#), ("header.Text", "5")];
        let Ok(AmqpAction::Publish(out)) = read("result", "", &[&headers[..], &[("message", "five")]].concat(), "5")
        else {
            panic!("it is published")
        };
        let table = out.properties.headers().as_ref().unwrap().inner();
        assert_eq!(table["N"], AMQPValue::LongLongInt(5));
        assert_eq!(table["Text"], AMQPValue::LongString("5".into()));
        assert_eq!(table["when"], AMQPValue::Timestamp(7));
        let body: Value = serde_json::from_slice(&out.body).unwrap();
        assert_eq!(body["content"], json!({"type": "success", "value": 5, "message": "five"}));
    }

    /// A message over which a broker would close the channel or the connection is refused before it is sent.
    #[test]
    fn messages_that_no_broker_accepts_are_refused() {
        let check = |headers: &[(&str, &str)], text: &str| {
            let error = read("message", "", headers, "").unwrap_err();
            assert!(error.contains(text) && error.len() < 300, "{error}");
        };
        let long = |bytes: usize| "x".repeat(bytes);
        for bytes in [256, 260, 100_000] {
            let name = long(bytes);
            for header in [
                "content-type",
                "content-encoding",
                "correlation-id",
                "reply-to",
                "message-id",
                "type",
                "app-id",
                "key",
            ] {
                check(&[(header, &name)], "longer than 255");
            }
            check(&[(&format!("header.{name}"), "v")], "longer than 255");
            check(&[("headers", &format!("{{\"{name}\": 1}}"))], "longer than 255");
            check(&[("eks", &format!("[[\"{name}\", \"k\"]]"))], "longer than 255");
            check(&[("eks", &format!("[[\"e\", \"{name}\"]]"))], "longer than 255");
            assert!(read("fetch", &name, &[], "").unwrap_err().contains("longer than 255"));
        }
        check(&[("header.a", &long(140_000))], "in one frame");
        check(&[("header.a", &long(70_000)), ("header.b", &long(70_000))], "in one frame");
        check(&[("headers", &format!("{{\"a\": \"{}\"}}", long(140_000)))], "in one frame");
        check(&[("expiration", "soon")], "a number");
        check(&[("header.CC", "k")], "a list of routing keys");
        check(&[("headers", r#"{"BCC": [1]}"#)], "a list of routing keys");
        assert!(read("message", "", &[("headers", r#"{"CC": ["k"]}"#)], "").is_ok());
        assert!(read("message", "", &[("header.a", &long(130_000))], "").is_ok());
        assert!(read("fetch", &long(255), &[], "").is_ok());
    }

    #[test]
    fn mistakes_are_reported() {
        let check = |action: &str, headers: &[(&str, &str)], body: &str, text: &str| {
            let error = read(action, "", headers, body).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        check("command", &[], "", "needs a name");
        check("shout", &[], "", "there is no action");
        check("message", &[], "{", "no JSON");
        check("forward", &[], "[]", "no message");
        check("message", &[("ky", "x")], "", "there is no header");
        check("message", &[("eks", "x")], "", "expected [[");
        check("message", &[("eks", "[]")], "", "no exchange");
        check("message", &[("key", &"x".repeat(256))], "", "longer than 255");
        check("message", &[("mandatory", "yes")], "", "true or false");
        check("message", &[("message", "m")], "", "value of a result");
        check("publish", &[("message", "m")], "", "value of a result");
    }
}
