//! A request, its context and the reply, independent of protocols and of wasmtime. An interface makes requests; the
//! dispatcher, the modules and the host API read them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::body_budget::BodyRoom;
use crate::telemetry::Level;
use crate::values::Values;

/// The id of a request in the log lines of all cages that work on it: `RQ-<local time, 14 digits>-<12 hex>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// When the request was received, in seconds since the epoch.
    seconds: i64,
    /// 48 random bits.
    random: u64,
}

impl RequestId {
    pub fn new() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        Self { seconds, random: fastrand::u64(..) >> 16 }
    }

    /// Seconds since the epoch and 48 random bits, for sending to other processes.
    pub fn parts(&self) -> (i64, u64) {
        (self.seconds, self.random)
    }

    pub fn from_parts(seconds: i64, random: u64) -> Self {
        Self { seconds, random: random & 0xffff_ffff_ffff }
    }

    /// The last four hex digits, as log lines show them.
    pub fn short(&self) -> impl fmt::Display {
        let digits = self.random & 0xffff;
        fmt::from_fn(move |f| write!(f, "{digits:04X}"))
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        thread_local! {
            // Requests of one second share their date, so that the time zone is looked up once a second.
            static DATE: std::cell::Cell<(i64, u64)> = const { std::cell::Cell::new((i64::MIN, 0)) };
        }
        let (cached, mut digits) = DATE.get();
        if cached != self.seconds {
            let at = jiff::Timestamp::from_second(self.seconds).unwrap_or_default();
            let local = at.to_zoned(jiff::tz::TimeZone::system());
            digits = [local.month(), local.day(), local.hour(), local.minute(), local.second()]
                .into_iter()
                .fold(local.year().unsigned_abs().into(), |digits: u64, part| {
                    digits * 100 + part.unsigned_abs() as u64
                });
            DATE.set((self.seconds, digits));
        }
        write!(f, "RQ-{digits:014}-{:012X}", self.random)
    }
}

/// The time after which nobody waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// Longer timeouts are cut to this, so that arithmetic on deadlines cannot overflow.
    const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout.min(Self::TIMEOUT_MAX))
    }

    /// Returns this deadline, or the time after `timeout` if that is earlier.
    pub fn within(self, timeout: Duration) -> Self {
        self.min(Self::after(timeout))
    }

    pub fn instant(self) -> Instant {
        self.0
    }

    /// Returns the time left; zero once the deadline has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub fn passed(self) -> bool {
        self.0 <= Instant::now()
    }
}

/// The deadline of a request whose bodies stream: an idle timeout after the last byte that moved in either direction, but
/// never later than a fixed time.
#[derive(Debug)]
pub struct StreamDeadline {
    began: Instant,
    /// The longest time without a byte of the request's body or of the answer.
    idle: Duration,
    latest: Deadline,
    /// When a byte moved last, in milliseconds since `began`.
    moved_ms: AtomicU64,
}

impl StreamDeadline {
    fn new(began: Instant, idle: Duration, longest: Duration) -> Self {
        let latest = Deadline(began + longest.clamp(idle, Deadline::TIMEOUT_MAX.max(idle)));
        Self { began, idle, latest, moved_ms: AtomicU64::new(0) }
    }

    /// Records that a part of a body has moved.
    pub fn record_progress(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(now, Ordering::Relaxed);
    }

    /// Returns the deadline if no further byte moves.
    pub fn now(&self) -> Deadline {
        let moved = Duration::from_millis(self.moved_ms.load(Ordering::Relaxed));
        Deadline(self.began + moved + self.idle).min(self.latest)
    }

    /// Returns the fixed time after which the deadline never is.
    pub fn latest(&self) -> Deadline {
        self.latest
    }

    pub fn idle(&self) -> Duration {
        self.idle
    }
}

/// Facts about the caller, by name. A protocol may add facts of its own, such as the identity of a peer. Modules read them
/// through the WIT interface `context`; the host enforces nothing by them.
#[derive(Clone, Default)]
pub struct Facts(Vec<Fact>);

#[derive(Clone)]
struct Fact {
    name: Cow<'static, str>,
    value: String,
    /// For the module that serves the request only: not for the log, nor for modules that it calls.
    is_secret: bool,
}

/// Does not show values that are secret.
impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            self.0.iter().map(|fact| (&fact.name, if fact.is_secret { "(not shown)" } else { fact.value.as_str() }));
        f.debug_map().entries(shown).finish()
    }
}

