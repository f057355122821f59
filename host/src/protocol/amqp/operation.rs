//! What a resource is asked: actions `message`, `command`, `status`, `result`, `forward`, `publish`, `rpc`, `fetch`, and the
//! headers that say where to and how. Pure: nothing here speaks to a broker.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Map, Value, json};

use super::config::Format;
use super::message::{Fingerprint, Outcome, encode};
use crate::resource::Operation;

/// Of short strings on the wire: names, keys, most properties.
const SHORT_BYTES_MAX: usize = 255;
/// Exchanges and keys that one message goes to.
const TARGETS_MAX: usize = 100;
const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

/// An exchange and a routing key.
pub(super) type Target = (String, String);

/// What is the same for all messages of a resource.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    pub(super) targets: Vec<Target>,
    pub(super) format: Format,
    pub(super) fingerprint: Fingerprint,
    pub(super) mandatory: bool,
    pub(super) persistent: bool,
    pub(super) rpc_timeout: Duration,
    pub(super) rpc_retries: u32,
}

/// A message to be sent.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) targets: Vec<Target>,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
    pub(super) mandatory: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Asked {
    Publish(Outgoing),
    Rpc {
        request: Outgoing,
        timeout: Duration,
        retries: u32,
        queue_only: bool,
    },
    /// The next reply in a queue that `queue_only` returned.
    Fetch {
        queue: String,
        timeout: Duration,
    },
}

impl Asked {
    /// # Errors
    /// What is wrong with the operation.
    pub(super) fn read(operation: &Operation, defaults: &Defaults) -> Result<Self, String> {
        let Operation { action, target, headers, body } = operation;
        let mut headers = Headers::read(headers, defaults)?;
        if action == "fetch" {
            let queue = short(target, "a queue's name")?.to_string();
            return Ok(Self::Fetch { queue, timeout: headers.timeout });
        }
        let is_raw = action == "publish" || (action == "rpc" && defaults.format == Format::Raw);
        let body = match is_raw {
            true => body.to_vec(),
            false => {
                headers.properties = headers.properties.with_content_type("application/json".into());
                postage(action, target, body, &defaults.fingerprint)?
            }
        };
        let Headers { mut targets, properties, mandatory, timeout, retries, queue_only, .. } = headers;
        if targets.is_empty() {
            return Err("no exchange: `eks` of the resource, or the header key or eks, says where to".into());
        }
        if action != "rpc" {
            return Ok(Self::Publish(Outgoing { targets, properties, body, mandatory }));
        }
        targets.truncate(1);
        let request = Outgoing { targets, properties, body, mandatory };
        Ok(Self::Rpc { request, timeout, retries, queue_only })
    }
}

fn postage(action: &str, name: &str, body: &[u8], fingerprint: &Fingerprint) -> Result<Vec<u8>, String> {
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
        "result" => Outcome::Success(json()?).message(fingerprint),
        // As it came: with its own sender.
        "forward" => match serde_json::from_slice::<Map<String, Value>>(body) {
            Ok(_) => body.to_vec(),
            Err(error) => return Err(format!("what is forwarded is no message: {error}")),
        },
        other => {
            return Err(format!(
                "there is no action {other:?}: message, command, status, result, forward, publish, rpc, fetch"
            ));
        }
    })
}

struct Headers {
    targets: Vec<Target>,
    properties: BasicProperties,
    mandatory: bool,
    timeout: Duration,
    retries: u32,
    queue_only: bool,
}

