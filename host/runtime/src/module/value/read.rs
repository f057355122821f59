//! Reads one JSON value from text to a component value of a known type. `arguments` calls it for each argument. Any text leads
//! to a value of that type or to an error that names the place, the type that is expected and the value that came.

use std::cell::{Cell, RefCell};
use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use wasmtime::component::Val;

use super::shape::Shape;
use wasmcage_config::nearest;

/// The largest number of values in one call. Each takes some 40 bytes in the host, even one byte of a `list<u8>`.
pub(super) const VALUES_MAX: usize = 1 << 20;
/// The largest number of characters of a value that an error shows.
const SHOWN_CHARACTERS_MAX: usize = 40;
/// The largest integer up to which each integer is exact in a float, 2^53.
const FLOAT_INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The state of reading the arguments of one call.
pub(super) struct Reading {
    pub(super) values_left: Cell<usize>,
    /// The reason of a failure that is not due to malformed JSON; serde's error does not carry it.
    pub(super) error: RefCell<Option<String>>,
}

impl Reading {
    pub(super) fn fail<T, E: Error>(&self, text: String) -> Result<T, E> {
        *self.error.borrow_mut() = Some(text);
        Err(E::custom("unfit"))
    }

    fn take<E: Error>(&self, values: usize) -> Result<(), E> {
        match self.values_left.get().checked_sub(values) {
            Some(left) => {
                self.values_left.set(left);
                Ok(())
            }
            None => self.fail(format!("arguments of more than {VALUES_MAX} values")),
        }
    }
}

/// The place of a value in the arguments, from the inside out.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    pub(super) outer: Option<&'a Path<'a>>,
    pub(super) step: Step<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum Step<'a> {
    Name(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    fn name(&'a self, name: &'a str) -> Self {
        Self { outer: Some(self), step: Step::Name(name) }
    }

    fn index(&'a self, index: usize) -> Self {
        Self { outer: Some(self), step: Step::Index(index) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(outer) = self.outer {
            outer.fmt(f)?;
        }
        match (self.step, self.outer) {
            (Step::Name(name), None) => f.write_str(name),
            (Step::Name(name), Some(_)) => write!(f, ".{}", shortened(name)),
            (Step::Index(index), _) => write!(f, "[{index}]"),
        }
    }
}

/// The reader of one value of a known type.
pub(super) struct Value<'a> {
    pub(super) shape: &'a Shape,
    pub(super) path: Path<'a>,
    pub(super) reading: &'a Reading,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Val;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Val, D::Error> {
        self.reading.take(1)?;
        match self.shape {
            Shape::Option(_) => from.deserialize_option(self),
            _ => from.deserialize_any(self),
        }
    }
}

impl<'a> Value<'a> {
    fn unfit<T, E: Error>(&self, got: impl fmt::Display) -> Result<T, E> {
        self.reading.fail(format!("`{}`: expected {}, got {got}", self.path, self.shape))
    }

