//! The mapping of format "raw": a message's properties become headers of the request, and a reply's headers become
//! properties. Each of the message's own headers is passed as the text `header.NAME`, and all of them with their types
//! as JSON in `headers`.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value};

use super::value::{json_of_table, short, table_of, text_of};
use wasmcage_core::request::Reply;

/// The header with all headers of a message and their types, as JSON.
pub(super) const HEADERS: &str = "headers";

/// The request headers that say where a delivery came from.
pub(super) fn delivery_headers(delivery: &Delivery) -> Vec<(String, String)> {
    let mut headers = vec![
        ("exchange".to_owned(), delivery.exchange.to_string()),
        ("routing-key".to_owned(), delivery.routing_key.to_string()),
    ];
    if delivery.redelivered {
        headers.push(("redelivered".into(), "true".into()));
    }
    headers
}

/// The request headers for a message's properties. Its own headers are `header.NAME`, with the name as it was sent.
pub(super) fn property_headers(properties: &BasicProperties) -> Vec<(String, String)> {
    let texts = [
        ("content-type", properties.content_type()),
        ("content-encoding", properties.content_encoding()),
        ("correlation-id", properties.correlation_id()),
        ("reply-to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("message-id", properties.message_id()),
        ("type", properties.kind()),
        ("user-id", properties.user_id()),
        ("app-id", properties.app_id()),
    ];
    let texts = texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.as_ref()?.to_string())));
    let numbers = [
        ("delivery-mode", properties.delivery_mode().map(u64::from)),
        ("priority", properties.priority().map(u64::from)),
        ("timestamp", *properties.timestamp()),
    ];
    let numbers = numbers.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_string())));
    let own = properties.headers().iter().flat_map(|headers| headers.inner());
    let own = own.map(|(name, value)| (format!("header.{name}"), text_of(value)));
    let typed = properties.headers().as_ref().filter(|table| !table.inner().is_empty());
    let typed = typed.map(|table| (HEADERS.to_owned(), Value::Object(json_of_table(table)).to_string()));
    texts.chain(numbers).chain(own).chain(typed).collect()
}

/// Reads the JSON object in which a module gives headers with their types.
///
/// # Errors
/// The text is no JSON object, or has a value that AMQP cannot express.
pub(super) fn typed_headers(text: &str) -> Result<FieldTable, String> {
    let values: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("header {HEADERS}: expected a JSON object: {error}"))?;
    table_of(values).map_err(|why| format!("header {HEADERS}: {why}"))
}

/// Turns a module's reply into the properties and body of a message.
///
/// # Errors
/// A header cannot be sent; the text says which, and why.
pub(super) fn raw_reply(reply: Reply) -> Result<(BasicProperties, Bytes), String> {
    let (mut properties, mut table) = (BasicProperties::default(), FieldTable::default());
    for (name, value) in reply.headers {
        if name.eq_ignore_ascii_case("content-type") {
            properties = properties.with_content_type(short(&value, "the reply's content-type")?);
        } else if name == HEADERS {
            for (name, value) in typed_headers(&value)?.inner() {
                table.insert(name.clone(), value.clone());
            }
        } else {
            table.insert(short(&name, "the name of a reply's header")?, AMQPValue::LongString(value.into()));
        }
    }
    if reply.status != 200 {
        table.insert("status".into(), AMQPValue::LongLongInt(reply.status.into()));
    }
    Ok((properties.with_headers(table), reply.body))
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    #[test]
    fn headers_keep_their_names_and_types() {
        let list = FieldArray::from(vec![AMQPValue::LongString("a".into()), AMQPValue::LongLongInt(2)]);
        let mut table = FieldTable::default();
        table.insert("X-Colour".into(), AMQPValue::LongString("red".into()));
        table.insert("x-list".into(), AMQPValue::FieldArray(list));
        let headers = property_headers(&BasicProperties::default().with_headers(table.clone()));
        let of = |name: &str| &*headers.iter().find(|(known, _)| known == name).unwrap().1;
        assert_eq!((of("header.X-Colour"), of("header.x-list")), ("red", r#"["a",2]"#));
        assert_eq!(typed_headers(of(HEADERS)).unwrap(), table);
        assert!(property_headers(&BasicProperties::default()).is_empty());
    }

    #[test]
    fn a_reply_that_cannot_be_sent_is_an_error() {
        let reply = |name: &str, value: &str| {
            raw_reply(Reply { status: 200, headers: vec![(name.into(), value.into())], body: Bytes::new() })
        };
        let (properties, _) = reply(HEADERS, r#"{"n": 5}"#).unwrap();
        assert_eq!(properties.headers().as_ref().unwrap().inner()["n"], AMQPValue::LongLongInt(5));
        for bytes in [256, 260, 100_000] {
            let long = "x".repeat(bytes);
            assert!(reply(&long, "v").unwrap_err().contains("longer than 255"));
            assert!(reply("content-type", &long).unwrap_err().contains("longer than 255"));
            assert!(reply(HEADERS, &format!("{{\"{long}\": 1}}")).unwrap_err().contains("longer than 255"));
        }
        assert!(reply(HEADERS, "[]").unwrap_err().contains("JSON object"));
        assert!(reply(&"x".repeat(255), "v").is_ok());
    }
}
