//! A shape is the type of a value as a plain tree. `Signature::new` makes it once from wasmtime's handles; `read` and `write`
//! walk it together with the value.

use std::fmt::{self, Write};

use wasmtime::component::Type;

/// The largest depth of nested types.
const DEPTH_MAX: usize = 64;
/// The largest number of types and names in one type. A component may use one type in many places, so a short file can
/// describe a huge tree; and names are searched for one by one.
const PARTS_MAX: usize = 2_000;
/// The largest length of a type as text in messages, in bytes.
const TEXT_BYTES_MAX: usize = 160;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    Bool,
    S8,
    U8,
    S16,
    U16,
    S32,
    U32,
    S64,
    U64,
    Float32,
    Float64,
    Char,
    String,
    /// The type `list<u8>`.
    Bytes,
    List(Box<Shape>),
    FixedLengthList(Box<Shape>, u32),
    Map(Box<Shape>, Box<Shape>),
    Record(Vec<(String, Shape)>),
    Tuple(Vec<Shape>),
    Variant(Vec<(String, Option<Shape>)>),
    Enum(Vec<String>),
    Option(Box<Shape>),
    Result(Option<Box<Shape>>, Option<Box<Shape>>),
    Flags(Vec<String>),
}

/// The reason why a function can be called neither by name nor through a binding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place} {reason}")]
pub struct UnsupportedType {
    place: String,
    reason: String,
}

impl UnsupportedType {
    fn new(reason: impl Into<String>) -> Self {
        Self { place: "a value".to_owned(), reason: reason.into() }
    }

    pub(super) fn of(self, place: &str) -> Self {
        Self { place: place.to_owned(), ..self }
    }
}

impl Shape {
    /// # Errors
    /// Returns an error when a type cannot leave its component, or the whole is too deep or too large.
    pub fn new(ty: &Type) -> Result<Self, UnsupportedType> {
        let mut parts_left = PARTS_MAX;
        Self::within(ty, 0, &mut parts_left)
    }

    fn within(ty: &Type, depth: usize, parts_left: &mut usize) -> Result<Self, UnsupportedType> {
        if depth == DEPTH_MAX {
            return Err(UnsupportedType::new(format!("has a type nested deeper than {DEPTH_MAX} levels")));
        }
        *parts_left = parts_left
            .checked_sub(1 + names(ty))
            .ok_or_else(|| UnsupportedType::new(format!("has a type of more than {PARTS_MAX} parts")))?;
        let mut inner = |ty: Type| Self::within(&ty, depth + 1, parts_left);
        Ok(match ty {
            Type::Bool => Self::Bool,
            Type::S8 => Self::S8,
            Type::U8 => Self::U8,
            Type::S16 => Self::S16,
            Type::U16 => Self::U16,
            Type::S32 => Self::S32,
            Type::U32 => Self::U32,
            Type::S64 => Self::S64,
            Type::U64 => Self::U64,
            Type::Float32 => Self::Float32,
            Type::Float64 => Self::Float64,
            Type::Char => Self::Char,
            Type::String => Self::String,
            Type::List(list) => match list.ty() {
                Type::U8 => Self::Bytes,
                ty => Self::List(inner(ty)?.into()),
            },
            Type::FixedLengthList(list) => Self::FixedLengthList(inner(list.ty())?.into(), list.len()),
            Type::Map(map) => Self::Map(inner(map.key())?.into(), inner(map.value())?.into()),
            Type::Record(record) => {
                let fields = record.fields().map(|field| Ok((field.name.to_owned(), inner(field.ty)?)));
                Self::Record(fields.collect::<Result<_, _>>()?)
            }
            Type::Tuple(tuple) => Self::Tuple(tuple.types().map(inner).collect::<Result<_, _>>()?),
            Type::Variant(variant) => {
                let cases =
                    variant.cases().map(|case| Ok((case.name.to_owned(), case.ty.map(&mut inner).transpose()?)));
                Self::Variant(cases.collect::<Result<_, _>>()?)
            }
            Type::Enum(ty) => Self::Enum(ty.names().map(str::to_owned).collect()),
            Type::Option(option) => Self::Option(inner(option.ty())?.into()),
            Type::Result(result) => Self::Result(
                result.ok().map(&mut inner).transpose()?.map(Box::new),
                result.err().map(&mut inner).transpose()?.map(Box::new),
            ),
            Type::Flags(flags) => Self::Flags(flags.names().map(str::to_owned).collect()),
            Type::Own(_) | Type::Borrow(_) => {
                return Err(UnsupportedType::new("has a resource, which a call cannot carry"));
            }
            Type::Future(_) => return Err(UnsupportedType::new("has a future, which a call cannot carry")),
            Type::Stream(_) => return Err(UnsupportedType::new("has a stream, which a call cannot carry")),
            Type::ErrorContext => return Err(UnsupportedType::new("has an error-context, which a call cannot carry")),
        })
    }

