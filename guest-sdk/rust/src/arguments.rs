//! Reads the arguments of a call, `{"args": [..], "kwargs": {..}}`, for a function of a `#[service]`. Arguments that do not fit
//! are an error that names the function and the parameter, and says what was expected and what was received.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::Error as ValueError;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::value::RawValue;

use crate::bindings::imports::wasmcage::cage::types::Payload;
use crate::error::{Error, Result};

/// Longer error texts are cut, because they quote what was received.
const ERROR_CHARACTERS_MAX: usize = 300;

/// One parameter of a function, as its author wrote it.
#[doc(hidden)]
pub struct Parameter {
    pub name: &'static str,
    pub kind: &'static str,
}

/// The arguments of a call, in the order of the parameters and not yet converted.
#[doc(hidden)]
pub struct ParsedArguments<'a> {
    function: &'static str,
    parameters: &'static [Parameter],
    values: Vec<Option<&'a RawValue>>,
}

impl<'a> ParsedArguments<'a> {
    pub fn parse(function: &'static str, parameters: &'static [Parameter], payload: &'a Payload) -> Result<Self> {
        let Payload::Json(json) = payload else {
            return Err(mismatch(function, format_args!("takes JSON arguments, but bytes came")));
        };
        let came: RawArguments<'a> = serde_json::from_str(json)
            .map_err(|error| mismatch(function, format_args!("the arguments are not valid: {error}")))?;
        if came.args.len() > parameters.len() {
            let (most, came, names) = (parameters.len(), came.args.len(), Names(parameters));
            return Err(mismatch(function, format_args!("takes at most {most} arguments{names}, but {came} came")));
        }
        let mut values: Vec<_> = came.args.into_iter().map(Some).collect();
        values.resize(parameters.len(), None);
        for (name, value) in came.kwargs.0 {
            let Some(index) = parameters.iter().position(|parameter| parameter.name == name) else {
                let names = Names(parameters);
                return Err(mismatch(function, format_args!("there is no parameter {name}{names}")));
            };
            if values[index].replace(value).is_some() {
                return Err(mismatch(function, format_args!("the parameter {name} came twice")));
            }
        }
        Ok(Self { function, parameters, values })
    }

    /// Converts the value of the parameter at `index` to a `T`.
    pub fn take<T: DeserializeOwned>(&mut self, index: usize) -> Result<T> {
        let Parameter { name, kind } = self.parameters[index];
        let Some(value) = self.values[index].take() else {
            // Only an `Option` may be missing.
            return T::deserialize(Missing)
                .map_err(|_| mismatch(self.function, format_args!("the parameter {name} ({kind}) is missing")));
        };
        serde_json::from_str(value.get()).map_err(|error| {
            let mut text = error.to_string();
            // A position within a single word is useless.
            if !value.get().starts_with(['[', '{'])
                && let Some(at) = text.rfind(" at line ")
            {
                text.truncate(at);
            }
            mismatch(self.function, format_args!("the parameter {name} ({kind}) does not fit: {text}"))
        })
    }
}

#[inline(never)]
fn mismatch(function: &str, text: fmt::Arguments<'_>) -> Error {
    let mut text = format!("{function}: {text}");
    if let Some((at, _)) = text.char_indices().nth(ERROR_CHARACTERS_MAX) {
        text.truncate(at);
        text.push_str("..");
    }
    Error::BadArguments(text)
}

/// ` (a, b)`, or nothing when there are no parameters.
struct Names(&'static [Parameter]);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, parameter) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { " (" } else { ", " }, parameter.name)?;
        }
        f.write_str(if self.0.is_empty() { "" } else { ")" })
    }
}

/// The arguments as they are encoded.
#[derive(Default)]
struct RawArguments<'a> {
    args: Vec<&'a RawValue>,
    kwargs: Pairs<'a>,
}

// Written by hand, because the derived implementation makes the component larger.
impl<'de: 'a, 'a> Deserialize<'de> for RawArguments<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ArgumentsVisitor;
        impl<'de> Visitor<'de> for ArgumentsVisitor {
            type Value = RawArguments<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with args and kwargs")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut came = RawArguments::default();
                while let Some(key) = map.next_key::<Cow<'_, str>>()? {
                    match &*key {
                        "args" => came.args = map.next_value()?,
                        "kwargs" => came.kwargs = map.next_value()?,
                        other => return Err(serde::de::Error::unknown_field(other, &["args", "kwargs"])),
                    }
                }
                Ok(came)
            }
        }
        deserializer.deserialize_map(ArgumentsVisitor)
    }
}

