//! Defines records of `wit/` with texts and lists of bounded length, where the bindings would copy them whole. `short_texts.rs`
//! takes them from guests. A text or list that is too long is refused; a name that is too long is cut, and the function that
//! uses it refuses it.

use wasmtime::component::{ComponentType, Lift};

use super::bindings::call::{CallError, RetriedCall as WitRetriedCall, RetriedOptions as WitRetriedOptions};
use super::bindings::resources::{Caching as WitCaching, Operation as WitOperation, Options as WitOptions};
use super::bindings::state::{Range as WitRange, StateError, Step as WitStep};
use super::bindings::types::Payload;
use super::text::{Few, Name, Text, TooLong};
use crate::dispatcher::RETRIED_ARGUMENTS_BYTES_MAX;
use wasmcage_store::{STEPS_MAX, VALUE_BYTES_MAX};

/// The greatest length of an operation's target, and of the value of one of its headers.
const LINE_BYTES_MAX: usize = 128 << 10;
const HEADERS_MAX: usize = 1_000;
/// The greatest number of options for the beginning of a transaction.
const BEGIN_MAX: usize = 100;
/// The greatest number of names of what an operation reads or writes.
const NAMES_MAX: usize = 64;

type Line = Text<LINE_BYTES_MAX>;
pub(super) type Names = Few<Name, NAMES_MAX>;
/// The options for the beginning of a transaction.
pub(super) type Begin = Few<(Name, Name), BEGIN_MAX>;
pub(super) type Steps = Few<Step, STEPS_MAX>;

/// A value of the module's state, or the arguments of a retried call.
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum Value {
    #[component(name = "json")]
    Json(Text<VALUE_BYTES_MAX>),
    #[component(name = "bytes")]
    Bytes(Few<u8, VALUE_BYTES_MAX>),
}

// `Value` is used for both, so their limits must be equal.
const _: () = assert!(RETRIED_ARGUMENTS_BYTES_MAX == VALUE_BYTES_MAX);

