//! Calls of functions of other modules, in this cage or another one, wherever that runs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::imports::wasmcage::cage::call;
use crate::bindings::imports::wasmcage::cage::types::Payload;

/// Another cage with this name.
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

/// A module of the same cage with this name.
pub fn module(name: &str) -> Module<'_> {
    Module { cage: None, name, timeout: None, idempotent: false }
}

/// A cage whose modules are called, made by [`cage`].
#[derive(Clone, Copy, Debug)]
pub struct Cage<'a> {
    name: &'a str,
}

impl<'a> Cage<'a> {
    pub fn module(self, name: &'a str) -> Module<'a> {
        Module { cage: Some(self.name), ..module(name) }
    }
}

/// A module whose functions are called, with options, made by [`module`] and [`Cage::module`]. It is not looked up before a
/// call.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    cage: Option<&'a str>,
    name: &'a str,
    timeout: Option<Duration>,
    idempotent: bool,
}

impl<'a> Module<'a> {
    /// Sets the timeout; the request's deadline holds anyway.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Says that the function may run twice without harm, so that a lost call may be retried on another copy.
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
        result_of(function, self.call_raw(function, &Payload::Json(arguments))?)
    }

    /// Calls the function on all copies of the cage that are known now, at the same time, and waits for all. For a module of the
    /// same cage, this copy is included.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use wasmcage_guest::{Result, cage, info, warn};
    /// # fn f() -> Result<()> {
    /// let caches = cage("worker").module("cache").timeout(Duration::from_secs(1));
    /// for answer in caches.call_all::<u64>("forget", ("invoice-7",))? {
    ///     match answer.result {
    ///         Ok(entries) => info!("copy {} forgot {entries} entries", answer.copy),
    ///         Err(error) => warn!("copy {}: {error}", answer.copy),
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Why no copy was called. The result of each copy that was called is in its [`CopyResult`].
    pub fn call_all<T: DeserializeOwned>(
        &self,
        function: &str,
        arguments: impl Arguments,
    ) -> Result<Vec<CopyResult<T>>, CallError> {
        let arguments = arguments.into_json().map_err(|error| CallError::BadArguments(error.to_string()))?;
        let results = self.call_all_raw(function, &Payload::Json(arguments))?.into_iter();
        let results = results.map(|CopyResult { copy, result }| {
            let result = result.and_then(|payload| result_of(function, payload));
            CopyResult { copy, result }
        });
        Ok(results.collect())
    }

    /// Calls a function with unconverted arguments, and returns the unconverted result.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call_raw(&self, function: &str, arguments: &Payload) -> Result<Payload, CallError> {
        call::call(self.cage, self.name, function, arguments, self.options()).map_err(CallError::from)
    }

    /// As [`Module::call_all`], with unconverted arguments and results.
    ///
    /// # Errors
    /// Why no copy was called.
    pub fn call_all_raw(&self, function: &str, arguments: &Payload) -> Result<Vec<CopyResult<Payload>>, CallError> {
        let results = call::call_all(self.cage, self.name, function, arguments, self.options())?.into_iter();
        let results = results.map(|call::CopyResult { copy, result }| {
            let result = result.map_err(CallError::from);
            CopyResult { copy, result }
        });
        Ok(results.collect())
    }

    /// Makes following calls in the background, retried until they succeed.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use wasmcage_guest::{Result, cage, module};
    /// # fn f() -> Result<()> {
    /// module("mail").retried().call("send", ("alice@example.org", "Welcome"))?;
    /// let bill = cage("billing").module("bill").retried();
    /// bill.id("order-7").expires(Duration::from_secs(3600)).call("send", (7,))?;
    /// # Ok(()) }
    /// ```
    pub fn retried(self) -> Retried<'a> {
        Retried { module: self, options: RetriedOptions::default() }
    }

    fn options(&self) -> call::Options {
        let timeout_ms = self.timeout.map(|timeout| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX));
        call::Options { timeout_ms, idempotent: self.idempotent }
    }
}

