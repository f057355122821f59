//! Calling functions of other modules, in this cage or another one, wherever that runs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::imports::wasmcage::cage::call;
use crate::bindings::imports::wasmcage::cage::types::Payload;

/// Another cage, by its name.
///
/// ```no_run
/// # use wasmcage_guest::{Result, cage};
/// # fn f() -> Result<()> {
/// let text: String = cage("worker").module("work").call("handle", ("/",))?;
/// # Ok(()) }
/// ```
pub fn cage(name: &str) -> Cage<'_> {
    Cage { name }
}

/// A module of the same cage, by its name.
pub fn module(name: &str) -> Module<'_> {
    Module { cage: None, name, timeout: None, idempotent: false }
}

/// A cage whose modules are called. Made by [`cage`].
#[derive(Clone, Copy, Debug)]
pub struct Cage<'a> {
    name: &'a str,
}

impl<'a> Cage<'a> {
    pub fn module(self, name: &'a str) -> Module<'a> {
        Module { cage: Some(self.name), ..module(name) }
    }
}

/// A module whose functions are called, and how. Made by [`module`] and [`Cage::module`]. Nothing is looked up before
/// the call.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    cage: Option<&'a str>,
    name: &'a str,
    timeout: Option<Duration>,
    idempotent: bool,
}

impl Module<'_> {
    /// At most this long, and never longer than the request's own deadline.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The function may run twice without harm: a call that was lost on its way may be tried on another copy.
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Calls a function and waits for its result.
    ///
    /// ```no_run
    /// # use wasmcage_guest::{Args, Result, module};
    /// # fn f() -> Result<()> {
    /// let sum: i64 = module("calculator").call("add", (1, 2))?;
    /// let text = module("calculator").call::<String>("format", Args::new().arg(sum).named("base", 16))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call<T: DeserializeOwned>(&self, function: &str, arguments: impl Arguments) -> Result<T, CallError> {
        let arguments = arguments.into_json().map_err(|error| CallError::BadArguments(error.to_string()))?;
        match self.call_raw(function, &Payload::Json(arguments))? {
            Payload::Json(result) => {
                serde_json::from_str(&result).map_err(|error| CallError::BadResult(format!("{function}: {error}")))
            }
            Payload::Bytes(_) => Err(CallError::BadResult(format!("{function}: bytes came where JSON was expected"))),
        }
    }

    /// Calls a function with a payload as it is, and returns its result as it is.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call_raw(&self, function: &str, arguments: &Payload) -> Result<Payload, CallError> {
        let timeout_ms = self.timeout.map(|timeout| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX));
        let options = call::Options { timeout_ms, idempotent: self.idempotent };
        call::call(self.cage, self.name, function, arguments, options).map_err(CallError::from)
    }
}

/// Arguments of a call: a tuple of up to eight values, or [`Args`] for named ones and for more.
pub trait Arguments {
    #[doc(hidden)]
    fn into_json(self) -> serde_json::Result<String>;
}

/// Arguments of a call, some by position, some by name.
#[derive(Debug, Default)]
pub struct Args {
    positional: String,
    named: String,
    /// The first value that could not be put into JSON.
    error: Option<serde_json::Error>,
}

impl Args {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one by position.
    pub fn arg(mut self, value: impl Serialize) -> Self {
        match serde_json::to_string(&value) {
            Ok(value) => join(&mut self.positional, &[&value]),
            Err(error) => self.error = self.error.or(Some(error)),
        }
        self
    }

    /// Adds one by the name of its parameter.
    pub fn named(mut self, name: &str, value: impl Serialize) -> Self {
        match serde_json::to_string(name).and_then(|name| Ok((name, serde_json::to_string(&value)?))) {
            Ok((name, value)) => join(&mut self.named, &[&name, ":", &value]),
            Err(error) => self.error = self.error.or(Some(error)),
        }
        self
    }
}

fn join(list: &mut String, parts: &[&str]) {
    if !list.is_empty() {
        list.push(',');
    }
    list.extend(parts.iter().copied());
}

impl Arguments for Args {
    fn into_json(self) -> serde_json::Result<String> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(format!("{{\"args\":[{}],\"kwargs\":{{{}}}}}", self.positional, self.named)),
        }
    }
}