    /// Returns the reader for a value within this one.
    fn within<'b>(&'b self, shape: &'b Shape, path: Path<'b>) -> Value<'b> {
        Value { shape, path, reading: self.reading }
    }

    fn integer<E: Error>(&self, integer: i128) -> Result<Val, E> {
        match self.shape {
            Shape::Float32 => Ok(Val::Float32(integer as f32)),
            Shape::Float64 => Ok(Val::Float64(integer as f64)),
            shape if !is_integer(shape) => self.unfit(format_args!("the number {integer}")),
            shape => match in_range(shape, integer) {
                Some(value) => Ok(value),
                None => self.unfit(format_args!("the number {integer}, which is out of its range")),
            },
        }
    }

    fn float<E: Error>(&self, float: f64) -> Result<Val, E> {
        match self.shape {
            Shape::Float64 => Ok(Val::Float64(float)),
            Shape::Float32 if (float as f32).is_finite() => Ok(Val::Float32(float as f32)),
            Shape::Float32 => self.unfit(format_args!("the number {float:e}, which is out of its range")),
            // A float that is too large for an i128 becomes the largest i128, which is out of every range as well.
            shape if is_integer(shape) && float.fract() == 0.0 => match in_range(shape, float as i128) {
                Some(value) if float.abs() <= FLOAT_INTEGER_MAX => Ok(value),
                Some(_) => self.unfit(format_args!("the number {float:?}, which is not exact; write all its digits")),
                None => self.unfit(format_args!("the number {float:e}, which is out of its range")),
            },
            _ => self.unfit(format_args!("the number {float:?}")),
        }
    }

    /// Reads an object whose only entry is a case with its payload.
    fn case<'de, A: MapAccess<'de>, T>(
        &self,
        mut map: A,
        find: impl Fn(&str) -> Option<(&'a str, Option<&'a Shape>)>,
        make: impl FnOnce(&'a str, Option<Box<Val>>) -> T,
    ) -> Result<T, A::Error> {
        let Some(key) = map.next_key::<String>()? else { return self.unfit("an empty object") };
        let Some((name, shape)) = find(&key) else {
            return self.unfit(format_args!("an object with the key \"{}\"", shortened(&key)));
        };
        let payload = match shape {
            Some(shape) => Some(Box::new(map.next_value_seed(self.within(shape, self.path.name(name)))?)),
            None => {
                if map.next_value::<Option<serde::de::IgnoredAny>>()?.is_some() {
                    return self.unfit(format_args!("a payload for `{name}`, which has none"));
                }
                None
            }
        };
        match map.next_key::<serde::de::IgnoredAny>()? {
            Some(_) => self.unfit("an object of more than one key"),
            None => Ok(make(name, payload)),
        }
    }

    fn record<'de, A: MapAccess<'de>>(&self, fields: &[(String, Shape)], mut map: A) -> Result<Val, A::Error> {
        let mut values: Vec<Option<Val>> = vec![None; fields.len()];
        while let Some(key) = map.next_key::<String>()? {
            let Some(at) = position(fields, &key) else {
                return self.unfit(format_args!("the unknown field `{}`{}", shortened(&key), meant(&key, fields)));
            };
            let (name, shape) = &fields[at];
            if values[at].is_some() {
                return self.unfit(format_args!("the field `{name}` twice"));
            }
            values[at] = Some(map.next_value_seed(self.within(shape, self.path.name(name)))?);
        }
        let fields = fields.iter().zip(values).map(|((name, shape), value)| match (value, shape) {
            (Some(value), _) => Ok((name.clone(), value)),
            (None, Shape::Option(_)) => Ok((name.clone(), Val::Option(None))),
            (None, _) => self.unfit(format_args!("an object without the field `{name}`")),
        });
        fields.collect::<Result<_, _>>().map(Val::Record)
    }

    fn map<'de, A: MapAccess<'de>>(&self, key: &Shape, shape: &Shape, mut map: A) -> Result<Val, A::Error> {
        let mut pairs = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let at = self.within(key, self.path.name(&name));
            at.reading.take(1)?;
            let value = match key {
                Shape::String => Val::String(name.clone()),
                Shape::Bool => match name.parse() {
                    Ok(flag) => Val::Bool(flag),
                    Err(_) => return at.unfit(format_args!("the key {:?}", shortened(&name))),
                },
                Shape::Char => at.visit_str(&name)?,
                _ => match name.parse() {
                    Ok(integer) => at.integer(integer)?,
                    Err(_) => return at.unfit(format_args!("the key {:?}", shortened(&name))),
                },
            };
            pairs.push((value, map.next_value_seed(self.within(shape, self.path.name(&name)))?));
            if names.contains(&name) {
                return self.unfit(format_args!("the key {:?} twice", shortened(&name)));
            }
            names.insert(name);
        }
        Ok(Val::Map(pairs))
    }

    fn elements<'de, A: SeqAccess<'de>>(&self, shape: &Shape, mut seq: A) -> Result<Vec<Val>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self.within(shape, self.path.index(values.len())))? {
            values.push(value);
        }
        Ok(values)
    }

    fn tuple<'de, A: SeqAccess<'de>>(&self, shapes: &[Shape], mut seq: A) -> Result<Val, A::Error> {
        let mut values = Vec::with_capacity(shapes.len());
        for (index, shape) in shapes.iter().enumerate() {
            match seq.next_element_seed(self.within(shape, self.path.index(index)))? {
                Some(value) => values.push(value),
                None => return self.unfit(format_args!("an array of {index}")),
            }
        }
        match seq.next_element::<serde::de::IgnoredAny>()? {
            Some(_) => self.unfit(format_args!("an array of more than {}", shapes.len())),
            None => Ok(Val::Tuple(values)),
        }
    }

    fn flags<'de, A: SeqAccess<'de>>(&self, names: &[String], mut seq: A) -> Result<Val, A::Error> {
        let mut set: Vec<String> = Vec::new();
        for index in 0.. {
            let at = self.within(&Shape::String, self.path.index(index));
            let Some(Val::String(name)) = seq.next_element_seed(at)? else { break };
            match names.iter().find(|known| same_name(known, &name)) {
                Some(known) if set.contains(known) => {}
                Some(known) => set.push(known.clone()),
                None => return self.unfit(format_args!("the flag {:?}", shortened(&name))),
            }
        }
        Ok(Val::Flags(set))
    }
}

