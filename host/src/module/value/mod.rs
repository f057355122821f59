//! Calls by name of functions that a module exports with types of its own: JSON arguments become component values, and
//! the result becomes JSON again, both driven by the function's type. A `Signature` is made once per function when a
//! version is loaded, and used by each call. Knows neither instances nor dispatch; what it reads is hostile input.
//!
//! | WIT | JSON |
//! |---|---|
//! | `bool` | `true`, `false` |
//! | `u8` .. `s64` | number within range; `u64` and `s64` may come as decimal strings, for callers with floats only |
//! | `f32`, `f64` | number, or `"NaN"`, `"inf"`, `"-inf"` |
//! | `char` | string of one character |
//! | `string` | string |
//! | `list<u8>` | string in base64; an array of numbers may come too |
//! | `list<T>`, `list<T, N>`, `tuple<..>` | array |
//! | `map<K, V>` | object, each key as text |
//! | `record` | object; a field that is an option may be left out |
//! | `variant` | `{"case": payload}`, or `"case"` when it has none |
//! | `enum` | string |
//! | `flags` | array of the names that are set |
//! | `option<T>` | the value, or `null`; an option of an option is `null` or `{"some": ..}` |
//! | `result<T, E>` | `{"ok": ..}` or `{"err": ..}`, with `null` where there is no payload |
//!
//! Names are WIT's (`max-size`); `max_size` may come too. A key that comes twice is refused. Resources, streams,
//! futures and error contexts have no JSON, and neither have functions that use them.

mod arguments;
mod read;
mod shape;
mod write;

#[cfg(test)]
mod tests;

use wasmtime::component::Val;
use wasmtime::component::types::ComponentFunc;

pub use arguments::ArgumentError;
pub use shape::{Shape, UnsupportedType};
pub use write::ResultError;

/// The type of one exported function.
#[derive(Clone, Debug)]
pub struct Signature {
    function: String,
    parameters: Vec<(String, Shape)>,
    result: Option<Shape>,
}

/// What a function came to, as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The result; of a `result<T, E>`, the `T`; `null` when there is none.
    Value(String),
    /// The `E` of a `result<T, E>`; `null` when it has none.
    GuestError(String),
}

impl Signature {
    /// # Errors
    /// A parameter or the result has a type that JSON cannot carry.
    pub fn new(function: &str, ty: &ComponentFunc) -> Result<Self, UnsupportedType> {
        let parameters = ty.params().map(|(name, ty)| match Shape::new(&ty) {
            Ok(shape) => Ok((name.to_owned(), shape)),
            Err(error) => Err(error.of(&format!("parameter `{name}`"))),
        });
        Ok(Self {
            function: function.to_owned(),
            parameters: parameters.collect::<Result<_, _>>()?,
            // A component function has at most one result.
            result: ty
                .results()
                .next()
                .map(|ty| Shape::new(&ty).map_err(|error| error.of("the result")))
                .transpose()?,
        })
    }

    /// The values for `{"args": [..], "kwargs": {..}}`: the former by position, the latter by name, both optional.
    /// # Errors
    /// The text is not JSON of that form, or an argument does not fit: names the parameter, what it expects, what came.
    pub fn arguments(&self, json: &str) -> Result<Vec<Val>, ArgumentError> {
        arguments::read(&self.function, &self.parameters, json)
    }

    /// How many values the function returns.
    pub fn results(&self) -> usize {
        usize::from(self.result.is_some())
    }

    /// What the function returned.
    /// # Errors
    /// The result is too long, or is not of this signature, which would be the host's mistake.
    pub fn outcome(&self, results: &[Val]) -> Result<Outcome, ResultError> {
        let nothing = || "null".to_owned();
        match (&self.result, results) {
            (None, []) => Ok(Outcome::Value(nothing())),
            (Some(Shape::Result(ok, err)), [Val::Result(result)]) => {
                let (shape, value) = match result {
                    Ok(value) => (ok, value),
                    Err(value) => (err, value),
                };
                let json = match (shape, value) {
                    (Some(shape), Some(value)) => write::json(shape, value)?,
                    _ => nothing(),
                };
                Ok(if result.is_ok() { Outcome::Value(json) } else { Outcome::GuestError(json) })
            }
            (Some(shape), [value]) => write::json(shape, value).map(Outcome::Value),
            _ => Err(ResultError::Mismatch(self.to_string())),
        }
    }
}

/// As in WIT: `name: func(a: u32) -> string`.
impl std::fmt::Display for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parameters: Vec<String> = self.parameters.iter().map(|(name, shape)| format!("{name}: {shape}")).collect();
        write!(f, "{}: func({})", self.function, parameters.join(", "))?;
        self.result.as_ref().map_or(Ok(()), |result| write!(f, " -> {result}"))
    }
}