impl Headers {
    fn read(headers: &[(String, String)], defaults: &Defaults) -> Result<Self, String> {
        let mut persistent = defaults.persistent;
        let (mut key, mut eks, mut own) = (None, None, FieldTable::default());
        let mut read = Self {
            targets: Vec::new(),
            properties: BasicProperties::default(),
            mandatory: defaults.mandatory,
            timeout: defaults.rpc_timeout,
            retries: defaults.rpc_retries,
            queue_only: false,
        };
        for (name, value) in headers {
            let flag =
                || value.parse::<bool>().map_err(|_| format!("header {name}: expected true or false, got {value:?}"));
            let number =
                || value.parse::<u32>().map_err(|_| format!("header {name}: expected a number, got {value:?}"));
            let text = || short(value, name);
            let properties = std::mem::take(&mut read.properties);
            read.properties = match name.as_str() {
                "content-type" => properties.with_content_type(text()?),
                "content-encoding" => properties.with_content_encoding(text()?),
                "correlation-id" => properties.with_correlation_id(text()?),
                "reply-to" => properties.with_reply_to(text()?),
                "expiration" => properties.with_expiration(text()?),
                "message-id" => properties.with_message_id(text()?),
                "type" => properties.with_type(text()?),
                "app-id" => properties.with_app_id(text()?),
                "priority" => properties.with_priority(number()?.min(255) as u8),
                _ => properties,
            };
            match name.as_str() {
                "key" => key = Some(text()?.to_string()),
                "eks" => eks = Some(targets(value)?),
                "persistent" => persistent = flag()?,
                "mandatory" => read.mandatory = flag()?,
                "timeout-ms" => read.timeout = Duration::from_millis(number()?.into()),
                "max-retry" => read.retries = number()?,
                "queue-only" => read.queue_only = flag()?,
                "content-type" | "content-encoding" | "correlation-id" | "reply-to" | "expiration" | "message-id"
                | "type" | "app-id" | "priority" => {}
                other => match other.strip_prefix("header.") {
                    Some(name) => {
                        own.insert(short(name, other)?, AMQPValue::LongString(value.as_str().into()));
                    }
                    None => return Err(format!("there is no header {other:?}; a message's own are header.NAME")),
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
        if !own.inner().is_empty() {
            read.properties = read.properties.with_headers(own);
        }
        Ok(read)
    }
}

/// `[["exchange", "key"], ..]`
fn targets(text: &str) -> Result<Vec<Target>, String> {
    let read: Vec<Target> = serde_json::from_str(text)
        .map_err(|_| format!("header eks: expected [[\"exchange\", \"key\"], ..], got {text:?}"))?;
    if read.len() > TARGETS_MAX {
        return Err(format!("header eks: at most {TARGETS_MAX}"));
    }
    for (exchange, key) in &read {
        short(exchange, "exchange")?;
        short(key, "key")?;
    }
    Ok(read)
}

fn short(text: &str, what: &str) -> Result<ShortString, String> {
    match text.len() <= SHORT_BYTES_MAX {
        true => Ok(text.into()),
        false => Err(format!("{what} is longer than {SHORT_BYTES_MAX} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(format: Format) -> Defaults {
        let text = || "x".to_owned();
        Defaults {
            targets: vec![("first".into(), "a".into()), ("second".into(), "b".into())],
            format,
            fingerprint: Fingerprint {
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

    fn read(action: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Result<Asked, String> {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let body = body.to_owned().into();
        let operation = Operation { action: action.into(), target: target.into(), headers, body };
        Asked::read(&operation, &defaults(Format::Postage))
    }

    fn published(action: &str, target: &str, headers: &[(&str, &str)], body: &str) -> (Vec<Target>, Value) {
        let Ok(Asked::Publish(out)) = read(action, target, headers, body) else { panic!("it is published") };
        (out.targets, serde_json::from_slice(&out.body).unwrap())
    }

    #[test]
    fn messages_are_those_of_the_original() {
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
        assert_eq!(targets, [("first".into(), "k".into())]);
        let (targets, _) = published("command", "x", &[("key", "k"), ("eks", r#"[["e", "l"]]"#)], "");
        assert_eq!(targets, [("e".into(), "l".into())]);
        let Ok(Asked::Rpc { request, .. }) = read("rpc", "x", &[], "") else { panic!("it is an rpc") };
        assert_eq!(request.targets, [("first".into(), "a".into())]);
    }

    #[test]
    fn mistakes_are_told() {
        let check = |action: &str, headers: &[(&str, &str)], body: &str, text: &str| {
            let told = read(action, "", headers, body).unwrap_err();
            assert!(told.contains(text), "{told}");
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
    }
}