impl Facts {
    pub const PEER_ADDRESS: &'static str = "peer-address";
    pub const ENCRYPTED: &'static str = "encrypted";
    pub const PEER_NAME: &'static str = "peer-name";
    pub const USERNAME: &'static str = "username";
    pub const PASSWORD: &'static str = "password";
    pub const SOURCE_CAGE: &'static str = "source-cage";
    pub const SOURCE_MODULE: &'static str = "source-module";
    /// The cage whose interface received the request, however many calls ago.
    pub const ORIGIN_CAGE: &'static str = "origin-cage";
    /// Id of the retried call on whose behalf this is done.
    pub const RETRIED_CALL: &'static str = "retried-call";
    /// The W3C trace context of the request, unchanged.
    pub const TRACEPARENT: &'static str = "traceparent";

    /// Replaces an earlier fact of the same name. A password is secret by its name.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        let name = name.into();
        let is_secret = name == Self::PASSWORD;
        self.put(Fact { name, value: value.into(), is_secret });
    }

    /// A fact that is neither logged nor taken along by the calls of the module that serves the request.
    pub fn set_secret(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        self.put(Fact { name: name.into(), value: value.into(), is_secret: true });
    }

    fn put(&mut self, fact: Fact) {
        match self.0.iter_mut().find(|known| known.name == fact.name) {
            Some(known) => *known = fact,
            None => self.0.push(fact),
        }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|fact| fact.name == name).map(|fact| fact.value.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|fact| (&*fact.name, fact.value.as_str()))
    }

    /// Those that are carried to other cages: all but the secret ones.
    pub fn public(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter(|fact| !fact.is_secret).map(|fact| (&*fact.name, fact.value.as_str()))
    }

    /// Returns the facts for a call by this module: the source is set, and what is secret is left out.
    fn for_call(&self, cage: &str, module: &str) -> Self {
        let mut facts = Self(self.0.iter().filter(|fact| !fact.is_secret).cloned().collect());
        if facts.get(Self::ORIGIN_CAGE).is_none() {
            facts.set(Self::ORIGIN_CAGE, cage);
        }
        facts.set(Self::SOURCE_CAGE, cage);
        facts.set(Self::SOURCE_MODULE, module);
        facts
    }
}

/// The part of a request that is passed to everything done on its behalf.
#[derive(Debug)]
pub struct RequestContext {
    pub id: RequestId,
    /// The deadline of the whole request or, if its bodies stream, of the first byte: see `deadline_now`.
    pub deadline: Deadline,
    stream: Option<Arc<StreamDeadline>>,
    /// When the interface received the request.
    pub started: Instant,
    /// Name of that interface.
    pub interface: Arc<str>,
    pub protocol: Cow<'static, str>,
    pub facts: Arc<Facts>,
    /// The chain of callers, each as `cage/module`, the outermost first. The dispatcher limits its length.
    pub callers: Vec<Arc<str>>,
    /// How many of the callers, counted from the last, called in this process: each of these has a permit of its cage until its
    /// call has ended. The callers before them were named by another process and prove nothing.
    callers_here: usize,
    /// The attempt, if this is a retried call.
    pub attempt: Option<Arc<Attempt>>,
    /// The log level of this request; 0 while none is set.
    level: AtomicU8,
    description: Mutex<Option<String>>,
}

impl RequestContext {
    /// Longer descriptions are cut to so many characters.
    const DESCRIPTION_CHARACTERS_MAX: usize = 100;

    pub fn new(
        interface: Arc<str>,
        protocol: impl Into<Cow<'static, str>>,
        timeout: Duration,
        facts: Arc<Facts>,
    ) -> Self {
        let started = Instant::now();
        Self {
            id: RequestId::new(),
            deadline: Deadline(started + timeout.min(Deadline::TIMEOUT_MAX)),
            stream: None,
            started,
            interface,
            protocol: protocol.into(),
            facts,
            callers: Vec::new(),
            callers_here: 0,
            attempt: None,
            level: AtomicU8::new(0),
            description: Mutex::new(None),
        }
    }

    /// Makes the context of a call by `cage/module` while it works on this request.
    pub fn for_call(&self, cage: &str, module: &str, timeout: Option<Duration>) -> Self {
        let mut callers = self.callers.clone();
        callers.push(format!("{cage}/{module}").into());
        Self {
            id: self.id,
            deadline: timeout.map_or(self.deadline_now(), |timeout| self.deadline_now().within(timeout)),
            stream: None,
            started: Instant::now(),
            interface: self.interface.clone(),
            protocol: self.protocol.clone(),
            facts: Arc::new(self.facts.for_call(cage, module)),
            callers,
            callers_here: self.callers_here + 1,
            attempt: None,
            level: AtomicU8::new(self.level.load(Ordering::Relaxed)),
            description: Mutex::new(self.description()),
        }
    }

