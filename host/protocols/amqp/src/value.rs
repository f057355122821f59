//! Converts names and table values of AMQP from and to texts and JSON. Every name, header and argument from the
//! configuration, a guest or a peer is checked here before the client library gets it. Nothing here does I/O.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, ShortString};
use serde_json::{Map, Number, Value, json};

/// The longest name, key or property (but headers).
pub(super) const SHORT_BYTES_MAX: usize = 255;
/// The deepest nesting of tables and lists in a message's headers, the outermost table included.
pub(super) const DEPTH_MAX: usize = 16;
/// The longest frame; RabbitMQ's default, and a broker may be configured for less.
pub(super) const FRAME_BYTES_MAX: usize = 131_072;
/// The head and end of a frame, and the part of a content header before its properties.
const HEADER_FRAME_BYTES: usize = 8 + 14;
/// How much of a name an error repeats.
const SHOWN_CHARS: usize = 40;

/// Values that JSON cannot express are objects with one of these as their single key.
const TIMESTAMP: &str = "$timestamp";
const BYTES: &str = "$bytes";
const DECIMAL: &str = "$decimal";
const DOUBLE: &str = "$double";
/// The key around a table that would look like one of the others.
const TABLE: &str = "$table";

/// Makes a name of AMQP; `what` describes it in the error.
///
/// # Errors
/// The text is too long.
pub(super) fn short(text: &str, what: &str) -> Result<ShortString, String> {
    ShortString::try_new(text).map_err(|_| {
        let bytes = text.len();
        format!("{what} is longer than {SHORT_BYTES_MAX} bytes: {} has {bytes}", shown(text))
    })
}

/// A name in quotes for an error text, cut if it is long.
pub(super) fn shown(name: &str) -> String {
    match name.char_indices().nth(SHOWN_CHARS) {
        None => format!("{name:?}"),
        Some((end, _)) => format!("{:?}..", &name[..end]),
    }
}

/// Converts a JSON object to a table.
///
/// # Errors
/// AMQP cannot express a value; the text says which, and why.
pub(super) fn table_of(values: Map<String, Value>) -> Result<FieldTable, String> {
    table_at(values, 1)
}

fn table_at(values: Map<String, Value>, depth: usize) -> Result<FieldTable, String> {
    check_depth(depth)?;
    let mut table = FieldTable::default();
    for (name, value) in values {
        let value = value_at(value, depth).map_err(|why| format!("{}: {why}", shown(&name)))?;
        table.insert(short(&name, "a name in a table")?, value);
    }
    Ok(table)
}

fn value_at(value: Value, depth: usize) -> Result<AMQPValue, String> {
    Ok(match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(flag),
        Value::Number(number) => number_of(&number)?,
        Value::String(text) => AMQPValue::LongString(text.into()),
        Value::Array(values) => {
            check_depth(depth + 1)?;
            let values = values.into_iter().map(|value| value_at(value, depth + 1));
            AMQPValue::FieldArray(FieldArray::from(values.collect::<Result<Vec<_>, _>>()?))
        }
        Value::Object(values) => match special(&values)? {
            Some(value) => value,
            None => AMQPValue::FieldTable(table_at(plain(values), depth + 1)?),
        },
    })
}

fn check_depth(depth: usize) -> Result<(), String> {
    match depth <= DEPTH_MAX {
        true => Ok(()),
        false => Err(format!("tables and lists are nested more than {DEPTH_MAX} deep")),
    }
}

fn number_of(number: &Number) -> Result<AMQPValue, String> {
    match (number.as_i64(), number.as_f64()) {
        (Some(integer), _) => Ok(AMQPValue::LongLongInt(integer)),
        (None, Some(float)) if number.is_f64() => Ok(AMQPValue::Double(float)),
        (None, _) => Err(format!("{number} does not fit into a signed integer of 64 bits")),
    }
}