impl<'de, 'a> Visitor<'de> for Value<'a> {
    type Value = Val;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at `{}`", self.shape, self.path)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Val, E> {
        match self.shape {
            Shape::Bool => Ok(Val::Bool(flag)),
            _ => self.unfit(flag),
        }
    }

    fn visit_u64<E: Error>(self, integer: u64) -> Result<Val, E> {
        self.integer(integer.into())
    }

    fn visit_i64<E: Error>(self, integer: i64) -> Result<Val, E> {
        self.integer(integer.into())
    }

    fn visit_f64<E: Error>(self, float: f64) -> Result<Val, E> {
        self.float(float)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Val, E> {
        let mut characters = text.chars();
        match (self.shape, text) {
            (Shape::String, _) => return Ok(Val::String(text.to_owned())),
            (Shape::Char, _) => {
                if let (Some(character), None) = (characters.next(), characters.next()) {
                    return Ok(Val::Char(character));
                }
            }
            (Shape::Float32, _) => {
                if let Some(float) = not_finite(text) {
                    return Ok(Val::Float32(float as f32));
                }
            }
            (Shape::Float64, _) => {
                if let Some(float) = not_finite(text) {
                    return Ok(Val::Float64(float));
                }
            }
            (Shape::S64 | Shape::U64, _) => {
                if let Ok(integer) = text.parse() {
                    return self.integer(integer);
                }
            }
            (Shape::Bytes, _) => {
                self.reading.take(text.len() / 4 * 3)?;
                if let Ok(bytes) = BASE64.decode(text) {
                    return Ok(Val::List(bytes.into_iter().map(Val::U8).collect()));
                }
                return self.unfit(format_args!("the string {:?}, which is not base64", shortened(text)));
            }
            (Shape::Enum(names), _) => {
                if let Some(name) = names.iter().find(|name| same_name(name, text)) {
                    return Ok(Val::Enum(name.clone()));
                }
            }
            (Shape::Variant(cases), _) => match cases.iter().find(|(name, _)| same_name(name, text)) {
                Some((name, None)) => return Ok(Val::Variant(name.clone(), None)),
                Some((name, Some(_))) => return self.unfit(format_args!("`{name}` without its payload")),
                None => {}
            },
            (Shape::Result(None, _), "ok") => return Ok(Val::Result(Ok(None))),
            (Shape::Result(_, None), "err") => return Ok(Val::Result(Err(None))),
            _ => {}
        }
        self.unfit(format_args!("the string {:?}", shortened(text)))
    }

    fn visit_none<E: Error>(self) -> Result<Val, E> {
        Ok(Val::Option(None))
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Val, D::Error> {
        match self.shape {
            // The value is `{"some": ..}`, because `some(none)` would look like `none` otherwise.
            Shape::Option(inner) if matches!(**inner, Shape::Option(_)) => from.deserialize_any(self),
            Shape::Option(inner) => {
                let value = self.within(inner, self.path).deserialize(from)?;
                Ok(Val::Option(Some(Box::new(value))))
            }
            _ => from.deserialize_any(self),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<Val, E> {
        self.unfit("null")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Val, A::Error> {
        match self.shape {
            Shape::Bytes => self.elements(&Shape::U8, seq).map(Val::List),
            Shape::List(shape) => self.elements(shape, seq).map(Val::List),
            Shape::FixedLengthList(shape, length) => match self.elements(shape, seq)? {
                values if values.len() == *length as usize => Ok(Val::FixedLengthList(values)),
                values => self.unfit(format_args!("an array of {}", values.len())),
            },
            Shape::Tuple(shapes) => self.tuple(shapes, seq),
            Shape::Flags(names) => self.flags(names, seq),
            _ => self.unfit("an array"),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Val, A::Error> {
        match self.shape {
            Shape::Record(fields) => self.record(fields, map),
            Shape::Map(key, shape) => self.map(key, shape, map),
            Shape::Variant(cases) => {
                let find = |key: &str| {
                    let (name, shape) = cases.iter().find(|(name, _)| same_name(name, key))?;
                    Some((name.as_str(), shape.as_ref()))
                };
                self.case(map, find, |name, payload| Val::Variant(name.to_owned(), payload))
            }
            Shape::Result(ok, err) => {
                let find = |key: &str| match key {
                    "ok" => Some(("ok", ok.as_deref())),
                    "err" => Some(("err", err.as_deref())),
                    _ => None,
                };
                self.case(map, find, |name, payload| Val::Result(if name == "ok" { Ok(payload) } else { Err(payload) }))
            }
            Shape::Option(inner) if matches!(**inner, Shape::Option(_)) => {
                let find = |key: &str| (key == "some").then_some(("some", Some(inner.as_ref())));
                self.case(map, find, |_, payload| Val::Option(payload))
            }
            _ => self.unfit("an object"),
        }
    }
}

fn is_integer(shape: &Shape) -> bool {
    use Shape::{S8, S16, S32, S64, U8, U16, U32, U64};
    matches!(shape, S8 | U8 | S16 | U16 | S32 | U32 | S64 | U64)
}

fn in_range(shape: &Shape, integer: i128) -> Option<Val> {
    match shape {
        Shape::S8 => integer.try_into().ok().map(Val::S8),
        Shape::U8 => integer.try_into().ok().map(Val::U8),
        Shape::S16 => integer.try_into().ok().map(Val::S16),
        Shape::U16 => integer.try_into().ok().map(Val::U16),
        Shape::S32 => integer.try_into().ok().map(Val::S32),
        Shape::U32 => integer.try_into().ok().map(Val::U32),
        Shape::S64 => integer.try_into().ok().map(Val::S64),
        Shape::U64 => integer.try_into().ok().map(Val::U64),
        _ => None,
    }
}

fn not_finite(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "inf" => Some(f64::INFINITY),
        "-inf" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// Compares a name with the given one, in which `_` may stand for `-`, since Python and Rust write `max_size` for `max-size`.
fn same_name(name: &str, given: &str) -> bool {
    name.len() == given.len() && name.bytes().zip(given.bytes()).all(|(a, b)| a == b || (a == b'-' && b == b'_'))
}

pub(super) fn position(names: &[(String, Shape)], given: &str) -> Option<usize> {
    names.iter().position(|(name, _)| same_name(name, given))
}

pub(super) fn meant(given: &str, names: &[(String, Shape)]) -> String {
    let near = nearest(&given.replace('_', "-"), names.iter().map(|(name, _)| name.as_str()));
    near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}