macro_rules! tuple_arguments {
    ($($value:ident)*) => {
        impl<$($value: Serialize),*> Arguments for ($($value,)*) {
            #[expect(non_snake_case, reason = "the types' names serve for their values")]
            fn into_json(self) -> serde_json::Result<String> {
                let ($($value,)*) = self;
                Args::new()$(.arg($value))*.into_json()
            }
        }
    };
}
tuple_arguments!(A);
tuple_arguments!(A B);
tuple_arguments!(A B C);
tuple_arguments!(A B C D);
tuple_arguments!(A B C D E);
tuple_arguments!(A B C D E F);
tuple_arguments!(A B C D E F G);
tuple_arguments!(A B C D E F G H);

impl Arguments for () {
    fn into_json(self) -> serde_json::Result<String> {
        Ok("{}".into())
    }
}

/// Why a call has no result. All but `TimedOut`, `Failed`, `Lost` and `BadResult` say that the function did not run to
/// any effect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallError {
    NoSuchCage(String),
    NoSuchModule(String),
    NoSuchFunction(String),
    /// The arguments do not fit the function's type.
    BadArguments(String),
    /// This module may not make this call: see `allow` in `cage.toml`.
    NotPermitted(String),
    /// The callee has no room now, or is shutting down.
    Overloaded(String),
    /// The callee says never.
    Refused(String),
    /// The callee failed or panicked; later may help.
    Failed(String),
    /// The deadline or the timeout came first; the function may have run.
    TimedOut(String),
    /// The connection broke after the call was handed over; the function may have run.
    Lost(String),
    /// The function ran, but its result is not of the type asked for.
    BadResult(String),
}

impl From<call::CallError> for CallError {
    fn from(error: call::CallError) -> Self {
        match error {
            call::CallError::NoSuchCage(text) => Self::NoSuchCage(text),
            call::CallError::NoSuchModule(text) => Self::NoSuchModule(text),
            call::CallError::NoSuchFunction(text) => Self::NoSuchFunction(text),
            call::CallError::BadArguments(text) => Self::BadArguments(text),
            call::CallError::NotPermitted(text) => Self::NotPermitted(text),
            call::CallError::Overloaded(text) => Self::Overloaded(text),
            call::CallError::Refused(text) => Self::Refused(text),
            call::CallError::Failed(text) => Self::Failed(text),
            call::CallError::TimedOut(text) => Self::TimedOut(text),
            call::CallError::Lost(text) => Self::Lost(text),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, text) = match self {
            Self::NoSuchCage(text) => ("no such cage", text),
            Self::NoSuchModule(text) => ("no such module", text),
            Self::NoSuchFunction(text) => ("no such function", text),
            Self::BadArguments(text) => ("bad arguments", text),
            Self::NotPermitted(text) => ("call not permitted", text),
            Self::Overloaded(text) => ("callee overloaded", text),
            Self::Refused(text) => ("call refused", text),
            Self::Failed(text) => ("call failed", text),
            Self::TimedOut(text) => ("call timed out", text),
            Self::Lost(text) => ("call lost", text),
            Self::BadResult(text) => ("result of another type", text),
        };
        write!(f, "{kind}: {text}")
    }
}

impl std::error::Error for CallError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(arguments: impl Arguments, expected: &str) {
        assert_eq!(arguments.into_json().map_err(|error| error.to_string()), Ok(expected.to_string()));
    }

    #[test]
    fn arguments_become_json() {
        check((), "{}");
        check(("/a\"b",), r#"{"args":["/a\"b"],"kwargs":{}}"#);
        check((1, None::<u8>, [2.5]), r#"{"args":[1,null,[2.5]],"kwargs":{}}"#);
        check(Args::new().arg(1).named("b", "x").named("c", true), r#"{"args":[1],"kwargs":{"b":"x","c":true}}"#);
        check(Args::new(), r#"{"args":[],"kwargs":{}}"#);
    }

    #[test]
    fn what_has_no_json_is_reported() {
        let unfit = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!((unfit,).into_json().unwrap_err().to_string().contains("key must be a string"));
    }
}