    /// The same request with streaming bodies: each part that moves postpones its deadline, up to `longest` after its start.
    pub fn streamed(&self, longest: Duration) -> Self {
        let idle = self.deadline.instant().saturating_duration_since(self.started);
        let stream = Some(Arc::new(StreamDeadline::new(self.started, idle, longest)));
        Self { stream, ..self.with_deadline(self.deadline) }
    }

    /// The same request as a part of another one whose bodies stream. It has the same idle timeout, or `timeout` if that is
    /// shorter, and the same latest deadline.
    pub fn streamed_within(&self, outer: &StreamDeadline, timeout: Option<Duration>) -> Self {
        let idle = timeout.map_or(outer.idle, |timeout| timeout.min(outer.idle));
        let stream = StreamDeadline { began: self.started, idle, latest: outer.latest, moved_ms: AtomicU64::new(0) };
        Self { stream: Some(Arc::new(stream)), ..self.with_deadline(self.deadline) }
    }

    /// The moving deadline, if its bodies stream.
    pub fn stream(&self) -> Option<&Arc<StreamDeadline>> {
        self.stream.as_ref()
    }

    /// The present deadline.
    pub fn deadline_now(&self) -> Deadline {
        self.stream.as_ref().map_or(self.deadline, |stream| stream.now())
    }

    /// The cage that makes the call of this context; empty if this is no call.
    pub fn calling_cage(&self) -> &str {
        let last = self.callers.last().map(|caller| &**caller).unwrap_or_default();
        last.split_once('/').map_or(last, |(cage, _)| cage)
    }

    /// Makes the context of a call that came from another process on behalf of the request with this id.
    pub fn continued(self, id: RequestId, callers: Vec<Arc<str>>) -> Self {
        Self { id, callers, callers_here: 0, ..self }
    }

    /// Makes the context of a call whose callers have no permits of their cages.
    #[must_use]
    pub fn without_permits(self) -> Self {
        Self { callers_here: 0, ..self }
    }

    /// Returns whether the request has a permit of this cage, because a module of the cage is among the callers in this process
    /// that wait for the answer.
    pub fn holds_permit_of(&self, cage: &str) -> bool {
        self.callers.iter().rev().take(self.callers_here).any(|caller| is_of(caller, cage))
    }

    /// Returns whether a module of this cage is among the callers, proven or not.
    pub fn claims(&self, cage: &str) -> bool {
        self.callers.iter().any(|caller| is_of(caller, cage))
    }

    /// Makes the context of an attempt at a retried call that was accepted with this context. `cage` is the caller; the callers
    /// of then do not wait for it, and have no permits any more.
    pub fn retried(&self, cage: &str, attempt: Attempt, deadline: Deadline) -> Self {
        let mut facts = Facts::clone(&self.facts);
        facts.set(Facts::RETRIED_CALL, attempt.id.as_str());
        Self {
            facts: Arc::new(facts),
            callers: vec![format!("{cage}/").into()],
            callers_here: 0,
            attempt: Some(Arc::new(attempt)),
            ..self.with_deadline(deadline)
        }
    }

    /// The end of a log line about the request: `RQ-2D26 (description) via my_http +9.8s`, with the seconds left until the
    /// deadline, or with `-` those since.
    pub fn tail(&self) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            write!(f, "RQ-{}", self.id.short())?;
            if let Some(description) = self.description() {
                write!(f, " ({description})")?;
            }
            let (now, deadline) = (Instant::now(), self.deadline_now().instant());
            let (sign, seconds) = match deadline.checked_duration_since(now) {
                Some(left) => ('+', left.as_secs_f64()),
                None => ('-', now.duration_since(deadline).as_secs_f64()),
            };
            write!(f, " via {} {sign}{seconds:.1}s", self.interface)
        })
    }

    /// The same request with another deadline.
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        Self {
            id: self.id,
            deadline,
            stream: None,
            started: self.started,
            interface: self.interface.clone(),
            protocol: self.protocol.clone(),
            facts: self.facts.clone(),
            callers: self.callers.clone(),
            callers_here: self.callers_here,
            attempt: self.attempt.clone(),
            level: AtomicU8::new(self.level.load(Ordering::Relaxed)),
            description: Mutex::new(self.description()),
        }
    }

    /// The request's own log level, which overrides the cage's up and down.
    pub fn level(&self) -> Option<Level> {
        Level::from_u8(self.level.load(Ordering::Relaxed))
    }

    pub fn set_level(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
    }

    pub fn description(&self) -> Option<String> {
        self.description.lock().clone()
    }

    pub fn describe(&self, text: &str) {
        let text = text.chars().take(Self::DESCRIPTION_CHARACTERS_MAX).collect();
        *self.description.lock() = Some(text);
    }
}