/// The value of an object such as `{"$timestamp": ..}`; none for an ordinary table.
fn special(values: &Map<String, Value>) -> Result<Option<AMQPValue>, String> {
    let (1, Some((key, value))) = (values.len(), values.iter().next()) else { return Ok(None) };
    let wrong = |expected: &str| format!("{key}: expected {expected}");
    let text = |expected: &str| value.as_str().ok_or_else(|| wrong(expected));
    Ok(Some(match key.as_str() {
        TIMESTAMP => AMQPValue::Timestamp(value.as_u64().ok_or_else(|| wrong("seconds since 1970"))?),
        BYTES => {
            let bytes = STANDARD.decode(text("a text in base64")?).map_err(|_| wrong("a text in base64"))?;
            AMQPValue::ByteArray(ByteArray::from(bytes))
        }
        DECIMAL => {
            let expected = "a text such as \"1.50\", up to 4294967295 without its point";
            AMQPValue::DecimalValue(decimal_of(text(expected)?).ok_or_else(|| wrong(expected))?)
        }
        DOUBLE => {
            let expected = "\"NaN\", \"inf\" or \"-inf\"";
            AMQPValue::Double(text(expected)?.parse().map_err(|_| wrong(expected))?)
        }
        _ => return Ok(None),
    }))
}

/// The table within `{"$table": ..}`, or the table itself.
fn plain(mut values: Map<String, Value>) -> Map<String, Value> {
    match (values.len(), values.get_mut(TABLE)) {
        (1, Some(Value::Object(inner))) => std::mem::take(inner),
        _ => values,
    }
}

fn decimal_of(text: &str) -> Option<DecimalValue> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{fraction}");
    let are_digits = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    let scale = u8::try_from(fraction.len()).ok().filter(|_| are_digits)?;
    Some(DecimalValue { scale, value: digits.parse().ok()? })
}

fn decimal_text(DecimalValue { scale, value }: DecimalValue) -> String {
    let scale = usize::from(scale);
    let digits = format!("{value:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

/// Converts a table to a JSON object. `table_of` converts it back; only the widths of integers differ.
pub(super) fn json_of_table(table: &FieldTable) -> Map<String, Value> {
    table.inner().iter().map(|(name, value)| (name.to_string(), json_of(value))).collect()
}

pub(super) fn json_of(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(flag) => Value::Bool(*flag),
        AMQPValue::ShortShortInt(number) => json!(number),
        AMQPValue::ShortShortUInt(number) => json!(number),
        AMQPValue::ShortInt(number) => json!(number),
        AMQPValue::ShortUInt(number) => json!(number),
        AMQPValue::LongInt(number) => json!(number),
        AMQPValue::LongUInt(number) => json!(number),
        AMQPValue::LongLongInt(number) => json!(number),
        AMQPValue::Float(number) => json_of_double((*number).into()),
        AMQPValue::Double(number) => json_of_double(*number),
        AMQPValue::DecimalValue(decimal) => json!({ DECIMAL: decimal_text(*decimal) }),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => json!(text),
            Err(_) => json_of_bytes(text.as_bytes()),
        },
        AMQPValue::ByteArray(bytes) => json_of_bytes(bytes.as_slice()),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json_of).collect(),
        AMQPValue::Timestamp(seconds) => json!({ TIMESTAMP: seconds }),
        AMQPValue::FieldTable(table) => {
            let values = json_of_table(table);
            let is_odd = values.len() == 1 && values.keys().all(|key| key.starts_with('$'));
            if is_odd { json!({ TABLE: values }) } else { Value::Object(values) }
        }
        AMQPValue::Void => Value::Null,
    }
}

fn json_of_double(number: f64) -> Value {
    Number::from_f64(number).map_or_else(|| json!({ DOUBLE: number.to_string() }), Value::Number)
}

fn json_of_bytes(bytes: &[u8]) -> Value {
    json!({ BYTES: STANDARD.encode(bytes) })
}

/// A value as text, for a request header: a text as it is, anything else as JSON.
pub(super) fn text_of(value: &AMQPValue) -> String {
    match (value, json_of(value)) {
        (AMQPValue::Void, _) => String::new(),
        (AMQPValue::Timestamp(seconds), _) => seconds.to_string(),
        (AMQPValue::DecimalValue(decimal), _) => decimal_text(*decimal),
        (_, Value::String(text)) => text,
        (_, other) => other.to_string(),
    }
}

