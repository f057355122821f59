//! Writes component values as JSON text, for `Signature::outcome`. The values are a guest's, so the length of the text is
//! limited here.

use std::collections::BTreeMap;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{Error, SerializeMap};
use serde::{Serialize, Serializer};
use wasmtime::component::Val;

use super::shape::Shape;

/// The largest length of a result as JSON, in bytes.
const JSON_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    #[error("the result is longer than {bytes_max} bytes of JSON")]
    TooLong { bytes_max: usize },
    /// The values are not of the function's type, which would be a bug of the host.
    #[error("the result does not fit {0}")]
    Mismatch(String),
}

pub(super) fn json(shape: &Shape, value: &Val) -> Result<String, ResultError> {
    json_within(shape, value, JSON_BYTES_MAX)
}

pub(super) fn json_within(shape: &Shape, value: &Val, bytes_max: usize) -> Result<String, ResultError> {
    let mut text = Bounded { bytes: Vec::new(), bytes_max };
    match serde_json::to_writer(&mut text, &Typed { shape, value }) {
        Ok(()) => Ok(String::from_utf8(text.bytes).expect("serde_json writes UTF-8")),
        Err(error) if error.is_io() => Err(ResultError::TooLong { bytes_max }),
        Err(_) => Err(ResultError::Mismatch(shape.to_string())),
    }
}

struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Typed<'a> {
    shape: &'a Shape,
    value: &'a Val,
}

impl Serialize for Typed<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match (self.shape, self.value) {
            (Shape::Bool, Val::Bool(value)) => to.serialize_bool(*value),
            (Shape::S8, Val::S8(value)) => to.serialize_i8(*value),
            (Shape::U8, Val::U8(value)) => to.serialize_u8(*value),
            (Shape::S16, Val::S16(value)) => to.serialize_i16(*value),
            (Shape::U16, Val::U16(value)) => to.serialize_u16(*value),
            (Shape::S32, Val::S32(value)) => to.serialize_i32(*value),
            (Shape::U32, Val::U32(value)) => to.serialize_u32(*value),
            (Shape::S64, Val::S64(value)) => to.serialize_i64(*value),
            (Shape::U64, Val::U64(value)) => to.serialize_u64(*value),
            (Shape::Float32, Val::Float32(value)) if value.is_finite() => to.serialize_f32(*value),
            (Shape::Float32, Val::Float32(value)) => to.serialize_str(not_finite((*value).into())),
            (Shape::Float64, Val::Float64(value)) if value.is_finite() => to.serialize_f64(*value),
            (Shape::Float64, Val::Float64(value)) => to.serialize_str(not_finite(*value)),
            (Shape::Char, Val::Char(value)) => to.serialize_char(*value),
            (Shape::String, Val::String(value)) => to.serialize_str(value),
            (Shape::Bytes, Val::List(values)) => to.serialize_str(&base64(values).map_err(S::Error::custom)?),
            (Shape::List(shape), Val::List(values))
            | (Shape::FixedLengthList(shape, _), Val::FixedLengthList(values)) => {
                to.collect_seq(values.iter().map(|value| Typed { shape, value }))
            }
            (Shape::Map(key, shape), Val::Map(pairs)) => map(key, shape, pairs, to),
            (Shape::Record(fields), Val::Record(values)) if fields.len() == values.len() => {
                let fields = fields.iter().zip(values);
                to.collect_map(fields.map(|((name, shape), (_, value))| (name, Typed { shape, value })))
            }
            (Shape::Tuple(shapes), Val::Tuple(values)) if shapes.len() == values.len() => {
                to.collect_seq(shapes.iter().zip(values).map(|(shape, value)| Typed { shape, value }))
            }
            (Shape::Variant(cases), Val::Variant(name, value)) => {
                let case = cases.iter().find(|(case, _)| case == name).map(|(_, shape)| shape.as_ref());
                match (case, value) {
                    (Some(None), None) => to.serialize_str(name),
                    (Some(Some(shape)), Some(value)) => single(name, Some((shape, value)), to),
                    _ => Err(S::Error::custom("no such case")),
                }
            }
            (Shape::Enum(_), Val::Enum(name)) => to.serialize_str(name),
            (Shape::Option(_), Val::Option(None)) => to.serialize_unit(),
            (Shape::Option(shape), Val::Option(Some(value))) => match **shape {
                Shape::Option(_) => single("some", Some((shape, value)), to),
                _ => Typed { shape, value }.serialize(to),
            },
            (Shape::Result(shape, _), Val::Result(Ok(value))) => {
                single("ok", shape.as_deref().zip(value.as_deref()), to)
            }
            (Shape::Result(_, shape), Val::Result(Err(value))) => {
                single("err", shape.as_deref().zip(value.as_deref()), to)
            }
            (Shape::Flags(_), Val::Flags(names)) => to.collect_seq(names),
            _ => Err(S::Error::custom("value of another type")),
        }
    }
}

/// Writes an object of one key.
fn single<S: Serializer>(key: &str, value: Option<(&Shape, &Val)>, to: S) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(Some(1))?;
    map.serialize_entry(key, &value.map(|(shape, value)| Typed { shape, value }))?;
    map.end()
}

/// Writes a map as an object. If a key comes twice, its last value counts, as in wasmtime.
fn map<S: Serializer>(key: &Shape, shape: &Shape, pairs: &[(Val, Val)], to: S) -> Result<S::Ok, S::Error> {
    let mut named = BTreeMap::new();
    for (name, value) in pairs {
        // A key that is no string is written as its JSON within a string: `"1"`, `"true"`.
        let name = match name {
            Val::String(name) => name.clone(),
            Val::Char(name) => name.to_string(),
            name => serde_json::to_string(&Typed { shape: key, value: name }).map_err(S::Error::custom)?,
        };
        named.insert(name, Typed { shape, value });
    }
    to.collect_map(named)
}

fn base64(values: &[Val]) -> Result<String, &'static str> {
    let byte = |value: &Val| match value {
        Val::U8(byte) => Ok(*byte),
        _ => Err("not a byte"),
    };
    Ok(STANDARD.encode(values.iter().map(byte).collect::<Result<Vec<u8>, _>>()?))
}

fn not_finite(value: f64) -> &'static str {
    match value {
        f64::INFINITY => "inf",
        f64::NEG_INFINITY => "-inf",
        _ => "NaN",
    }
}