/// A JSON object with its keys in the order received, repeated ones included, and its values not yet parsed.
#[derive(Default)]
pub(crate) struct Pairs<'a>(pub(crate) Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

/// Deserializer of a missing value: an `Option` becomes `None`, all other types fail.
struct Missing;

impl<'de> Deserializer<'de> for Missing {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, ValueError> {
        Err(serde::de::Error::custom("missing"))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_none()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: &[Parameter] = &[
        Parameter { name: "a", kind: "i64" },
        Parameter { name: "b", kind: "String" },
        Parameter { name: "c", kind: "Option<Vec<u8>>" },
    ];

    #[track_caller]
    fn check(json: &str, expected: Result<(i64, &str, Option<Vec<u8>>), &str>) {
        let payload = Payload::Json(json.into());
        let read = || -> Result<(i64, String, Option<Vec<u8>>)> {
            let mut arguments = ParsedArguments::parse("f", PARAMETERS, &payload)?;
            Ok((arguments.take(0)?, arguments.take(1)?, arguments.take(2)?))
        };
        let expected = expected.map(|(a, b, c)| (a, b.to_string(), c)).map_err(Error::bad_arguments);
        assert_eq!(read(), expected);
    }

    #[test]
    fn arguments_are_positional_or_named() {
        check(r#"{"args": [1, "x", [2]]}"#, Ok((1, "x", Some(vec![2]))));
        check(r#"{"args": [1, "x"]}"#, Ok((1, "x", None)));
        check(r#"{"args": [1, "x", null], "kwargs": {}}"#, Ok((1, "x", None)));
        check(r#"{"kwargs": {"b": "\u00e4\n", "a": -1}}"#, Ok((-1, "ä\n", None)));
        check(r#"{"args": [1], "kwargs": {"\u0062": "x"}}"#, Ok((1, "x", None)));
    }

    #[test]
    fn misfits_say_what_was_expected_and_what_came() {
        check("{}", Err("f: the parameter a (i64) is missing"));
        check(r#"{"args": [1]}"#, Err("f: the parameter b (String) is missing"));
        check(r#"{"args": [1, "x", null, 4]}"#, Err("f: takes at most 3 arguments (a, b, c), but 4 came"));
        check(r#"{"kwargs": {"d": 1}}"#, Err("f: there is no parameter d (a, b, c)"));
        check(r#"{"args": [1], "kwargs": {"a": 1}}"#, Err("f: the parameter a came twice"));
        check(r#"{"kwargs": {"a": 1, "a": 2}}"#, Err("f: the parameter a came twice"));
        check(
            r#"{"args": ["1", "x"]}"#,
            Err("f: the parameter a (i64) does not fit: invalid type: string \"1\", expected i64"),
        );
        check(
            r#"{"args": [1e30, "x"]}"#,
            Err("f: the parameter a (i64) does not fit: invalid type: floating point `1e+30`, expected i64"),
        );
        check(
            r#"{"args": [1, "x", [1, 256]]}"#,
            Err("f: the parameter c (Option<Vec<u8>>) does not fit: invalid value: integer `256`, expected u8 \
                 at line 1 column 7"),
        );
        check(
            "[1]",
            Err("f: the arguments are not valid: invalid type: sequence, expected an object with args and kwargs \
                 at line 1 column 0"),
        );
        check(
            r#"{"arg": []}"#,
            Err("f: the arguments are not valid: unknown field `arg`, expected `args` or `kwargs` \
                 at line 1 column 6"),
        );
        check("", Err("f: the arguments are not valid: EOF while parsing a value at line 1 column 0"));
    }

    #[test]
    fn bytes_and_endless_quotes_are_refused() {
        let error = ParsedArguments::parse("f", PARAMETERS, &Payload::Bytes(vec![1])).err().unwrap();
        assert_eq!(error, Error::bad_arguments("f: takes JSON arguments, but bytes came"));
        let json = Payload::Json(format!(r#"{{"args": ["{}"]}}"#, "ä".repeat(10_000)));
        let error = ParsedArguments::parse("f", PARAMETERS, &json).unwrap().take::<i64>(0).unwrap_err();
        assert_eq!(error.text().chars().count(), ERROR_CHARACTERS_MAX + 2);
    }
}
