//! The codec of component values for calls through a binding that leave the process. Both sides know the function's type, so
//! only the values are written; the fingerprint tells whether both have the same type. The input is not trusted.
//!
//! The bytes are the values of all parameters in their order, or that of the result, and nothing after them:
//!
//! | WIT | bytes |
//! |---|---|
//! | `bool` | one byte, 0 or 1 |
//! | `u8` .. `s64`, `f32`, `f64` | 1, 2, 4 or 8, little-endian; every bit pattern of a float |
//! | `char` | its scalar value as `u32` |
//! | `string` | its length in bytes as a number, then UTF-8 |
//! | `list<u8>` | its length as a number, then the bytes |
//! | `list<T>`, `map<K, V>` | how many there are as a number, then each; a key comes before its value |
//! | `list<T, N>`, `tuple<..>`, `record` | each, in the type's order |
//! | `variant`, `enum` | the case's index as a number, then the payload if it has one |
//! | `flags` | a bit for each, the first in the lowest of the first byte; unused bits are 0 |
//! | `option<T>` | 0; or 1, then the value |
//! | `result<T, E>` | 0 for ok or 1 for err, then the payload if it has one |
//!
//! A number is unsigned LEB128 of 1 to 5 bytes, at most 2^32 - 1, and no longer than needed.
//!
//! Values nest no deeper than their type does, which `Shape` limits. At most `VALUES_MAX` values of one call are read. Long
//! names of fields and cases count as further values, and so does each byte of a `list<u8>` that is not read as `Item::Bytes`.

use bytes::{BufMut, Bytes, BytesMut};
use wasmtime::component::Val;

use super::carried::Item;
use super::read::VALUES_MAX;
use super::shape::Shape;

/// A name counts as one more value for each so many bytes.
const NAME_BYTES_PER_VALUE: usize = 32;
/// The largest length of a number, in bytes.
const NUMBER_BYTES_MAX: usize = 5;

/// The error for bytes that are not values of the type that they are read as.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the bytes end early")]
    Short,
    #[error("{0} bytes are left over")]
    Long(usize),
    #[error("byte {at}: {what}")]
    Value { at: usize, what: &'static str },
    #[error(
        "more than {VALUES_MAX} values; each byte of a list<u8> is one, where that is not a parameter or result itself"
    )]
    TooMany,
    #[error("a result is expected, and arguments came, or the other way round")]
    Side,
}

/// Encodes values. They must be of these types, which wasmtime has checked.
pub(super) fn encode(shapes: &[&Shape], items: &[Item]) -> Bytes {
    let mut out = BytesMut::new();
    for (shape, item) in shapes.iter().zip(items) {
        put_item(&mut out, shape, item);
    }
    out.freeze()
}

/// Decodes values. With `fast`, bytes become `Item::Bytes` where the type permits it, without being copied.
pub(super) fn decode(shapes: &[&Shape], bytes: &Bytes, fast: bool) -> Result<Vec<Item>, Malformed> {
    let mut reader = Reader { bytes, at: 0, values_left: VALUES_MAX };
    let read = |shape: &&Shape| match fast && Item::is_fast(shape) {
        true => reader.item(shape),
        false => reader.val(shape).map(Item::Val),
    };
    let items = shapes.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    match bytes.len() - reader.at {
        0 => Ok(items),
        more => Err(Malformed::Long(more)),
    }
}

/// Checks that there are no more values than may go through a binding, counted as `decode` does.
pub(super) fn check_bounds(items: &[Item]) -> Result<(), Malformed> {
    let mut left = VALUES_MAX;
    items.iter().try_for_each(|item| count_item(item, &mut left)).ok_or(Malformed::TooMany)
}

fn count_item(item: &Item, left: &mut usize) -> Option<()> {
    match item {
        Item::Val(value) => count(value, left),
        Item::Bytes(_) => Some(()),
        Item::Some(item) | Item::Ok(item) => count_item(item, left),
    }
}

