//! Encodes values in the binary form of a parameter's type.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use sqlx::postgres::{PgTypeInfo, PgTypeKind};
use sqlx::{TypeInfo, types::Uuid};

use super::super::value::{Decimal, Value};
use super::numeric;

/// The day from which PostgreSQL counts, and its beginning in microseconds of Unix time.
pub(super) const EPOCH: Date = Date::constant(2000, 1, 1);
pub(super) const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Encodes a value; none stands for null.
///
/// # Errors
/// The value does not fit the type.
pub(super) fn parameter(value: &Value, info: &PgTypeInfo) -> Result<Option<Vec<u8>>, String> {
    if *value == Value::Null {
        return Ok(None);
    }
    match info.kind() {
        PgTypeKind::Domain(inner) => return parameter(value, inner),
        PgTypeKind::Array(element) => return array(value, info, element).map(Some),
        PgTypeKind::Enum(_) => return text(value, info).map(Some),
        _ => {}
    }
    scalar(value, info).map(Some)
}

fn scalar(value: &Value, info: &PgTypeInfo) -> Result<Vec<u8>, String> {
    Ok(match (info.name(), value) {
        ("BOOL", Value::Bool(value)) => vec![u8::from(*value)],
        ("INT2", Value::Integer(value)) => fits(i16::try_from(*value), info)?.to_be_bytes().into(),
        ("INT4", Value::Integer(value)) => fits(i32::try_from(*value), info)?.to_be_bytes().into(),
        ("OID", Value::Integer(value)) => fits(u32::try_from(*value), info)?.to_be_bytes().into(),
        ("INT8", Value::Integer(value)) => value.to_be_bytes().into(),
        ("FLOAT4", Value::Float(value)) => (*value as f32).to_be_bytes().into(),
        ("FLOAT4", Value::Integer(value)) => (*value as f32).to_be_bytes().into(),
        ("FLOAT8", Value::Float(value)) => value.to_be_bytes().into(),
        ("FLOAT8", Value::Integer(value)) => (*value as f64).to_be_bytes().into(),
        ("NUMERIC", Value::Integer(value)) => numeric::encode(&value.to_string())?,
        ("NUMERIC", Value::Float(value)) if value.is_finite() => numeric::encode(&value.to_string())?,
        ("NUMERIC", Value::Decimal(decimal)) => numeric::encode(&decimal.0)?,
        ("NUMERIC", Value::Text(text)) => numeric::encode(&parsed::<Decimal>(text, info)?.0)?,
        ("BYTEA", Value::Bytes(bytes)) => bytes.clone(),
        ("DATE", Value::Date(value)) => date(*value)?,
        ("DATE", Value::Text(text)) => date(parsed(text, info)?)?,
        ("TIME", Value::Time(value)) => time(*value)?,
        ("TIME", Value::Text(text)) => time(parsed(text, info)?)?,
        ("TIMESTAMP", Value::DateTime(value)) => datetime(*value)?,
        ("TIMESTAMP", Value::Text(text)) => datetime(parsed(text, info)?)?,
        ("TIMESTAMPTZ", Value::Timestamp(value)) => timestamp(*value)?,
        ("TIMESTAMPTZ", Value::Text(text)) => timestamp(parsed(text, info)?)?,
        ("UUID", Value::Uuid(uuid)) => uuid.as_bytes().to_vec(),
        ("UUID", Value::Text(text)) => parsed::<Uuid>(text, info)?.as_bytes().to_vec(),
        ("JSON", Value::Json(document)) => document.clone().into_bytes(),
        // The first byte is the version of the binary form.
        ("JSONB", Value::Json(document)) => [&[1], document.as_bytes()].concat(),
        ("TEXT" | "VARCHAR" | "CHAR" | "NAME" | "UNKNOWN" | "xml" | "citext", _) => text(value, info)?,
        _ => return Err(mismatch(value, info)),
    })
}

fn text(value: &Value, info: &PgTypeInfo) -> Result<Vec<u8>, String> {
    match value {
        Value::Text(text) => Ok(text.clone().into_bytes()),
        _ => Err(mismatch(value, info)),
    }
}

fn mismatch(value: &Value, info: &PgTypeInfo) -> String {
    let (kind, name) = (value.kind(), info.name());
    let cast = match value {
        Value::Bool(_) => "bool",
        Value::Integer(_) => "bigint",
        Value::Float(_) => "float8",
        Value::Decimal(_) => "numeric",
        Value::Bytes(_) => "bytea",
        Value::Date(_) => "date",
        Value::Time(_) => "time",
        Value::DateTime(_) => "timestamp",
        Value::Timestamp(_) => "timestamptz",
        Value::Json(_) => "jsonb",
        Value::Uuid(_) => "uuid",
        Value::Null | Value::Text(_) | Value::Array(_) => "text",
    };
    format!(
        "{kind} where the database takes it for {name}: say the type of the value in the statement, as in {{x}}::{cast}"
    )
}

fn fits<T, E>(value: Result<T, E>, info: &PgTypeInfo) -> Result<T, String> {
    value.map_err(|_| format!("out of range for {}", info.name()))
}

fn parsed<T: std::str::FromStr>(text: &str, info: &PgTypeInfo) -> Result<T, String> {
    text.parse().map_err(|_| format!("the text is no {}", info.name()))
}

fn date(date: Date) -> Result<Vec<u8>, String> {
    let days = date.duration_since(EPOCH).as_secs() / 86_400;
    Ok(i32::try_from(days).map_err(|_| "out of range".to_owned())?.to_be_bytes().into())
}

fn micros(micros: i128) -> Result<Vec<u8>, String> {
    Ok(i64::try_from(micros).map_err(|_| "out of range".to_owned())?.to_be_bytes().into())
}

fn time(time: Time) -> Result<Vec<u8>, String> {
    micros(time.duration_since(Time::midnight()).as_micros())
}

fn datetime(time: DateTime) -> Result<Vec<u8>, String> {
    micros(time.duration_since(EPOCH.to_datetime(Time::midnight())).as_micros())
}

fn timestamp(time: Timestamp) -> Result<Vec<u8>, String> {
    micros(i128::from(time.as_microsecond()) - i128::from(EPOCH_MICROS))
}

/// Encodes an array of one dimension, whose index begins with 1.
fn array(value: &Value, info: &PgTypeInfo, element: &PgTypeInfo) -> Result<Vec<u8>, String> {
    let Value::Array(values) = value else { return Err(mismatch(value, info)) };
    let Some(oid) = element.oid() else { return Err(mismatch(value, info)) };
    let size = |length: usize| i32::try_from(length).map_err(|_| "too long".to_owned());
    let has_nulls = values.contains(&Value::Null);
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&i32::from(!values.is_empty()).to_be_bytes());
    bytes.extend_from_slice(&i32::from(has_nulls).to_be_bytes());
    bytes.extend_from_slice(&oid.0.to_be_bytes());
    if values.is_empty() {
        return Ok(bytes);
    }
    bytes.extend_from_slice(&size(values.len())?.to_be_bytes());
    bytes.extend_from_slice(&1_i32.to_be_bytes());
    for value in values {
        match parameter(value, element)? {
            None => bytes.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(encoded) => {
                bytes.extend_from_slice(&size(encoded.len())?.to_be_bytes());
                bytes.extend_from_slice(&encoded);
            }
        }
    }
    Ok(bytes)
}
