//! Values of parameters and cells.

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserialize, Deserializer, Error as _, IntoDeserializer, MapAccess, Unexpected, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::base64;

/// A value of a database. Dates, and numbers without a type in Rust's standard library, are texts with full precision.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// `1.10`
    Decimal(String),
    /// `2026-11-21`
    Date(String),
    /// `10:00:00.5`
    Time(String),
    /// A date and time without zone: `2026-11-21T10:00:00.123456`
    DateTime(String),
    /// A moment: `2026-11-21T10:00:00.123456Z`
    Timestamp(String),
    Json(serde_json::Value),
    Uuid(String),
    /// An array of PostgreSQL.
    Array(Vec<Value>),
}

impl Value {
    pub fn is_null(&self) -> bool {
        *self == Self::Null
    }
}

macro_rules! value_from {
    ($($type:ty => $value:ident: $into:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($value: $type) -> Self {
                $into
            }
        }
    )*};
}
value_from! {
    bool => value: Self::Bool(value);
    i8 => value: Self::Integer(value.into());
    i16 => value: Self::Integer(value.into());
    i32 => value: Self::Integer(value.into());
    i64 => value: Self::Integer(value);
    u8 => value: Self::Integer(value.into());
    u16 => value: Self::Integer(value.into());
    u32 => value: Self::Integer(value.into());
    u64 => value: i64::try_from(value).map_or_else(|_| Self::Decimal(value.to_string()), Self::Integer);
    usize => value: Self::from(value as u64);
    f32 => value: Self::Float(value.into());
    f64 => value: Self::Float(value);
    &str => value: Self::Text(value.to_owned());
    &String => value: Self::Text(value.clone());
    String => value: Self::Text(value);
    &[u8] => value: Self::Bytes(value.to_vec());
    Vec<u8> => value: Self::Bytes(value);
    serde_json::Value => value: Self::Json(value);
    Vec<Value> => value: Self::Array(value);
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (tag, text) = match self {
            Self::Null => return serializer.serialize_unit(),
            Self::Bool(value) => return serializer.serialize_bool(*value),
            Self::Integer(value) => return serializer.serialize_i64(*value),
            Self::Float(value) if value.is_finite() => return serializer.serialize_f64(*value),
            Self::Float(value) if value.is_nan() => ("float", "NaN"),
            Self::Float(value) => ("float", if *value > 0.0 { "Infinity" } else { "-Infinity" }),
            Self::Text(text) => return serializer.serialize_str(text),
            Self::Bytes(bytes) => return tagged(serializer, "bytes", &base64::encode(bytes)),
            Self::Decimal(text) => ("decimal", text.as_str()),
            Self::Date(text) => ("date", text.as_str()),
            Self::Time(text) => ("time", text.as_str()),
            Self::DateTime(text) => ("datetime", text.as_str()),
            Self::Timestamp(text) => ("timestamp", text.as_str()),
            Self::Json(document) => return tagged(serializer, "json", document),
            Self::Uuid(text) => ("uuid", text.as_str()),
            Self::Array(values) => return tagged(serializer, "array", values),
        };
        tagged(serializer, tag, text)
    }
}

fn tagged<S: Serializer>(serializer: S, tag: &str, value: &(impl Serialize + ?Sized)) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(tag, value)?;
    map.end()
}

pub(super) fn pairs<S: Serializer>(pairs: &[(String, Value)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of a database")
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
        Ok(value.into())
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

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let tag: String = map.next_key()?.ok_or_else(|| A::Error::custom("an empty object is no value"))?;
        Ok(match tag.as_str() {
            "json" => Value::Json(map.next_value()?),
            "array" => Value::Array(map.next_value()?),
            "decimal" => Value::Decimal(map.next_value()?),
            "date" => Value::Date(map.next_value()?),
            "time" => Value::Time(map.next_value()?),
            "datetime" => Value::DateTime(map.next_value()?),
            "timestamp" => Value::Timestamp(map.next_value()?),
            "uuid" => Value::Uuid(map.next_value()?),
            "bytes" => {
                let text: String = map.next_value()?;
                let bytes = base64::decode(&text);
                Value::Bytes(bytes.ok_or_else(|| A::Error::invalid_value(Unexpected::Str(&text), &"base64"))?)
            }
            "float" => Value::Float(match map.next_value::<String>()?.as_str() {
                "Infinity" => f64::INFINITY,
                "-Infinity" => f64::NEG_INFINITY,
                _ => f64::NAN,
            }),
            other => return Err(A::Error::custom(format_args!("{other:?} is no kind of value"))),
        })
    }
}

/// Deserializes a value into a type of the module.
pub(super) struct ValueDeserializer(Value);

pub(super) type TypeError = serde::de::value::Error;

impl IntoDeserializer<'_> for ValueDeserializer {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for ValueDeserializer {
    type Error = TypeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Integer(value) => visitor.visit_i64(value),
            Value::Float(value) => visitor.visit_f64(value),
            Value::Text(text)
            | Value::Decimal(text)
            | Value::Date(text)
            | Value::Time(text)
            | Value::DateTime(text)
            | Value::Timestamp(text)
            | Value::Uuid(text) => visitor.visit_string(text),
            Value::Bytes(bytes) => visitor.visit_seq(SeqDeserializer::new(bytes.into_iter())),
            Value::Array(values) => visitor.visit_seq(SeqDeserializer::new(values.into_iter().map(ValueDeserializer))),
            Value::Json(document) => document.deserialize_any(visitor).map_err(TypeError::custom),
        }
    }

    /// Databases without a boolean type use 0 and 1.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.0 {
            Value::Integer(value @ (0 | 1)) => visitor.visit_bool(value == 1),
            value => ValueDeserializer(value).deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            value => visitor.visit_some(ValueDeserializer(value)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        match self.0 {
            Value::Json(document) => document.deserialize_newtype_struct(name, visitor).map_err(TypeError::custom),
            value => visitor.visit_newtype_struct(ValueDeserializer(value)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        match self.0 {
            Value::Text(text) => visitor.visit_enum(text.into_deserializer()),
            Value::Json(document) => document.deserialize_enum(name, variants, visitor).map_err(TypeError::custom),
            value => ValueDeserializer(value).deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct
        map struct identifier ignored_any
    }
}

/// Deserializes a row into a struct by its columns' names, into a tuple by their order, or, if it has one column, into a single
/// value.
pub(super) struct RowDeserializer<'a> {
    pub(super) columns: &'a [String],
    pub(super) row: Vec<Value>,
}

impl RowDeserializer<'_> {
    fn only(mut self) -> Result<ValueDeserializer, TypeError> {
        match (self.row.len(), self.row.pop()) {
            (1, Some(value)) => Ok(ValueDeserializer(value)),
            (count, _) => Err(TypeError::custom(format_args!("a row of {count} columns where one value was expected"))),
        }
    }
}

macro_rules! only {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
            self.only()?.$method(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for RowDeserializer<'_> {
    type Error = TypeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        let columns = self.columns.iter().map(String::as_str);
        visitor.visit_map(MapDeserializer::new(columns.zip(self.row.into_iter().map(ValueDeserializer))))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        visitor.visit_seq(SeqDeserializer::new(self.row.into_iter().map(ValueDeserializer)))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, TypeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, TypeError> {
        visitor.visit_newtype_struct(self)
    }

    only! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64 deserialize_char
        deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf deserialize_option deserialize_unit
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        self.only()?.deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! { unit_struct map struct identifier ignored_any }
}