fn count(value: &Val, left: &mut usize) -> Option<()> {
    *left = left.checked_sub(1)?;
    let mut name = |name: &str, values: usize| {
        *left = left.checked_sub(values + cost(name))?;
        Some(())
    };
    match value {
        Val::List(values) if matches!(values.first(), Some(Val::U8(_))) => {
            *left = left.checked_sub(values.len())?;
            Some(())
        }
        Val::List(values) | Val::FixedLengthList(values) | Val::Tuple(values) => {
            values.iter().try_for_each(|value| count(value, left))
        }
        Val::Map(pairs) => pairs.iter().try_for_each(|(key, value)| {
            count(key, left)?;
            count(value, left)
        }),
        Val::Record(fields) => {
            fields.iter().try_for_each(|(field, _)| name(field, 0))?;
            fields.iter().try_for_each(|(_, value)| count(value, left))
        }
        Val::Variant(case, value) => {
            name(case, 0)?;
            value.as_ref().map_or(Some(()), |value| count(value, left))
        }
        Val::Enum(case) => name(case, 0),
        Val::Flags(names) => names.iter().try_for_each(|flag| name(flag, 1)),
        Val::Option(value) | Val::Result(Ok(value) | Err(value)) => {
            value.as_ref().map_or(Some(()), |value| count(value, left))
        }
        _ => Some(()),
    }
}

fn cost(name: &str) -> usize {
    name.len() / NAME_BYTES_PER_VALUE
}

fn put_item(out: &mut BytesMut, shape: &Shape, item: &Item) {
    match (shape, item) {
        (shape, Item::Val(value)) => put(out, shape, value),
        (Shape::Bytes, Item::Bytes(bytes)) => put_bytes(out, bytes),
        (Shape::Option(shape), Item::Some(item)) => {
            out.put_u8(1);
            put_item(out, shape, item);
        }
        (Shape::Result(Some(shape), _), Item::Ok(item)) => {
            out.put_u8(0);
            put_item(out, shape, item);
        }
        (shape, Item::Bytes(_) | Item::Some(_) | Item::Ok(_)) => foreign(shape),
    }
}

fn put(out: &mut BytesMut, shape: &Shape, value: &Val) {
    match (shape, value) {
        (Shape::Bool, Val::Bool(value)) => out.put_u8((*value).into()),
        (Shape::S8, Val::S8(value)) => out.put_i8(*value),
        (Shape::U8, Val::U8(value)) => out.put_u8(*value),
        (Shape::S16, Val::S16(value)) => out.put_i16_le(*value),
        (Shape::U16, Val::U16(value)) => out.put_u16_le(*value),
        (Shape::S32, Val::S32(value)) => out.put_i32_le(*value),
        (Shape::U32, Val::U32(value)) => out.put_u32_le(*value),
        (Shape::S64, Val::S64(value)) => out.put_i64_le(*value),
        (Shape::U64, Val::U64(value)) => out.put_u64_le(*value),
        (Shape::Float32, Val::Float32(value)) => out.put_f32_le(*value),
        (Shape::Float64, Val::Float64(value)) => out.put_f64_le(*value),
        (Shape::Char, Val::Char(value)) => out.put_u32_le((*value).into()),
        (Shape::String, Val::String(value)) => put_bytes(out, value.as_bytes()),
        (Shape::Bytes, Val::List(values)) => {
            put_number(out, values.len());
            out.extend(values.iter().map(|value| match value {
                Val::U8(byte) => *byte,
                _ => foreign(shape),
            }));
        }
        (Shape::List(shape), Val::List(values)) => {
            put_number(out, values.len());
            values.iter().for_each(|value| put(out, shape, value));
        }
        (Shape::FixedLengthList(shape, _), Val::FixedLengthList(values)) => {
            values.iter().for_each(|value| put(out, shape, value));
        }
        (Shape::Map(key, shape), Val::Map(pairs)) => {
            put_number(out, pairs.len());
            for (name, value) in pairs {
                put(out, key, name);
                put(out, shape, value);
            }
        }
        (Shape::Record(fields), Val::Record(values)) => {
            fields.iter().zip(values).for_each(|((_, shape), (_, value))| put(out, shape, value));
        }
        (Shape::Tuple(shapes), Val::Tuple(values)) => {
            shapes.iter().zip(values).for_each(|(shape, value)| put(out, shape, value));
        }
        (Shape::Variant(cases), Val::Variant(name, value)) => {
            let index = cases.iter().position(|(case, _)| case == name).unwrap_or_else(|| foreign(shape));
            put_number(out, index);
            put_payload(out, cases[index].1.as_ref(), value.as_deref());
        }
        (Shape::Enum(names), Val::Enum(name)) => {
            put_number(out, names.iter().position(|known| known == name).unwrap_or_else(|| foreign(shape)));
        }
        (Shape::Option(shape), Val::Option(value)) => {
            out.put_u8(value.is_some().into());
            put_payload(out, Some(&**shape), value.as_deref());
        }
        (Shape::Result(ok, err), Val::Result(result)) => {
            out.put_u8(result.is_err().into());
            match result {
                Ok(value) => put_payload(out, ok.as_deref(), value.as_deref()),
                Err(value) => put_payload(out, err.as_deref(), value.as_deref()),
            }
        }
        (Shape::Flags(names), Val::Flags(set)) => {
            for names in names.chunks(8) {
                let bits = names.iter().enumerate().filter(|(_, name)| set.contains(name));
                out.put_u8(bits.fold(0, |byte, (bit, _)| byte | 1 << bit));
            }
        }
        _ => foreign(shape),
    }
}

