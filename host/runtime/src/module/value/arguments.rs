//! Reads the arguments of a call, `{"args": [..], "kwargs": {..}}`, to one value per parameter, for `Signature::arguments`.
//! `read` reads the values.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use wasmtime::component::Val;

use super::read::{Path, Reading, Step, VALUES_MAX, Value, meant, position, shortened};
use super::shape::Shape;

/// The largest length of arguments as JSON, in bytes; longer ones are refused unread.
pub const JSON_BYTES_MAX: usize = 16 << 20;

/// The error for arguments that do not fit their function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{function}: {text}")]
pub struct ArgumentError {
    function: String,
    text: String,
}

pub(super) fn read(function: &str, parameters: &[(String, Shape)], json: &str) -> Result<Vec<Val>, ArgumentError> {
    let failed = |text: String| ArgumentError { function: function.to_owned(), text };
    if json.len() > JSON_BYTES_MAX {
        return Err(failed(format!("arguments of {} bytes, more than {JSON_BYTES_MAX}", json.len())));
    }
    let reading = Reading { values_left: Cell::new(VALUES_MAX), error: RefCell::default() };
    let mut values: Vec<Option<Val>> = vec![None; parameters.len()];
    let mut from = serde_json::Deserializer::from_str(json);
    let read = from.deserialize_any(Arguments { parameters, values: &mut values, reading: &reading });
    read.and_then(|()| from.end()).map_err(|error| {
        failed(reading.error.take().unwrap_or_else(|| format!("arguments cannot be read: {error}")))
    })?;
    let values = parameters.iter().zip(values).map(|((name, shape), value)| match (value, shape) {
        (Some(value), _) => Ok(value),
        (None, Shape::Option(_)) => Ok(Val::Option(None)),
        (None, shape) => Err(failed(format!("parameter `{name}` is missing; expected {shape}"))),
    });
    values.collect()
}

/// The reader of `{"args": [..], "kwargs": {..}}`.
struct Arguments<'a> {
    parameters: &'a [(String, Shape)],
    values: &'a mut [Option<Val>],
    reading: &'a Reading,
}

impl<'de> Visitor<'de> for Arguments<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{\"args\": [..], \"kwargs\": {..}}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { parameters, values, reading } = self;
        let mut seen = Vec::with_capacity(2);
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                return reading.fail(format!("`{key}` comes twice"));
            }
            match key.as_str() {
                "args" => map.next_value_seed(Positional(Arguments { parameters, values, reading }))?,
                "kwargs" => map.next_value_seed(Keyword(Arguments { parameters, values, reading }))?,
                _ => return reading.fail(format!("unknown key `{}` beside `args` and `kwargs`", shortened(&key))),
            }
            seen.push(key);
        }
        Ok(())
    }
}

struct Positional<'a>(Arguments<'a>);

impl<'de> DeserializeSeed<'de> for Positional<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Positional<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of positional arguments")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Arguments { parameters, values, reading } = self.0;
        for ((name, shape), slot) in parameters.iter().zip(values) {
            if slot.is_some() {
                // The argument was given by name already; a positional one for it is an error.
                let path = Path { outer: None, step: Step::Name(name) };
                return match seq.next_element_seed(Value { shape, path, reading })? {
                    Some(_) => reading.fail(format!("parameter `{name}` comes by position and by name")),
                    None => Ok(()),
                };
            }
            let path = Path { outer: None, step: Step::Name(name) };
            match seq.next_element_seed(Value { shape, path, reading })? {
                Some(value) => *slot = Some(value),
                None => return Ok(()),
            }
        }
        if seq.next_element::<IgnoredAny>()?.is_some() {
            let takes = parameters.len();
            return reading.fail(format!("too many positional arguments; it takes {takes}{}", named(parameters)));
        }
        Ok(())
    }
}

struct Keyword<'a>(Arguments<'a>);

impl<'de> DeserializeSeed<'de> for Keyword<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Keyword<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of named arguments")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Arguments { parameters, values, reading } = self.0;
        while let Some(key) = map.next_key::<String>()? {
            let Some(at) = position(parameters, &key) else {
                let meant = meant(&key, parameters);
                return reading.fail(format!("unknown parameter `{}`{meant}{}", shortened(&key), named(parameters)));
            };
            let (name, shape) = &parameters[at];
            if values[at].is_some() {
                return reading.fail(format!("parameter `{name}` comes twice"));
            }
            let path = Path { outer: None, step: Step::Name(name) };
            values[at] = Some(map.next_value_seed(Value { shape, path, reading })?);
        }
        Ok(())
    }
}

/// Returns the first names of the parameters in parentheses, for a message.
fn named(parameters: &[(String, Shape)]) -> String {
    const NAMES_MAX: usize = 20;
    let names: Vec<&str> = parameters.iter().take(NAMES_MAX).map(|(name, _)| name.as_str()).collect();
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}