impl Value {
    /// Returns the whole value.
    ///
    /// # Errors
    /// The value is longer than the store accepts.
    pub(super) fn whole(self) -> Result<Payload, TooLong> {
        const WHAT: &str = "a value";
        match self {
            Self::Json(json) => json.whole(WHAT).map(Payload::Json),
            Self::Bytes(bytes) => bytes.whole(WHAT, "bytes").map(Payload::Bytes),
        }
    }
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct RetriedCall {
    #[component(name = "cage")]
    cage: Option<Name>,
    #[component(name = "module")]
    module: Name,
    #[component(name = "function")]
    function: Name,
    #[component(name = "arguments")]
    arguments: Value,
    #[component(name = "options")]
    options: RetriedOptions,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct RetriedOptions {
    #[component(name = "queue")]
    queue: Option<Name>,
    #[component(name = "id")]
    id: Option<Name>,
    #[component(name = "expires-ms")]
    expires_ms: Option<u64>,
    #[component(name = "not-before-ms")]
    not_before_ms: Option<u64>,
    #[component(name = "max-attempts")]
    max_attempts: Option<u32>,
    #[component(name = "priority")]
    priority: Option<i8>,
}

impl RetriedCall {
    /// Returns the whole call, in which names that are too long are cut.
    ///
    /// # Errors
    /// The arguments are longer than the store accepts.
    pub(super) fn whole(self) -> Result<WitRetriedCall, TooLong> {
        let Self { cage, module, function, arguments, options } = self;
        let RetriedOptions { queue, id, expires_ms, not_before_ms, max_attempts, priority } = options;
        Ok(WitRetriedCall {
            cage: cage.map(Name::into_name),
            module: module.into_name(),
            function: function.into_name(),
            arguments: arguments.whole()?,
            options: WitRetriedOptions {
                queue: queue.map(Name::into_name),
                id: id.map(Name::into_name),
                expires_ms,
                not_before_ms,
                max_attempts,
                priority,
            },
        })
    }
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Range {
    #[component(name = "prefix")]
    prefix: Name,
    #[component(name = "from")]
    from: Option<Name>,
    #[component(name = "to")]
    to: Option<Name>,
    #[component(name = "descending")]
    descending: bool,
}

impl Range {
    /// Returns the whole range.
    ///
    /// # Errors
    /// The prefix or an end of the range is longer than any key.
    pub(super) fn whole(self) -> Result<WitRange, TooLong> {
        let Self { prefix, from, to, descending } = self;
        let end = |end: Option<Name>| end.map(|end| end.whole("an end of the range")).transpose();
        Ok(WitRange { prefix: prefix.whole("the prefix")?, from: end(from)?, to: end(to)?, descending })
    }
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum Step {
    #[component(name = "get")]
    Get(Name),
    #[component(name = "set")]
    Set((Name, Value)),
    #[component(name = "delete")]
    Delete(Name),
    #[component(name = "check")]
    Check((Name, Option<Value>)),
    #[component(name = "increment")]
    Increment((Name, i64)),
    #[component(name = "queue-push")]
    QueuePush((Name, Value)),
    #[component(name = "queue-pop")]
    QueuePop(Name),
    #[component(name = "queue-length")]
    QueueLength(Name),
    #[component(name = "retried-call")]
    RetriedCall(RetriedCall),
}

impl Step {
    fn whole(self) -> Result<WitStep, TooLong> {
        Ok(match self {
            Self::Get(key) => WitStep::Get(key.into_name()),
            Self::Set((key, value)) => WitStep::Set((key.into_name(), value.whole()?)),
            Self::Delete(key) => WitStep::Delete(key.into_name()),
            Self::Check((key, value)) => WitStep::Check((key.into_name(), value.map(Value::whole).transpose()?)),
            Self::Increment((key, by)) => WitStep::Increment((key.into_name(), by)),
            Self::QueuePush((queue, entry)) => WitStep::QueuePush((queue.into_name(), entry.whole()?)),
            Self::QueuePop(queue) => WitStep::QueuePop(queue.into_name()),
            Self::QueueLength(queue) => WitStep::QueueLength(queue.into_name()),
            Self::RetriedCall(call) => WitStep::RetriedCall(call.whole()?),
        })
    }
}

/// Returns the whole steps, in which names that are too long are cut.
///
/// # Errors
/// There are too many steps, or a part of one is longer than the store accepts.
pub(super) fn whole_steps(steps: Steps) -> Result<Vec<WitStep>, TooLong> {
    let steps = steps.whole("a transaction", "steps")?.into_iter().enumerate();
    let whole =
        |(number, step): (usize, Step)| step.whole().map_err(|TooLong(text)| TooLong(format!("step {number}: {text}")));
    steps.map(whole).collect()
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Operation {
    #[component(name = "action")]
    action: Name,
    #[component(name = "target")]
    target: Line,
    #[component(name = "headers")]
    headers: Few<(Name, Line), HEADERS_MAX>,
    #[component(name = "body")]
    body: Vec<u8>,
}

impl Operation {
    /// Returns the whole operation, in which names that are too long are cut.
    ///
    /// # Errors
    /// The target, the list of headers or a header's value is longer than any resource accepts.
    pub(super) fn whole(self) -> Result<WitOperation, TooLong> {
        let Self { action, target, headers, body } = self;
        let headers = headers.whole("the operation", "headers")?.into_iter();
        let header = |(name, value): (Name, Line)| Ok((name.into_name(), value.whole("the value of a header")?));
        Ok(WitOperation {
            action: action.into_name(),
            target: target.whole("the target")?,
            headers: headers.map(header).collect::<Result<_, _>>()?,
            body,
        })
    }
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Options {
    #[component(name = "timeout-ms")]
    timeout_ms: Option<u32>,
    #[component(name = "begin")]
    begin: Begin,
    #[component(name = "caching")]
    caching: Option<Caching>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Caching {
    #[component(name = "key")]
    key: Option<Name>,
    #[component(name = "ttl-ms")]
    ttl_ms: Option<u32>,
    #[component(name = "reads")]
    reads: Names,
    #[component(name = "writes")]
    writes: Names,
    #[component(name = "bypass")]
    bypass: bool,
}

impl Options {
    /// Returns the whole options, in which names that are too long are cut.
    ///
    /// # Errors
    /// One of the lists is longer than any resource accepts.
    pub(super) fn whole(self) -> Result<WitOptions, TooLong> {
        let Self { timeout_ms, begin, caching } = self;
        Ok(WitOptions { timeout_ms, begin: whole_begin(begin)?, caching: caching.map(Caching::whole).transpose()? })
    }
}

impl Caching {
    fn whole(self) -> Result<WitCaching, TooLong> {
        let Self { key, ttl_ms, reads, writes, bypass } = self;
        let (reads, writes) = (whole_names(reads)?, whole_names(writes)?);
        Ok(WitCaching { key: key.map(Name::into_name), ttl_ms, reads, writes, bypass })
    }
}

/// Returns the whole list, in which names that are too long are cut.
///
/// # Errors
/// The list has more elements than any resource accepts.
pub(super) fn whole_begin(begin: Begin) -> Result<Vec<(String, String)>, TooLong> {
    let begin = begin.whole("the operation", "options for its beginning")?.into_iter();
    Ok(begin.map(|(name, value)| (name.into_name(), value.into_name())).collect())
}

/// Returns the whole list, in which names that are too long are cut.
///
/// # Errors
/// The list has more elements than any resource accepts.
pub(super) fn whole_names(names: Names) -> Result<Vec<String>, TooLong> {
    let names = names.whole("the operation", "names of what it reads or writes")?;
    Ok(names.into_iter().map(Name::into_name).collect())
}

impl From<TooLong> for CallError {
    fn from(TooLong(text): TooLong) -> Self {
        Self::BadArguments(text)
    }
}

impl From<TooLong> for StateError {
    fn from(TooLong(text): TooLong) -> Self {
        Self::Invalid(text)
    }
}