fn put_payload(out: &mut BytesMut, shape: Option<&Shape>, value: Option<&Val>) {
    if let (Some(shape), Some(value)) = (shape, value) {
        put(out, shape, value);
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.reserve(NUMBER_BYTES_MAX + bytes.len());
    put_number(out, bytes.len());
    out.put_slice(bytes);
}

fn put_number(out: &mut BytesMut, number: usize) {
    let mut left = u32::try_from(number).expect("a guest's memory has no more than 2^32 bytes, nor values in it");
    while left >= 0x80 {
        out.put_u8(left as u8 | 0x80);
        left >>= 7;
    }
    out.put_u8(left as u8);
}

/// Panics because of a value of another type. wasmtime has checked these values, so this is a bug of the host.
fn foreign(shape: &Shape) -> ! {
    panic!("a value that is no {shape}")
}

struct Reader<'b> {
    bytes: &'b Bytes,
    at: usize,
    values_left: usize,
}

impl Reader<'_> {
    fn item(&mut self, shape: &Shape) -> Result<Item, Malformed> {
        match shape {
            Shape::Bytes => {
                let length = self.number()?;
                let start = self.at;
                self.take(length)?;
                Ok(Item::Bytes(self.bytes.slice(start..self.at)))
            }
            Shape::Option(inner) => match self.flag()? {
                false => Ok(Item::Val(Val::Option(None))),
                true => Ok(Item::Some(Box::new(self.item(inner)?))),
            },
            Shape::Result(Some(ok), err) => match self.flag()? {
                false => Ok(Item::Ok(Box::new(self.item(ok)?))),
                true => Ok(Item::Val(Val::Result(Err(self.payload(err.as_deref())?)))),
            },
            shape => self.val(shape).map(Item::Val),
        }
    }

    fn val(&mut self, shape: &Shape) -> Result<Val, Malformed> {
        self.spend(1)?;
        Ok(match shape {
            Shape::Bool => Val::Bool(self.flag()?),
            Shape::S8 => Val::S8(i8::from_le_bytes(self.array()?)),
            Shape::U8 => Val::U8(u8::from_le_bytes(self.array()?)),
            Shape::S16 => Val::S16(i16::from_le_bytes(self.array()?)),
            Shape::U16 => Val::U16(u16::from_le_bytes(self.array()?)),
            Shape::S32 => Val::S32(i32::from_le_bytes(self.array()?)),
            Shape::U32 => Val::U32(u32::from_le_bytes(self.array()?)),
            Shape::S64 => Val::S64(i64::from_le_bytes(self.array()?)),
            Shape::U64 => Val::U64(u64::from_le_bytes(self.array()?)),
            Shape::Float32 => Val::Float32(f32::from_le_bytes(self.array()?)),
            Shape::Float64 => Val::Float64(f64::from_le_bytes(self.array()?)),
            Shape::Char => {
                let scalar = u32::from_le_bytes(self.array()?);
                Val::Char(char::from_u32(scalar).ok_or_else(|| self.wrong("not a character"))?)
            }
            Shape::String => {
                let length = self.number()?;
                let bytes = self.take(length)?;
                let text = std::str::from_utf8(bytes).map(str::to_owned);
                Val::String(text.map_err(|_| self.wrong("a string that is not UTF-8"))?)
            }
            Shape::Bytes => {
                let length = self.number()?;
                self.spend(length)?;
                Val::List(self.take(length)?.iter().copied().map(Val::U8).collect())
            }
            Shape::List(shape) => {
                let count = self.number()?;
                Val::List(self.vals(count, shape)?)
            }
            Shape::FixedLengthList(shape, count) => Val::FixedLengthList(self.vals(*count as usize, shape)?),
            Shape::Map(key, shape) => {
                let count = self.number()?;
                let mut pairs = self.room(count)?;
                for _ in 0..count {
                    pairs.push((self.val(key)?, self.val(shape)?));
                }
                Val::Map(pairs)
            }
            Shape::Record(fields) => {
                let field = |(name, shape): &(String, Shape)| Ok((self.name(name)?, self.val(shape)?));
                Val::Record(fields.iter().map(field).collect::<Result<_, _>>()?)
            }
            Shape::Tuple(shapes) => Val::Tuple(shapes.iter().map(|shape| self.val(shape)).collect::<Result<_, _>>()?),
            Shape::Variant(cases) => {
                let index = self.number()?;
                let (name, shape) = cases.get(index).ok_or_else(|| self.wrong("no such case of the variant"))?;
                Val::Variant(self.name(name)?, self.payload(shape.as_ref())?)
            }
            Shape::Enum(names) => {
                let index = self.number()?;
                let name = names.get(index).ok_or_else(|| self.wrong("no such case of the enum"))?;
                Val::Enum(self.name(name)?)
            }
            Shape::Option(shape) => Val::Option(match self.flag()? {
                true => self.payload(Some(shape))?,
                false => None,
            }),
            Shape::Result(ok, err) => Val::Result(match self.flag()? {
                false => Ok(self.payload(ok.as_deref())?),
                true => Err(self.payload(err.as_deref())?),
            }),
            Shape::Flags(names) => Val::Flags(self.flags(names)?),
        })
    }

    fn vals(&mut self, count: usize, shape: &Shape) -> Result<Vec<Val>, Malformed> {
        let mut values = self.room(count)?;
        for _ in 0..count {
            values.push(self.val(shape)?);
        }
        Ok(values)
    }

    /// Makes an empty list for `count` values, if so many are permitted. Its capacity is at most the number of bytes left.
    fn room<T>(&self, count: usize) -> Result<Vec<T>, Malformed> {
        if count > self.values_left {
            return Err(Malformed::TooMany);
        }
        Ok(Vec::with_capacity(count.min(self.bytes.len() - self.at)))
    }

    fn payload(&mut self, shape: Option<&Shape>) -> Result<Option<Box<Val>>, Malformed> {
        shape.map(|shape| self.val(shape).map(Box::new)).transpose()
    }

    fn flags(&mut self, names: &[String]) -> Result<Vec<String>, Malformed> {
        let mut set = Vec::new();
        for names in names.chunks(8) {
            let [bits] = self.array()?;
            if names.len() < 8 && bits >> names.len() != 0 {
                return Err(self.wrong("a flag that the type does not have"));
            }
            for (_, name) in names.iter().enumerate().filter(|(bit, _)| bits & 1 << bit != 0) {
                self.spend(1)?;
                set.push(self.name(name)?);
            }
        }
        Ok(set)
    }

    fn name(&mut self, name: &str) -> Result<String, Malformed> {
        self.spend(cost(name))?;
        Ok(name.to_owned())
    }

    fn spend(&mut self, values: usize) -> Result<(), Malformed> {
        self.values_left = self.values_left.checked_sub(values).ok_or(Malformed::TooMany)?;
        Ok(())
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(self.wrong("neither 0 nor 1")),
        }
    }

    fn number(&mut self) -> Result<usize, Malformed> {
        let mut number: u64 = 0;
        for index in 0..NUMBER_BYTES_MAX {
            let [byte] = self.array()?;
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                let shortest = index == 0 || byte != 0;
                let fits = u32::try_from(number).ok().filter(|_| shortest);
                return fits
                    .map(|number| number as usize)
                    .ok_or_else(|| self.wrong("a number that is not well formed"));
            }
        }
        Err(self.wrong("a number of more than 5 bytes"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn take(&mut self, length: usize) -> Result<&[u8], Malformed> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.get(..length)).ok_or(Malformed::Short)?;
        self.at += length;
        Ok(bytes)
    }

    /// Makes the error about the bytes that were read last.
    fn wrong(&self, what: &'static str) -> Malformed {
        Malformed::Value { at: self.at, what }
    }
}