/// Returns whether a caller, `cage/module`, is a module of the cage.
fn is_of(caller: &str, cage: &str) -> bool {
    caller.strip_prefix(cage).is_some_and(|rest| rest.starts_with('/'))
}

/// A whole request, as a module with `handler` gets it.
pub struct Request {
    pub context: Arc<RequestContext>,
    pub action: String,
    pub target: String,
    /// Names are in lower case and may repeat.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// The body's room in the process's budget, held until the module has answered.
    pub body_room: Option<BodyRoom>,
}

/// Shows only the names of headers: values may be secrets, and bodies may be long.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("context", &self.context)
            .field("action", &self.action)
            .field("headers", &self.headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// A module's answer, not yet checked against any protocol's rules.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// Arguments or result of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Arguments: `{"args": [..], "kwargs": {..}}`. Result: any JSON value.
    Json(String),
    Bytes(Bytes),
    /// Arguments or result of a typed binding, by the type of its function.
    Values(Values),
}

impl Payload {
    /// Encodes values, before they leave the process.
    #[must_use]
    pub fn encoded(self) -> Self {
        match self {
            Self::Values(values) => Self::Values(values.into_encoded()),
            Self::Json(_) | Self::Bytes(_) => self,
        }
    }
}

/// An attempt at a retried call, as its function can see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The call's id.
    pub id: String,
    /// Number of the attempt, from 1.
    pub number: u32,
    pub first_started: SystemTime,
    /// When the call is given up.
    pub expires: Option<SystemTime>,
}

/// A call that is to be retried until it succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetriedCall {
    pub target: CallTarget,
    pub arguments: Payload,
    pub options: RetriedOptions,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetriedOptions {
    /// The interface that makes the call; none: the default one.
    pub queue: Option<String>,
    pub id: Option<String>,
    pub expires: Option<Duration>,
    pub not_before: Option<Duration>,
    pub attempts_max: Option<u32>,
    pub priority: i8,
}

/// The function that is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallTarget {
    /// The cage; none: the caller's own.
    pub cage: Option<String>,
    pub module: String,
    pub function: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let mut facts = Facts::default();
        facts.set(Facts::USERNAME, "joe");
        facts.set(Facts::PASSWORD, "s3cret");
        let context = RequestContext::new("web".into(), "web", Duration::from_secs(1), Arc::new(facts));
        let shown = format!("{context:?}");
        assert!(shown.contains("joe") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn what_moves_puts_the_deadline_off_up_to_the_latest() {
        let context = RequestContext::new("web".into(), "web", Duration::from_secs(10), Arc::default());
        let context = context.streamed(Duration::from_secs(25));
        let stream = context.stream().unwrap();
        let check = |moved_s: u64, expected_s: u64| {
            stream.moved_ms.store(moved_s * 1000, Ordering::Relaxed);
            assert_eq!(
                context.deadline_now().instant() - context.started,
                Duration::from_secs(expected_s),
                "{moved_s}"
            );
        };
        check(0, 10);
        check(8, 18);
        // A call has what is left when it is made; later progress does not postpone its deadline.
        let call = context.for_call("cage", "module", None);
        check(17, 25);
        assert_eq!(call.deadline_now().instant() - context.started, Duration::from_secs(18));
        // The latest deadline holds however late something moves, and for absurd times.
        stream.moved_ms.store(u64::MAX >> 20, Ordering::Relaxed);
        assert_eq!(context.deadline_now(), stream.latest());
        let endless = StreamDeadline::new(context.started, Duration::from_secs(1), Duration::MAX);
        assert_eq!(endless.latest().instant() - context.started, Deadline::TIMEOUT_MAX);
    }

    #[test]
    fn what_is_handed_on_streams_within_the_whole() {
        let whole = RequestContext::new("web".into(), "web", Duration::from_secs(10), Arc::default());
        let whole = whole.streamed(Duration::from_secs(25));
        let outer = whole.stream().unwrap();
        let check = |own_s: Option<u64>, idle_s: u64| {
            let part = whole.for_call("cage", "module", None).streamed_within(outer, own_s.map(Duration::from_secs));
            let stream = part.stream().unwrap();
            assert_eq!((stream.idle(), stream.latest()), (Duration::from_secs(idle_s), outer.latest()));
            stream.moved_ms.store(1000, Ordering::Relaxed);
            assert_eq!(part.deadline_now().instant() - part.started, Duration::from_secs(idle_s + 1));
            // Its bytes are not those of the whole.
            assert_eq!(whole.deadline_now().instant() - whole.started, Duration::from_secs(10));
        };
        check(None, 10);
        check(Some(3), 3);
        check(Some(60), 10);
    }
}
