//! Errors of requests and calls.

use std::any::Any;
use std::fmt;

use crate::bindings::imports::wasmcage::cage::types;
use crate::call::CallError;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request or a call was not done. The text is shown in the log and to modules that call; clients outside get only a
/// code.
///
/// `?` converts any [`std::error::Error`] to [`Error::Failed`], with the texts of its causes, and so it does with a
/// [`CallError`], except that [`CallError::Refused`] stays refused, because a retry would be refused again. Bad arguments in a
/// call by this module are a failure of this module, not of its caller.
///
/// ```
/// use wasmcage_guest::{Error, Request, Response, Result, handler};
///
/// #[handler]
/// fn handle(request: Request) -> Result<Response> {
///     let Some(size) = request.parameter("size") else {
///         return Err(Error::bad_arguments("the parameter size is missing"));
///     };
///     let size: usize = size.parse()?; // failed: invalid digit found in string
///     Ok(Response::text("x".repeat(size)))
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The request is invalid, and a retry is useless. HTTP clients get 400, callers [`CallError::BadArguments`]. Functions of a
    /// service return this without any code when arguments do not fit.
    BadArguments(String),
    /// The request is valid but refused, and a retry is useless. HTTP clients get 422.
    Refused(String),
    /// A later retry may succeed. HTTP clients get 500.
    Failed(String),
}

impl Error {
    pub fn bad_arguments(text: impl fmt::Display) -> Self {
        Self::BadArguments(text.to_string())
    }

    pub fn refused(text: impl fmt::Display) -> Self {
        Self::Refused(text.to_string())
    }

    pub fn failed(text: impl fmt::Display) -> Self {
        Self::Failed(text.to_string())
    }

    /// Returns the text, without the kind.
    pub fn text(&self) -> &str {
        match self {
            Self::BadArguments(text) | Self::Refused(text) | Self::Failed(text) => text,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadArguments(text) => write!(f, "bad arguments: {text}"),
            Self::Refused(text) => write!(f, "refused: {text}"),
            Self::Failed(text) => write!(f, "failed: {text}"),
        }
    }
}

// `Error` itself is no `std::error::Error`: that would make this conversion overlap with `From<Error> for Error`.
impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let any: &dyn Any = &error;
        if let Some(CallError::Refused(text)) = any.downcast_ref() {
            return Self::Refused(text.clone());
        }
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Self::Failed(text)
    }
}

impl From<Error> for types::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::BadArguments(text) => Self::BadArguments(text),
            Error::Refused(text) => Self::Refused(text),
            Error::Failed(text) => Self::Failed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: impl Into<Error>, expected: Error) {
        assert_eq!(error.into(), expected);
    }

    #[test]
    fn question_mark_keeps_refusals_of_callees_and_names_causes() {
        check("x".parse::<u8>().unwrap_err(), Error::failed("invalid digit found in string"));
        check(CallError::Refused("no".into()), Error::refused("no"));
        check(CallError::NoSuchModule("work".into()), Error::failed("no such module: work"));
        check(CallError::BadArguments("f: no b".into()), Error::failed("bad arguments: f: no b"));
        check(Error::refused("no"), Error::refused("no"));
        check(Error::bad_arguments("no b"), Error::bad_arguments("no b"));

        #[derive(Debug)]
        struct Outer(std::num::ParseIntError);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("cannot read the size")
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        check(
            Outer("x".parse::<u8>().unwrap_err()),
            Error::failed("cannot read the size: invalid digit found in string"),
        );
    }
}