    /// Writes the type as in WIT, in full. Two types are the same when their texts are.
    pub(super) fn write_all(&self, out: &mut dyn Write) -> fmt::Result {
        self.write(&mut Bounded { out, bytes_left: usize::MAX })
    }

    fn write(&self, out: &mut Bounded<'_>) -> fmt::Result {
        match self {
            Self::Bool => out.write_str("bool"),
            Self::S8 => out.write_str("s8"),
            Self::U8 => out.write_str("u8"),
            Self::S16 => out.write_str("s16"),
            Self::U16 => out.write_str("u16"),
            Self::S32 => out.write_str("s32"),
            Self::U32 => out.write_str("u32"),
            Self::S64 => out.write_str("s64"),
            Self::U64 => out.write_str("u64"),
            Self::Float32 => out.write_str("f32"),
            Self::Float64 => out.write_str("f64"),
            Self::Char => out.write_str("char"),
            Self::String => out.write_str("string"),
            Self::Bytes => out.write_str("list<u8>"),
            Self::List(element) => out.all("list<", [element.as_ref()], Self::write, ">"),
            Self::FixedLengthList(element, length) => {
                out.all("list<", [element.as_ref()], Self::write, "")?;
                write!(out, ", {length}>")
            }
            Self::Map(key, value) => out.all("map<", [key.as_ref(), value.as_ref()], Self::write, ">"),
            Self::Record(fields) => out.all("record { ", fields, Self::write_field, " }"),
            Self::Tuple(types) => out.all("tuple<", types, Self::write, ">"),
            Self::Variant(cases) => out.all("variant { ", cases, Self::write_case, " }"),
            Self::Enum(names) => out.all("enum { ", names, |name, out| out.write_str(name), " }"),
            Self::Option(ty) => out.all("option<", [ty.as_ref()], Self::write, ">"),
            Self::Result(None, None) => out.write_str("result"),
            Self::Result(Some(ok), None) => out.all("result<", [ok.as_ref()], Self::write, ">"),
            Self::Result(None, Some(err)) => out.all("result<_, ", [err.as_ref()], Self::write, ">"),
            Self::Result(Some(ok), Some(err)) => out.all("result<", [ok.as_ref(), err.as_ref()], Self::write, ">"),
            Self::Flags(names) => out.all("flags { ", names, |name, out| out.write_str(name), " }"),
        }
    }

    fn write_field((name, ty): &(String, Self), out: &mut Bounded<'_>) -> fmt::Result {
        write!(out, "{name}: ")?;
        ty.write(out)
    }

    fn write_case((name, ty): &(String, Option<Self>), out: &mut Bounded<'_>) -> fmt::Result {
        out.write_str(name)?;
        ty.as_ref().map_or(Ok(()), |ty| out.all("(", [ty], Self::write, ")"))
    }
}

fn names(ty: &Type) -> usize {
    match ty {
        Type::Enum(ty) => ty.names().len(),
        Type::Flags(ty) => ty.names().len(),
        Type::Record(ty) => ty.fields().len(),
        Type::Variant(ty) => ty.cases().len(),
        _ => 0,
    }
}

/// Writes the type as in WIT, cut off where it gets long. Records and the like have no names here, so their parts are written.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        if self.write(&mut Bounded { out: &mut text, bytes_left: TEXT_BYTES_MAX }).is_err() {
            text.push_str("...");
        }
        f.write_str(&text)
    }
}

/// A writer that fails when the text gets longer than its limit, so that a large type is not written in full.
struct Bounded<'o> {
    out: &'o mut dyn Write,
    bytes_left: usize,
}

impl Bounded<'_> {
    fn all<'a, T: 'a>(
        &mut self,
        open: &str,
        parts: impl IntoIterator<Item = &'a T>,
        write: impl Fn(&T, &mut Self) -> fmt::Result,
        close: &str,
    ) -> fmt::Result {
        self.write_str(open)?;
        for (index, part) in parts.into_iter().enumerate() {
            if index > 0 {
                self.write_str(", ")?;
            }
            write(part, self)?;
        }
        self.write_str(close)
    }
}

impl Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes_left = self.bytes_left.checked_sub(text.len()).ok_or(fmt::Error)?;
        self.out.write_str(text)
    }
}