/// A module whose functions are called in the background, with options, made by [`Module::retried`]. `timeout` and `idempotent`
/// of the module have no effect here. [`call`](Self::call) stores a call at once; to store it as a part of a transaction, pass
/// this to [`state::Transaction::retried`](crate::state::Transaction::retried) or to
/// [`Transaction::retried`](crate::transaction::Transaction::retried).
#[derive(Clone, Copy, Debug)]
pub struct Retried<'a> {
    module: Module<'a>,
    options: RetriedOptions<'a>,
}

#[derive(Clone, Copy, Debug, Default)]
struct RetriedOptions<'a> {
    queue: Option<&'a str>,
    id: Option<&'a str>,
    expires: Option<Duration>,
    not_before: Option<Duration>,
    attempts_max: Option<u32>,
    priority: Option<i8>,
}

impl<'a> Retried<'a> {
    /// Sets the interface that makes the call; the default is `retry`. The call waits while there is no interface of this name.
    pub fn queue(mut self, queue: &'a str) -> Self {
        self.options.queue = Some(queue);
        self
    }

    /// Sets the id of the call, at most 256 bytes: calls with the same id are accepted once. Inside a retried call, the id is
    /// valid for that call only.
    pub fn id(mut self, id: &'a str) -> Self {
        self.options.id = Some(id);
        self
    }

    /// Sets when the call is given up.
    pub fn expires(mut self, expires: Duration) -> Self {
        self.options.expires = Some(expires);
        self
    }

    /// Sets a delay before the first attempt.
    pub fn not_before(mut self, not_before: Duration) -> Self {
        self.options.not_before = Some(not_before);
        self
    }

    /// Sets the most attempts; the queue's own limit holds, too.
    pub fn attempts_max(mut self, attempts_max: u32) -> Self {
        self.options.attempts_max = Some(attempts_max);
        self
    }

    /// Sets the priority. Calls with a higher priority are made first; the default is 0.
    pub fn priority(mut self, priority: i8) -> Self {
        self.options.priority = Some(priority);
        self
    }

    /// Stores a call of a function, and returns its id. The call is durable when this returns. If the function returns
    /// [`Error::Failed`](crate::Error::Failed), it is retried later; after [`Error::Refused`](crate::Error::Refused) or
    /// [`Error::BadArguments`](crate::Error::BadArguments) it is not.
    ///
    /// # Errors
    /// See [`CallError`]. After `TimedOut` the call may have been accepted; with an [`id`](Self::id) it can be repeated safely.
    pub fn call(&self, function: &str, arguments: impl Arguments) -> Result<String, CallError> {
        Ok(call::retried(&self.record(function, arguments)?)?)
    }

    /// As [`Retried::call`], with unconverted arguments.
    ///
    /// # Errors
    /// Those of [`Retried::call`].
    pub fn call_raw(&self, function: &str, arguments: Payload) -> Result<String, CallError> {
        Ok(call::retried(&self.record_raw(function, arguments))?)
    }

    /// Makes the record of the call for the host.
    pub(crate) fn record(&self, function: &str, arguments: impl Arguments) -> Result<call::RetriedCall, CallError> {
        let arguments = arguments.into_json().map_err(|error| CallError::BadArguments(error.to_string()))?;
        Ok(self.record_raw(function, Payload::Json(arguments)))
    }

    pub(crate) fn record_raw(&self, function: &str, arguments: Payload) -> call::RetriedCall {
        let Self { module, options } = self;
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        call::RetriedCall {
            cage: module.cage.map(str::to_owned),
            module: module.name.to_owned(),
            function: function.to_owned(),
            arguments,
            options: call::RetriedOptions {
                queue: options.queue.map(str::to_owned),
                id: options.id.map(str::to_owned),
                expires_ms: options.expires.map(milliseconds),
                not_before_ms: options.not_before.map(milliseconds),
                max_attempts: options.attempts_max,
                priority: options.priority,
            },
        }
    }
}

