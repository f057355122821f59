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

impl<'a> Module<'a> {
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
        result_of(function, self.call_raw(function, &Payload::Json(arguments))?)
    }

    /// Makes the same call to every copy of the cage that is known now, at once, and waits for all of them. A module of
    /// the same cage is called in every copy of it, this one included.
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
    /// Why no copy was called; what became of each that was is in its [`CopyResult`].
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

    /// Calls a function with a payload as it is, and returns its result as it is.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call_raw(&self, function: &str, arguments: &Payload) -> Result<Payload, CallError> {
        call::call(self.cage, self.name, function, arguments, self.options()).map_err(CallError::from)
    }

    /// As [`Module::call_all`], with a payload as it is and results as they are.
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

    /// Has the calls that follow be made in the background, again and again until they succeed.
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

/// A module whose functions are called in the background, and how. Made by [`Module::retried`]; `timeout` and `idempotent`
/// of the module have no effect here. [`call`](Self::call) asks for a call at once; to have it made only if something else is
/// done, too, give this to [`state::Transaction::retried`](crate::state::Transaction::retried) or to
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
    /// The interface that makes the call; `retry` if none is named. Without an interface of that name the call waits.
    pub fn queue(mut self, queue: &'a str) -> Self {
        self.options.queue = Some(queue);
        self
    }

    /// Names the call, so that it is accepted once however often it is asked for. At most 256 bytes. Inside a retried call
    /// the name counts for that call only.
    pub fn id(mut self, id: &'a str) -> Self {
        self.options.id = Some(id);
        self
    }

    /// It is given up after so long.
    pub fn expires(mut self, expires: Duration) -> Self {
        self.options.expires = Some(expires);
        self
    }

    /// It is not tried before so long.
    pub fn not_before(mut self, not_before: Duration) -> Self {
        self.options.not_before = Some(not_before);
        self
    }

    /// It is given up after so many attempts, or after the queue's own bound if that is less.
    pub fn attempts_max(mut self, attempts_max: u32) -> Self {
        self.options.attempts_max = Some(attempts_max);
        self
    }

    /// Calls of a higher one go first; 0 if none is given.
    pub fn priority(mut self, priority: i8) -> Self {
        self.options.priority = Some(priority);
        self
    }

    /// Has a function be called. It is durable when this returns; the result is the call's id. The function answers
    /// [`Error::Failed`](crate::Error::Failed) for later, and [`Error::Refused`](crate::Error::Refused) or
    /// [`Error::BadArguments`](crate::Error::BadArguments) for never.
    ///
    /// # Errors
    /// See [`CallError`]. After `TimedOut` it may have been accepted; with an [`id`](Self::id) it can be asked for again.
    pub fn call(&self, function: &str, arguments: impl Arguments) -> Result<String, CallError> {
        Ok(call::retried(&self.record(function, arguments)?)?)
    }

    /// As [`Retried::call`], with a payload as it is.
    ///
    /// # Errors
    /// As of [`Retried::call`].
    pub fn call_raw(&self, function: &str, arguments: Payload) -> Result<String, CallError> {
        Ok(call::retried(&self.record_raw(function, arguments))?)
    }

    /// What is asked for, also as part of a transaction.
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

/// What one running copy of a cage answered. Made by [`Module::call_all`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyResult<T> {
    /// Tells the copies of a cage apart, for as long as they run: `local` in this process, otherwise 16 hexadecimal
    /// digits.
    pub copy: String,
    pub result: Result<T, CallError>,
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

/// Why a call has no result. [`CallError::may_have_run`] tells whether the function may have run all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallError {
    /// No running cage of that name is known: the function did not run.
    NoSuchCage(String),
    /// The cage has no module of that name: the function did not run.
    NoSuchModule(String),
    /// The module has no function of that name: it did not run.
    NoSuchFunction(String),
    /// The arguments do not fit the function's type, or the callee says that they are wrong: nothing that matters was done.
    BadArguments(String),
    /// This module may not make this call: see `allow` in its own `cage.toml`, and `[rpc.allow]` in the callee's. The
    /// function did not run.
    NotPermitted(String),
    /// The callee has no room now, or is shutting down: the function did not run.
    Overloaded(String),
    /// The cage is known, and none of its copies can be reached now: the function did not run.
    Unreachable(String),
    /// The callee says never. The function ran, and did nothing that matters.
    Refused(String),
    /// The callee failed or panicked; later may help. The function may have run in part.
    Failed(String),
    /// The deadline or the timeout came first. The function may have run, and may even be running now.
    TimedOut(String),
    /// The connection broke after the call was handed over. The function may have run, or be running.
    Lost(String),
    /// The result is not of the type asked for. The function has run.
    BadResult(String),
}

impl CallError {
    /// Whether the function may have run to some effect, so that making the call again could do something twice.
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