/// Checks that properties fit into one frame. A broker would close the whole connection over a longer frame.
///
/// # Errors
/// The text says how long they are, and how long they may be.
pub(super) fn check_frame(properties: &BasicProperties, frame_bytes_max: usize) -> Result<(), String> {
    let bytes = HEADER_FRAME_BYTES + properties_bytes(properties);
    match bytes <= frame_bytes_max {
        true => Ok(()),
        false => Err(format!(
            "a message's properties and headers take {bytes} bytes; the broker takes {frame_bytes_max} in one frame"
        )),
    }
}

fn properties_bytes(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum();
    // Delivery mode, priority and timestamp.
    texts + 10 + properties.headers().as_ref().map_or(0, table_bytes)
}

fn table_bytes(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| 1 + name.as_str().len() + value_bytes(value)).sum::<usize>()
}

/// The encoded size of a value, with the byte for its type.
fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Timestamp(_) | AMQPValue::Double(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(value_bytes).sum::<usize>(),
        AMQPValue::FieldTable(table) => table_bytes(table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_length_are_names_or_errors() {
        for (bytes, fits) in [(0, true), (255, true), (256, false), (260, false), (100_000, false)] {
            let read = short(&"x".repeat(bytes), "a name");
            assert_eq!(read.is_ok(), fits, "{bytes}");
            if let Err(text) = read {
                assert!(text.contains(&format!("has {bytes}")) && text.len() < 200, "{text}");
            }
        }
        assert!(short(&"é".repeat(128), "a name").is_err(), "bytes count, not characters");
    }

    #[test]
    fn values_are_the_same_after_conversion_to_json_and_back() {
        let values = json!({
            "text": "é", "number": -5, "float": 1.5, "flag": true, "none": null, "list": [1, "x", [null]],
            "table": {"a": {"b": 1}, "": 2}, "when": {"$timestamp": 1_700_000_000}, "bytes": {"$bytes": "AP8="},
            "price": {"$decimal": "0.05"}, "odd": {"$table": {"$bytes": "no"}}, "nan": {"$double": "NaN"},
        });
        let Value::Object(values) = values else { unreachable!() };
        let table = table_of(values.clone()).unwrap();
        assert_eq!(json_of_table(&table), values);
        assert_eq!(table.inner()["number"], AMQPValue::LongLongInt(-5));
        assert_eq!(table.inner()["when"], AMQPValue::Timestamp(1_700_000_000));
        assert_eq!(table.inner()["price"], AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 5 }));
    }

    #[test]
    fn texts_for_modules_are_plain() {
        let list =
            AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongString("a".into()), AMQPValue::LongInt(1)]));
        assert_eq!(text_of(&list), r#"["a",1]"#);
        assert_eq!(text_of(&AMQPValue::LongString("a".into())), "a");
        assert_eq!(text_of(&AMQPValue::LongString(vec![0xff].into())), r#"{"$bytes":"/w=="}"#);
        assert_eq!(text_of(&AMQPValue::Timestamp(7)), "7");
        assert_eq!(text_of(&AMQPValue::Void), "");
    }

    #[test]
    fn values_that_amqp_cannot_express_are_refused() {
        let check = |value: Value, text: &str| {
            let error = value_at(value, 1).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        check(json!(u64::MAX), "signed integer of 64 bits");
        check(json!({ "x".repeat(256): 1 }), "longer than 255");
        check(json!({ "$bytes": "?" }), "base64");
        check(json!({ "$timestamp": -1 }), "seconds since 1970");
        check(json!({ "$decimal": "1e5" }), "such as");
        check(json!({ "$decimal": "99999999999" }), "such as");
        let mut deep = json!(1);
        for _ in 0..20 {
            deep = json!([deep]);
        }
        check(deep, "nested more than 16");
    }

    #[test]
    fn the_computed_length_of_a_frame_is_right() {
        let properties = |bytes: usize| {
            let mut table = FieldTable::default();
            table.insert("a".into(), AMQPValue::LongString("x".repeat(bytes).into()));
            BasicProperties::default().with_headers(table)
        };
        assert!(check_frame(&properties(100), 4_096).is_ok());
        let error = check_frame(&properties(140_000), FRAME_BYTES_MAX).unwrap_err();
        assert!(error.contains("131072"), "{error}");
    }
}