fn result_of<T: DeserializeOwned>(function: &str, payload: Payload) -> Result<T, CallError> {
    match payload {
        Payload::Json(result) => {
            serde_json::from_str(&result).map_err(|error| CallError::BadResult(format!("{function}: {error}")))
        }
        Payload::Bytes(_) => Err(CallError::BadResult(format!("{function}: bytes came where JSON was expected"))),
    }
}

/// The answer of one running copy of a cage, made by [`Module::call_all`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyResult<T> {
    /// Name of the copy as long as it runs: `local` in this process, otherwise 16 hexadecimal digits.
    pub copy: String,
    pub result: Result<T, CallError>,
}

/// Arguments of a call: a tuple of up to eight values, or [`Args`] for more of them or named ones.
pub trait Arguments {
    #[doc(hidden)]
    fn into_json(self) -> serde_json::Result<String>;
}

/// Arguments of a call, by position or by name.
#[derive(Debug, Default)]
pub struct Args {
    positional: String,
    named: String,
    /// The error of the first value that cannot be converted to JSON.
    error: Option<serde_json::Error>,
}

impl Args {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value by position.
    pub fn arg(mut self, value: impl Serialize) -> Self {
        match serde_json::to_string(&value) {
            Ok(value) => join(&mut self.positional, &[&value]),
            Err(error) => self.error = self.error.or(Some(error)),
        }
        self
    }

    /// Adds a value by the name of its parameter.
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

/// Why a call has no result. [`CallError::may_have_run`] returns whether the function may have run all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallError {
    /// No running cage with this name is known: the function did not run.
    NoSuchCage(String),
    /// The cage has no module with this name: the function did not run.
    NoSuchModule(String),
    /// The module has no function with this name.
    NoSuchFunction(String),
    /// The arguments do not fit the function's type, or the function has refused them: it had no effect.
    BadArguments(String),
    /// This module may not make this call: see `allow` in its own `cage.toml`, and `[rpc.allow]` in the callee's. The
    /// function did not run.
    NotPermitted(String),
    /// The callee is overloaded or shutting down: the function did not run.
    Overloaded(String),
    /// The cage is known, but none of its copies can be reached now: the function did not run.
    Unreachable(String),
    /// The function has refused the call for good, without any effect.
    Refused(String),
    /// The function failed or panicked, maybe after some effect. A later retry may succeed.
    Failed(String),
    /// The deadline or the timeout has passed. The function may have run, or may be running.
    TimedOut(String),
    /// The connection broke after the call was sent. The function may have run, or may be running.
    Lost(String),
    /// The result cannot be converted to the requested type. The function has run.
    BadResult(String),
}

impl CallError {
    /// Returns whether the function may have had an effect, so that a retry could have it twice.
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::NoSuchCage(_)
            | Self::NoSuchModule(_)
            | Self::NoSuchFunction(_)
            | Self::BadArguments(_)
            | Self::NotPermitted(_)
            | Self::Overloaded(_)
            | Self::Unreachable(_)
            | Self::Refused(_) => false,
            Self::Failed(_) | Self::TimedOut(_) | Self::Lost(_) | Self::BadResult(_) => true,
        }
    }
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
            call::CallError::Unreachable(text) => Self::Unreachable(text),
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
            Self::Unreachable(text) => ("callee unreachable", text),
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
    fn errors_tell_whether_the_function_may_have_run() {
        let text = || "text".to_owned();
        assert!(!CallError::Refused(text()).may_have_run());
        assert!(!CallError::Overloaded(text()).may_have_run());
        assert!(!CallError::Unreachable(text()).may_have_run());
        assert!(!CallError::BadArguments(text()).may_have_run());
        assert!(CallError::Lost(text()).may_have_run());
        assert!(CallError::BadResult(text()).may_have_run());
    }

    #[test]
    fn what_has_no_json_is_reported() {
        let unfit = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!((unfit,).into_json().unwrap_err().to_string().contains("key must be a string"));
    }
}
