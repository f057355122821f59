//! Converts arguments and results of functions that a module exports with types of its own. For calls by name, JSON arguments
//! become component values, and the result becomes JSON again, both by the function's type. Calls through a binding carry
//! `Values`, which stay as they are within the process and are encoded by the codec of `binary` elsewhere. A `Signature` is
//! made once per function when a version is loaded, and used by each call. The input is not trusted.
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
//! Names are those of WIT (`max-size`); `max_size` is accepted too, also for functions. A key that comes twice is refused.
//! Resources, streams, futures and error contexts have no JSON, so functions that use them cannot be called.

mod arguments;
mod binary;
mod carried;
mod difference;
mod failure;
mod read;
mod shape;
mod write;

#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};

use sha2::{Digest, Sha256};
use wasmcage_core::values::Fingerprint;
use wasmtime::component::Val;
use wasmtime::component::types::ComponentFunc;

pub use arguments::{ArgumentError, JSON_BYTES_MAX};
pub use binary::Malformed;
pub use carried::{Item, Misfit, Side};
pub(crate) use carried::{carry, items};
pub use shape::{Shape, UnsupportedType};
pub use write::ResultError;

/// The text that is hashed before the type, so that another codec has other fingerprints. A fingerprint is the first 16 bytes
/// of the SHA-256 of this and the type as written in WIT. Names of parameters, fields, cases and flags are part of it, as
/// they are part of a type in the component model; names of types and of the function are not.
const FINGERPRINT_OF: &str = "wasmcage values 1\n";

/// The type of one function.
#[derive(Clone, Debug)]
pub struct Signature {
    function: String,
    is_async: bool,
    parameters: Vec<(String, Shape)>,
    result: Option<Shape>,
    fingerprint: Fingerprint,
}

/// The result of a function, as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The result, or the `T` of a `result<T, E>`; `null` when there is none.
    Value(String),
    /// The `E` of a `result<T, E>`; `null` when it has none.
    GuestError(String),
}

impl Signature {
    /// # Errors
    /// Returns an error when a parameter or the result has a type that a call cannot carry.
    pub fn new(function: &str, ty: &ComponentFunc) -> Result<Self, UnsupportedType> {
        let parameters = ty.params().map(|(name, ty)| match Shape::new(&ty) {
            Ok(shape) => Ok((name.to_owned(), shape)),
            Err(error) => Err(error.of(&format!("parameter `{name}`"))),
        });
        let parameters = parameters.collect::<Result<_, _>>()?;
        // A component function has at most one result.
        let result = ty.results().next().map(|ty| Shape::new(&ty).map_err(|error| error.of("the result")));
        Ok(Self::of(function, ty.async_(), parameters, result.transpose()?))
    }

    fn of(function: &str, is_async: bool, parameters: Vec<(String, Shape)>, result: Option<Shape>) -> Self {
        let fingerprint = fingerprint(is_async, &parameters, result.as_ref());
        Self { function: function.to_owned(), is_async, parameters, result, fingerprint }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub fn is_async(&self) -> bool {
        self.is_async
    }

    /// Returns the types of the parameters, in their order, or that of the result, if there is one.
    pub fn shapes(&self, side: Side) -> Vec<&Shape> {
        match side {
            Side::Arguments => self.parameters.iter().map(|(_, shape)| shape).collect(),
            Side::Result => self.result.iter().collect(),
        }
    }

    /// Returns the first place where the other function's type differs, or `None` when the types are the same.
    pub fn difference(&self, other: &Self) -> Option<String> {
        difference::signatures(self, other)
    }

    /// Returns the result that reports a failed call, or `None` when the type has no place for a text. `code` is that of the
    /// error, and chooses the case of a variant.
    pub fn failure(&self, code: &str, text: &str) -> Option<Val> {
        failure::result(self.result.as_ref()?, code, text)
    }

    /// Returns the values for `{"args": [..], "kwargs": {..}}`: the former by position, the latter by name, both optional.
    /// # Errors
    /// Returns an error when the text is not JSON of that form, or an argument does not fit its parameter. It names the
    /// parameter, the type that is expected and the value that came.
    pub fn arguments(&self, json: &str) -> Result<Vec<Val>, ArgumentError> {
        arguments::read(&self.function, &self.parameters, json)
    }

    /// Returns the number of values that the function returns, 0 or 1.
    pub fn results(&self) -> usize {
        usize::from(self.result.is_some())
    }

    /// Converts the results of a call to JSON.
    /// # Errors
    /// Returns an error when the result is too long or not of this signature, which would be a bug of the host.
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

/// Writes the signature as in WIT: `name: func(a: u32) -> string`.
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters: Vec<String> = self.parameters.iter().map(|(name, shape)| format!("{name}: {shape}")).collect();
        let is_async = if self.is_async { "async " } else { "" };
        write!(f, "{}: {is_async}func({})", self.function, parameters.join(", "))?;
        self.result.as_ref().map_or(Ok(()), |result| write!(f, " -> {result}"))
    }
}

fn fingerprint(is_async: bool, parameters: &[(String, Shape)], result: Option<&Shape>) -> Fingerprint {
    struct Hashed(Sha256);
    impl fmt::Write for Hashed {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.update(text);
            Ok(())
        }
    }
    let mut hashed = Hashed(Sha256::new());
    let write = |out: &mut Hashed| -> fmt::Result {
        out.write_str(FINGERPRINT_OF)?;
        out.write_str(if is_async { "async func(" } else { "func(" })?;
        for (name, shape) in parameters {
            write!(out, "{name}: ")?;
            shape.write_all(out)?;
            out.write_char(',')?;
        }
        out.write_char(')')?;
        result.map_or(Ok(()), |result| {
            out.write_str(" -> ")?;
            result.write_all(out)
        })
    };
    write(&mut hashed).expect("hashing has no end");
    let digest = hashed.0.finalize();
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(&digest[..16]);
    fingerprint
}
