//! Reads the values of parameters, and writes cells, as JSON. The table of types is in `lib.rs`.

use std::fmt::{self, Display, Write as _};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use sqlx::types::Uuid;

/// The most digits of a decimal number; PostgreSQL's own limit is 147,455.
const DECIMAL_DIGITS_MAX: usize = 20_000;

/// The value of a parameter, checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    Decimal(Decimal),
    Bytes(Vec<u8>),
    Date(Date),
    Time(Time),
    DateTime(DateTime),
    Timestamp(Timestamp),
    /// A JSON document as text.
    Json(String),
    Uuid(Uuid),
    Array(Vec<Value>),
}

/// The text of a decimal number: an optional sign, digits, and optionally a point and more digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decimal(pub(super) String);

impl FromStr for Decimal {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let fits = digits.len() <= DECIMAL_DIGITS_MAX && all_digits(whole) && all_digits(fraction);
        fits.then(|| Self(text.trim_start_matches('+').to_owned())).ok_or(())
    }
}

impl Value {
    /// The name of the type, for error texts.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a bool",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Text(_) => "a text",
            Self::Decimal(_) => "a decimal",
            Self::Bytes(_) => "bytes",
            Self::Date(_) => "a date",
            Self::Time(_) => "a time",
            Self::DateTime(_) => "a datetime",
            Self::Timestamp(_) => "a timestamp",
            Self::Json(_) => "JSON",
            Self::Uuid(_) => "a uuid",
            Self::Array(_) => "an array",
        }
    }

    fn tagged(tag: &str, text: &str) -> Option<Self> {
        Some(match tag {
            "decimal" => Self::Decimal(text.parse().ok()?),
            "bytes" => Self::Bytes(STANDARD.decode(text).ok()?),
            "date" => Self::Date(text.parse().ok()?),
            "time" => Self::Time(text.parse().ok()?),
            "datetime" => Self::DateTime(text.parse().ok()?),
            "timestamp" => Self::Timestamp(text.parse().ok()?),
            "uuid" => Self::Uuid(text.parse().ok()?),
            "float" => Self::Float(match text {
                "NaN" => f64::NAN,
                "Infinity" => f64::INFINITY,
                "-Infinity" => f64::NEG_INFINITY,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

const TAGS: &[&str] = &["decimal", "bytes", "date", "time", "datetime", "timestamp", "uuid", "float", "json", "array"];

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a bool, a number, a text, or an object such as {\"decimal\": \"1.10\"}")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or_else(|_| Value::Decimal(Decimal(value.to_string())), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::custom("a list is no value: write {\"json\": [..]}, or {\"array\": [..]} for PostgreSQL"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let Some(tag) = map.next_key::<String>()? else { return Err(A::Error::custom("an empty object is no value")) };
        let value = match tag.as_str() {
            "json" => Value::Json(map.next_value::<Box<RawValue>>()?.get().to_owned()),
            "array" => Value::Array(map.next_value()?),
            tag if TAGS.contains(&tag) => {
                let text: String = map.next_value()?;
                Value::tagged(tag, &text).ok_or_else(|| A::Error::custom(format!("{text:?} is no {tag}")))?
            }
            tag => return Err(A::Error::unknown_variant(tag, TAGS)),
        };
        match map.next_key::<String>()? {
            None => Ok(value),
            Some(more) => Err(A::Error::custom(format!("{more:?} beside {tag:?}: a value has one key"))),
        }
    }
}

/// Writes one cell as JSON.
pub(super) struct CellWriter<'a>(pub(super) &'a mut Vec<u8>);

impl CellWriter<'_> {
    pub(super) fn null(self) {
        self.0.extend_from_slice(b"null");
    }

    pub(super) fn bool(self, value: bool) {
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
    }

    pub(super) fn integer(self, value: i64) {
        self.display(value);
    }

    pub(super) fn unsigned(self, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.integer(value),
            Err(_) => self.tagged("decimal", value),
        }
    }

    pub(super) fn float(self, value: f64) {
        self.number(value.is_finite(), value, || serde_json::to_vec(&value));
    }

    /// Writes as few digits as identify a float of 32 bits.
    pub(super) fn float32(self, value: f32) {
        self.number(value.is_finite(), f64::from(value), || serde_json::to_vec(&value));
    }

    fn number(self, finite: bool, value: f64, json: impl FnOnce() -> serde_json::Result<Vec<u8>>) {
        match json() {
            Ok(json) if finite => self.0.extend_from_slice(&json),
            _ if value.is_nan() => self.tagged("float", "NaN"),
            _ if value > 0.0 => self.tagged("float", "Infinity"),
            _ => self.tagged("float", "-Infinity"),
        }
    }

    pub(super) fn text(self, text: &str) {
        // Writing into memory cannot fail.
        let _ = serde_json::to_writer(self.0, text);
    }

    /// Writes `{"tag":"value"}`. The value must not need escapes.
    pub(super) fn tagged(self, tag: &str, value: impl Display) {
        self.display(format_args!("{{\"{tag}\":\"{value}\"}}"));
    }

    pub(super) fn bytes(self, bytes: &[u8]) {
        self.tagged("bytes", base64::display::Base64Display::new(bytes, &STANDARD));
    }

    /// Writes a JSON document; a malformed one is written as text.
    pub(super) fn json(self, document: &str) {
        match serde_json::from_str::<&RawValue>(document) {
            Ok(document) => self.display(format_args!("{{\"json\":{}}}", document.get())),
            Err(_) => self.text(document),
        }
    }

    fn display(self, value: impl Display) {
        struct Utf8<'a>(&'a mut Vec<u8>);
        impl fmt::Write for Utf8<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.extend_from_slice(text.as_bytes());
                Ok(())
            }
        }
        // Writing into memory cannot fail.
        let _ = write!(Utf8(self.0), "{value}");
    }
}
